"""Checking a delivered file alone: does it hold what its own manifest says, and who signed that?"""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from export_pipeline.errors import ConfigurationError, FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render.formats import RENDERERS, delivered
from export_pipeline.render.renderer import FoundPart, Inspection
from export_pipeline.render.streams import MANIFEST_MOST, gathered
from export_pipeline.vault import signing
from export_pipeline.vault.signing import SignerFact

_CHUNK = 1024 * 1024
_GZIP, _AGE = b"\x1f\x8b", b"age-encryption.org/"


@dataclass(frozen=True, kw_only=True)
class Verified(Inspection):
    """A file that holds what its manifest says.

    Attributes:
        signer: Who signed the manifest; None when nobody did.
    """

    signer: SignerFact | None


def verify(file: Path, keys: Sequence[str] = ()) -> Verified:
    """Read a delivered (decrypted) file, compare rows, sizes and hashes with its manifest, and check the signature.

    Args:
        file: Its path. A JSON document may still be gzipped, as it comes out of a file for a recipient.
        keys: Public signing keys to trust. Without any, a signature shows only that nothing was changed since.

    Raises:
        ConfigurationError: The file cannot be read, or one of `keys` is none.
        FileNotVerified: It is no export, damaged, does not agree with its manifest, or is not signed by one of `keys`;
            says where.
    """
    try:
        with file.open("rb") as opened:
            form, packed = _format(opened)
            content = delivered(_chunks(opened), "gzip" if packed else "identity")
            inspection = RENDERERS[form].inspect(content)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    _compare(inspection)
    return Verified(
        manifest=inspection.manifest,
        parts=inspection.parts,
        user_id=inspection.user_id,
        signer=_signer(inspection, keys),
    )


def _format(opened: BinaryIO) -> tuple[ExportFormat, bool]:
    """What it is, and whether it is gzipped: a JSON document begins with a brace; an archive says in its manifest."""
    magic = opened.read(len(_AGE))
    if magic == _AGE:
        raise FileNotVerified("This file is encrypted.", hint="Open it with `age -d -i KEY` first.")
    if magic.startswith((b"{\n", _GZIP)):
        return ExportFormat.JSON, magic.startswith(_GZIP)
    try:
        with zipfile.ZipFile(opened) as archive:
            with archive.open("manifest.json") as manifest:
                text = gathered(iter(lambda: manifest.read(_CHUNK), b""), MANIFEST_MOST, "manifest")
            return ExportFormat(json.loads(text)["format"]), False
    except FileNotVerified:
        raise
    except Exception as error:  # a damaged archive makes the library raise a dozen kinds, some of zlib's and struct's
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:
            raise  # the disk's, and not of a place before the file's beginning
        raise FileNotVerified("This is no file that export-pipeline delivered, or it is damaged.") from None


def _chunks(opened: BinaryIO) -> Iterator[bytes]:
    opened.seek(0)
    while chunk := opened.read(_CHUNK):
        yield chunk


def _compare(inspection: Inspection) -> None:
    stated = _stated(inspection.manifest)
    if set(stated) != set(inspection.parts):
        raise FileNotVerified("The file does not hold the data types that its manifest names.")
    for data_type, part in inspection.parts.items():
        if part != stated[data_type]:
            raise FileNotVerified(f"{data_type} is not as its manifest says: {_difference(part, stated[data_type])}.")
    if inspection.manifest.get("total_records") != sum(part.rows for part in inspection.parts.values()):
        raise FileNotVerified("The total of records is not the sum of the data types.")


def _difference(found: FoundPart, stated: FoundPart) -> str:
    if (found.rows, found.size) == (stated.rows, stated.size):
        return "the SHA-256 of its bytes is another one, so a value was changed"
    return (
        f"{found.rows} rows and {found.size} bytes were found, {stated.rows} rows and {stated.size} bytes were stated"
    )


def _stated(manifest: dict[str, Any]) -> dict[str, FoundPart]:
    try:
        return {
            part["data_type"]: FoundPart(rows=part["rows"], size=part["bytes"], sha256=part["sha256"])
            for part in manifest["parts"]
        }
    except (KeyError, TypeError):
        raise FileNotVerified("The manifest is not complete.") from None


def _signer(inspection: Inspection, keys: Sequence[str]) -> SignerFact | None:
    statement = {"user_id": inspection.user_id, **inspection.manifest}
    signature = statement.pop(signing.SIGNATURE, None)
    if signature is None and keys:
        raise FileNotVerified("The file is not signed.", hint="Files of earlier versions are not.")
    return None if signature is None else signing.check(statement, signature, keys)
