"""Checking a delivered file alone: does it hold what its own manifest says?"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from export_pipeline.errors import ConfigurationError, FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render.formats import RENDERERS
from export_pipeline.render.renderer import FoundPart, Inspection

_CHUNK = 1024 * 1024


def verify(file: Path) -> Inspection:
    """Read a delivered (decrypted) file and compare rows, sizes and hashes with its manifest.

    Raises:
        ConfigurationError: The file cannot be read.
        FileNotVerified: It is no export, damaged, or does not agree with its manifest; says where.
    """
    try:
        with file.open("rb") as opened:
            inspection = RENDERERS[_format(opened)].inspect(_chunks(opened))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    _compare(inspection)
    return inspection


def _format(opened: BinaryIO) -> ExportFormat:
    """A JSON document begins with a brace; an archive says in its manifest what it is."""
    magic = opened.read(2)
    if magic == b"{\n":
        return ExportFormat.JSON
    try:
        with zipfile.ZipFile(opened) as archive:
            return ExportFormat(json.loads(archive.read("manifest.json"))["format"])
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError):
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
            raise FileNotVerified(
                f"{data_type} is not as its manifest says: {part.rows} rows and {part.size} bytes were found,"
                f" {stated[data_type].rows} rows and {stated[data_type].size} bytes were stated."
            )
    if inspection.manifest.get("total_records") != sum(part.rows for part in inspection.parts.values()):
        raise FileNotVerified("The total of records is not the sum of the data types.")


def _stated(manifest: dict[str, Any]) -> dict[str, FoundPart]:
    try:
        return {
            part["data_type"]: FoundPart(rows=part["rows"], size=part["bytes"], sha256=part["sha256"])
            for part in manifest["parts"]
        }
    except (KeyError, TypeError):
        raise FileNotVerified("The manifest is not complete.") from None
