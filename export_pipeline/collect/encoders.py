"""How the rows of one encoding become the bytes of a part: what PostgreSQL sends, framed, and what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from isal import isal_zlib
from psycopg import Copy, Cursor

from export_pipeline.collect.statements import Extract, RowEncoding, copy_out

#: Bytes that are gathered before they go on: Python's work per block vanishes, the block stays in the processor's
#: cache, and meanwhile the server's next one fits into the socket's buffer (with 256 KiB the two take turns).
_BLOCK = 64 * 1024
#: Level 1 of isal: 4 to 6 times smaller at about the speed at which one backend renders text.
_LEVEL = 1
_RAW_DEFLATE = -15
#: Bytes around the values of a binary COPY.
_FILE_HEADER, _ROW_HEADER = 19, 6

Buffer = bytes | bytearray | memoryview
Blocks = Generator[bytes, None, None]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One row encoding.

    Attributes:
        content: Reads the rows of an extract and yields the part's content; afterwards the cursor's `rowcount` is
            the number of rows that COPY sent.
        pack: Turns the content into what is stored.
    """

    content: Callable[[Cursor[Any], Extract, str], Blocks]
    pack: Callable[[Iterable[bytes]], Iterator[bytes]]


def blocks(copy: Copy, size: int = _BLOCK) -> Iterator[bytes]:
    """Gather whole rows into blocks of about `size` bytes: one row more at the most, however large rows are."""
    gathered = bytearray()
    for row in copy:
        gathered += row
        if len(gathered) >= size:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def texts(copy: Copy, size: int = _BLOCK) -> Iterator[list[Buffer]]:
    """Gather the values of a binary COPY of one text column, about `size` bytes at a time.

    Each message is a row: how many columns it has, how long the value is, the value. In front of the first one stands
    the header of a binary file, and its trailer is a message without a value.
    """
    gathered, values = 0, []
    framing = _FILE_HEADER + _ROW_HEADER
    for message in copy:
        if len(message) >= framing:
            values.append(message[framing:])
            gathered += len(message)
        framing = _ROW_HEADER
        if gathered >= size:
            yield values
            gathered, values = 0, []
    if values:
        yield values


def deflate(content: Iterable[bytes]) -> Iterator[bytes]:
    """Compress into one raw deflate stream, which zip and gzip members both consist of."""
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW_DEFLATE)
    for block in content:
        if deflated := compressor.compress(block):
            yield deflated
    yield compressor.flush()


def _csv(cursor: Cursor[Any], extract: Extract, user_id: str) -> Blocks:
    """Header and rows, exactly as PostgreSQL sends them."""
    with cursor.copy(copy_out(extract, user_id, RowEncoding.CSV)) as copy:
        yield from blocks(copy)


def _json(cursor: Cursor[Any], extract: Extract, user_id: str) -> Blocks:
    """The inside of a JSON array: one object a line, a comma at the end of every line but the last."""
    glue = b""
    with cursor.copy(copy_out(extract, user_id, RowEncoding.JSON)) as copy:
        for rows in texts(copy):
            yield glue + b",\n".join(rows)
            glue = b",\n"


def _ndjson(cursor: Cursor[Any], extract: Extract, user_id: str) -> Blocks:
    """One JSON object a line."""
    with cursor.copy(copy_out(extract, user_id, RowEncoding.NDJSON)) as copy:
        for rows in texts(copy):
            yield b"\n".join([*rows, b""])


def _parquet(cursor: Cursor[Any], extract: Extract, user_id: str) -> Blocks:
    """A Parquet file. Arrow costs 40 MB and 0.2 s: only who needs it pays."""
    from export_pipeline.collect import parquet

    yield from parquet.render(cursor, extract, user_id)


ENCODERS = {
    RowEncoding.CSV: Encoder(content=_csv, pack=deflate),
    RowEncoding.JSON: Encoder(content=_json, pack=deflate),
    RowEncoding.NDJSON: Encoder(content=_ndjson, pack=deflate),
    RowEncoding.PARQUET: Encoder(content=_parquet, pack=iter),
}
