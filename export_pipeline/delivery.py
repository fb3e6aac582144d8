"""Handing a delivered file out: opened, checked while it passes, and on the record."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import ConfigurationError, FileNotVerified, WrongStatus
from export_pipeline.models import Actor, AuditAction, ExportFormat, ExportMetadata, RequestStatus
from export_pipeline.render.formats import RENDERERS, delivered
from export_pipeline.vault.store import Vault

_WITH_FILE = (RequestStatus.COMPLETED, RequestStatus.PARTIAL)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A file on its way out.

    Attributes:
        file_name: What to call it; holds the request's id and nothing of the person.
        media_type: Its MIME type.
        metadata: What it holds.
        chunks: Its bytes. The last step checks size and hash, so what came is good only when this ends in peace.
    """

    file_name: str
    media_type: str
    metadata: ExportMetadata
    chunks: Iterator[bytes]


def deliver(database: Database, vault: Vault, request_id: str, actor: Actor) -> Delivery:
    """Open the file of a request and write the audit row.

    Raises:
        RequestNotFound: There is no such request.
        WrongStatus: It has no file (yet, or any more).
        VaultError: The file or its key is gone.
    """
    requests = RequestStore(database)
    request = requests.get(request_id)
    metadata = requests.metadata(request_id)
    if request.status not in _WITH_FILE or metadata is None:
        raise WrongStatus(
            f"There is no file to download: the request is {request.status.value.replace('_', ' ')}.",
            hint=request.error_message or "",
        )
    vault.require_key()
    requests.log(request_id, AuditAction.DOWNLOADED, actor)
    renderer = RENDERERS[ExportFormat(metadata.format)]
    stored = vault.open(metadata.storage_key)
    return Delivery(
        file_name=f"export-{request_id}.{renderer.extension}",
        media_type=renderer.media_type,
        metadata=metadata,
        chunks=_checked(delivered(stored, metadata.content_encoding), metadata),
    )


def save(delivery: Delivery, file: Path) -> None:
    """Write a delivery to a file, whole or not at all, for its owner only.

    Raises:
        ConfigurationError: The file cannot be written there.
        SealBroken, FileNotVerified: The stored file is damaged; nothing is left.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            for chunk in delivery.chunks:
                out.write(chunk)
        temporary.replace(file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _checked(chunks: Iterator[bytes], metadata: ExportMetadata) -> Iterator[bytes]:
    sha256, size = hashlib.sha256(), 0
    for chunk in chunks:
        sha256.update(chunk)
        size += len(chunk)
        yield chunk
    if (sha256.hexdigest(), size) != (metadata.sha256, metadata.file_size_bytes):
        raise FileNotVerified("The stored file is not the one that was completed.", hint="Request the export again.")
