"""From the source to a sealed part: PostgreSQL renders the rows, we count and hash what passes by."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from isal import isal_zlib
from psycopg import Cursor

from export_pipeline.collect.encoders import ENCODERS
from export_pipeline.collect.source import Snapshot
from export_pipeline.collect.statements import Extract, RowEncoding, count
from export_pipeline.errors import SourceRefused


@dataclass(frozen=True, kw_only=True)
class Part:
    """The ticket for one sealed part: all that later steps need, and nothing of anybody's data.

    Attributes:
        data_type: The data type.
        key: Name of the sealed object in the work area.
        snapshot_id: The snapshot that the rows come from.
        rows_in_snapshot: `count(*)` in that snapshot.
        rows: Rows that COPY sent.
        size: Bytes of the rendered rows.
        sha256: Hex digest of the rendered rows.
        crc32: Checksum of the rendered rows, as zip and gzip want it.
        packed_size: Bytes that are stored of them before sealing: a raw deflate stream, or just as many when the
            encoding compresses by itself.
        seconds: Wall time of the collection.
    """

    data_type: str
    key: str
    snapshot_id: str
    rows_in_snapshot: int
    rows: int
    size: int
    sha256: str
    crc32: int
    packed_size: int
    seconds: float

    def ticket(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def collect(
    snapshot: Snapshot,
    extract: Extract,
    user_id: str,
    *,
    data_type: str,
    encoding: RowEncoding,
    key: str,
    store: Callable[[str, Iterable[bytes]], Any],
) -> Part:
    """Stream one data type into a sealed part, in constant memory.

    Args:
        snapshot: Where to read.
        extract: What to read.
        user_id: Whose rows.
        data_type: Name of the data type.
        encoding: How rows are rendered and packed.
        key: Name of the part.
        store: Seals and stores chunks under a key.

    Raises:
        SourceError: The source went away or refused.
        VaultError: The part could not be stored.
    """
    began = time.monotonic()
    encoder, content, packed = ENCODERS[encoding], _Digest(), _Size()
    with snapshot.attempt() as connection, connection.cursor() as cursor:
        cursor.execute(count(extract, user_id))
        rows_in_snapshot = _number(cursor)
        # Closed before the savepoint ends: a COPY that was left in the middle would block the connection.
        with closing(encoder.content(cursor, extract, user_id)) as rendered:
            store(key, packed.watch(encoder.pack(content.watch(rendered))))
        rows = cursor.rowcount
    return Part(
        data_type=data_type,
        key=key,
        snapshot_id=snapshot.info.id,
        rows_in_snapshot=rows_in_snapshot,
        rows=rows,
        size=content.size,
        sha256=content.sha256.hexdigest(),
        crc32=content.crc32,
        packed_size=packed.size,
        seconds=round(time.monotonic() - began, 3),
    )


class _Size:
    """Counts the bytes that pass by."""

    def __init__(self) -> None:
        self.size = 0

    def watch(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self.size += len(block)
            yield block


class _Digest(_Size):
    """Counts and hashes the bytes that pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.crc32 = 0
        self.sha256 = hashlib.sha256()

    def watch(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in super().watch(blocks):
            self.sha256.update(block)
            self.crc32 = isal_zlib.crc32(block, self.crc32)
            yield block


def _number(cursor: Cursor[Any]) -> int:
    row = cursor.fetchone()
    if row is None:
        raise SourceRefused("The source did not count.")
    return int(row[0])
