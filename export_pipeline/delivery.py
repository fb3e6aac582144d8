"""Handing a delivered file out: opened, checked while it passes, and on the record."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import ConfigurationError, FileGone, FileNotVerified, RequestNotFound, WrongStatus
from export_pipeline.models import Actor, AuditAction, ExportFormat, ExportMetadata, RequestStatus
from export_pipeline.render.formats import RENDERERS, delivered
from export_pipeline.render.renderer import Renderer
from export_pipeline.vault.store import Vault

_WITH_FILE = (RequestStatus.COMPLETED, RequestStatus.PARTIAL)
#: Bytes that are passed over between two signs of life.
_SIGN_OF_LIFE = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class DeliveredFile:
    """The file of a request, as people get it.

    Attributes:
        file_name: What to call it; holds the request's id and nothing of the person.
        media_type: Its MIME type.
        size: Bytes.
        sha256: Hex digest.
        completed_at: Since when it is there.
        metadata: What it holds.
        as_stored: Whether people get the sealed object itself, because only they can open it.
    """

    file_name: str
    media_type: str
    size: int
    sha256: str
    completed_at: datetime
    metadata: ExportMetadata
    as_stored: bool = False


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A file on its way out.

    Attributes:
        file_name: What to call it; holds the request's id and nothing of the person.
        media_type: Its MIME type.
        metadata: What it holds.
        chunks: Its bytes. The last of them come only after size and hash were found right.
    """

    file_name: str
    media_type: str
    metadata: ExportMetadata
    chunks: Iterator[bytes]


def find(database: Database, request_id: str) -> DeliveredFile:
    """Look up the file of a request.

    Raises:
        RequestNotFound: There is no such request.
        WrongStatus: It has no file (yet, or any more).
        FileGone: The file expired.
    """
    requests = RequestStore(database)
    request = requests.get(request_id)
    metadata = requests.metadata(request_id)
    if request.status not in _WITH_FILE or metadata is None:
        raise WrongStatus(
            f"There is no file to download: the request is {request.status.value.replace('_', ' ')}.",
            hint=request.error_message or "",
        )
    if metadata.expired:
        # The purge may not have been here yet.
        raise FileGone("There is no file to download: it has expired.", hint="Request the export again.")
    renderer = RENDERERS[ExportFormat(metadata.format)]
    for_recipient = metadata.content_encoding == "age"
    return DeliveredFile(
        file_name=f"export-{request_id}.{_extension(renderer, for_recipient=for_recipient)}",
        media_type="application/octet-stream" if for_recipient else renderer.media_type,
        size=metadata.file_size_bytes,
        sha256=metadata.sha256,
        completed_at=request.completed_at or metadata.export_date,
        as_stored=for_recipient,
        metadata=metadata,
    )


def is_there(database: Database, request_id: str) -> bool:
    """Whether a request still has its file: a download that began in time may go on until the file is removed.

    Raises:
        DatabaseUnavailable: It cannot be known now.
    """
    try:
        return RequestStore(database).get(request_id).status in _WITH_FILE
    except RequestNotFound:
        return False


def read(vault: Vault, file: DeliveredFile, *, offset: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Open a file and yield its bytes, or a piece of them.

    What stands before the piece is decrypted and thrown away, for the seal cannot be opened in the middle; then an
    empty chunk comes from time to time. A piece that reaches the end is checked as the whole file is: its last bytes
    come only when size and hash are right.

    Args:
        vault: Where it lies.
        file: The file.
        offset: Bytes before the piece.
        end: Bytes up to the piece's end; None means all.

    Raises:
        VaultError: The stored object or its key is gone.
        FileNotVerified: It is not the file that was completed.
    """
    key = file.metadata.storage_key
    stored = vault.sealed(key) if file.as_stored else vault.open(key)
    whole = _checked(delivered(stored, file.metadata.content_encoding), file)
    return whole if offset == 0 and end is None else _piece(whole, offset, file.size if end is None else end)


def deliver(database: Database, vault: Vault, request_id: str, actor: Actor) -> Delivery:
    """Open the file of a request and write the audit row.

    Raises:
        RequestNotFound: There is no such request.
        WrongStatus: It has no file (yet, or any more).
        VaultError: The file or its key is gone; the trail says nothing then.
    """
    file = find(database, request_id)
    chunks = read(vault, file)
    # Opened before the trail says so, and on the record before anything is handed out.
    first = next(chunks, b"")
    RequestStore(database).log(request_id, AuditAction.DOWNLOADED, actor)
    return Delivery(
        file_name=file.file_name, media_type=file.media_type, metadata=file.metadata, chunks=chain([first], chunks)
    )


def _extension(renderer: Renderer, *, for_recipient: bool) -> str:
    """A file for a recipient comes as it is stored: named by its layers, the outermost last."""
    packed = ".gz" if renderer.content_encoding == "gzip" else ""
    return f"{renderer.extension}{packed}.age" if for_recipient else renderer.extension


def save(delivery: Delivery, file: Path) -> None:
    """Write a delivery to a file, whole or not at all, for its owner only.

    Raises:
        ConfigurationError: The file cannot be written there.
        SealBroken, FileNotVerified: The stored file is damaged; nothing is left.
    """
    write(delivery.chunks, file)


def write(chunks: Iterable[bytes], file: Path) -> None:
    """Write bytes to a file, whole or not at all, for its owner only.

    Raises:
        ConfigurationError: The file cannot be written there.
    """
    temporary = None
    try:
        # A name that nobody can foresee, and no file that is there already: in a folder that others may write to, one
        # of theirs could wait for what we write.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
        with os.fdopen(descriptor, "wb") as out:
            for chunk in chunks:
                out.write(chunk)
        Path(temporary).replace(file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}.") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _checked(chunks: Iterator[bytes], file: DeliveredFile) -> Iterator[bytes]:
    """Each chunk waits for the next one, and the last one for the verdict: what is wrong never ends well."""
    sha256, size, held = hashlib.sha256(), 0, b""
    for chunk in chunks:
        sha256.update(chunk)
        size += len(chunk)
        if size > file.size:
            break
        if held:
            yield held
        held = chunk
    if (sha256.hexdigest(), size) != (file.sha256, file.size):
        raise FileNotVerified("The stored file is not the one that was completed.", hint="Request the export again.")
    yield held


def _piece(whole: Iterator[bytes], offset: int, end: int) -> Iterator[bytes]:
    position, silent = 0, _SIGN_OF_LIFE
    with closing(whole):  # type: ignore[type-var]
        for chunk in whole:
            start, position = position, position + len(chunk)
            if position > offset:
                yield chunk[max(0, offset - start) : end - start]
                silent = 0
            elif (silent := silent + len(chunk)) > _SIGN_OF_LIFE:
                yield b""
                silent = 0
            if position >= end:
                return
