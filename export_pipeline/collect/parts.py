"""From the source to a sealed part: PostgreSQL renders the rows, we count, hash and compress what passes by."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from isal import isal_zlib
from psycopg import Cursor

from export_pipeline.collect.source import Snapshot
from export_pipeline.collect.statements import Extract, RowEncoding, copy_out, count
from export_pipeline.errors import SourceRefused

#: Rows joined at a time: large enough that Python's work per row vanishes, small enough for 20 kB rows.
_ROWS_PER_BLOCK = 512
#: Level 1 of isal: 4 to 6 times smaller at about the speed at which one backend renders text.
_LEVEL = 1
_RAW_DEFLATE = -15


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
        deflated_size: Bytes after compression (raw deflate).
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
    deflated_size: int
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
        encoding: How PostgreSQL renders a row.
        key: Name of the part.
        store: Seals and stores chunks under a key.

    Raises:
        SourceError: The source went away or refused.
        VaultError: The part could not be stored.
    """
    began = time.monotonic()
    meter = _Meter()
    with snapshot.attempt() as connection, connection.cursor() as cursor:
        cursor.execute(count(extract, user_id))
        rows_in_snapshot = _number(cursor)
        blocks = _ENCODERS[encoding](cursor, copy_out(extract, user_id, encoding))
        store(key, meter.deflate(blocks))
        rows = cursor.rowcount
    return Part(
        data_type=data_type,
        key=key,
        snapshot_id=snapshot.info.id,
        rows_in_snapshot=rows_in_snapshot,
        rows=rows,
        size=meter.size,
        sha256=meter.sha256.hexdigest(),
        crc32=meter.crc32,
        deflated_size=meter.deflated_size,
        seconds=round(time.monotonic() - began, 3),
    )


class _Meter:
    """Measures and compresses what passes by."""

    def __init__(self) -> None:
        self.size = 0
        self.deflated_size = 0
        self.crc32 = 0
        self.sha256 = hashlib.sha256()

    def deflate(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW_DEFLATE)
        for block in blocks:
            self.size += len(block)
            self.sha256.update(block)
            self.crc32 = isal_zlib.crc32(block, self.crc32)
            if deflated := compressor.compress(block):
                self.deflated_size += len(deflated)
                yield deflated
        deflated = compressor.flush()
        self.deflated_size += len(deflated)
        yield deflated


def _csv_blocks(cursor: Cursor[Any], statement: Any) -> Iterator[bytes]:
    """Header and rows, exactly as PostgreSQL sends them."""
    with cursor.copy(statement) as copy:
        while block := b"".join(islice(copy, _ROWS_PER_BLOCK)):
            yield block


def _json_blocks(cursor: Cursor[Any], statement: Any) -> Iterator[bytes]:
    """The inside of a JSON array: one object a line, a comma at the end of every line but the last."""
    separator = b""
    with cursor.copy(statement) as copy:
        while block := b"".join(islice(copy, _ROWS_PER_BLOCK)):
            # A newline stands at the end of a row and nowhere else.
            yield separator + block[:-1].replace(b"\n", b",\n")
            separator = b",\n"


_ENCODERS = {RowEncoding.CSV: _csv_blocks, RowEncoding.JSON: _json_blocks}


def _number(cursor: Cursor[Any]) -> int:
    row = cursor.fetchone()
    if row is None:
        raise SourceRefused("The source did not count.")
    return int(row[0])
