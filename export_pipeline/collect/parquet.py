"""Rows as a Parquet file: Arrow reads the stream of COPY a block at a time and writes it row group by row group.

Nothing else keeps every value: drivers that give Arrow directly wrap or round what Arrow has no place for. A column
gets a proper Arrow type where that type holds every value that the user's rows have, which the snapshot is asked for
first; else it is text, as PostgreSQL prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from psycopg import Copy, Cursor

from export_pipeline.collect.statements import Extract, RowEncoding, copy_out, unfit
from export_pipeline.errors import SourceRefused

#: Text of one row group: larger ones read faster, but about five times their size is in memory while one is made.
_GROUP = 2 * 1024 * 1024
#: The footer grows by 75 bytes for each column of each row group, and is read back from memory. So after this many
#: (1.4 GB of text in 12 columns, 16 MB in 1,000) row groups are twice as large.
_CHUNKS_OF_A_SIZE = 8_000
_MOST_DOUBLINGS = 6
_TYPE_KEY = "postgresql_type"

_EXACT = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
}
_YEARS = "BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'"
#: Arrow's type, and as SQL the values that it can hold: not infinity, not BC, not 24:00, not NaN.
_RANGED = {
    "date": (pa.date32(), "BETWEEN '0001-01-01' AND '9999-12-31'"),
    "time without time zone": (pa.time64("us"), "< '24:00'"),
    "timestamp without time zone": (pa.timestamp("us"), _YEARS),
    "timestamp with time zone": (pa.timestamp("us", tz="UTC"), _YEARS),
}
_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)")
_MAX_PRECISION = 38


def render(cursor: Cursor[Any], extract: Extract, user_id: str) -> Iterator[bytes]:
    """Yield the bytes of a Parquet file; see `encoders.Encoder`.

    Raises:
        SourceRefused: A value does not fit its column's type.
    """
    schema = _schema(cursor, extract, user_id)
    sink = _Sink()
    with (
        pa_parquet.ParquetWriter(
            sink, schema, compression="zstd", compression_level=1, write_statistics=False
        ) as writer,
        cursor.copy(copy_out(extract, user_id, RowEncoding.PARQUET)) as copy,
    ):
        for table in _tables(copy, schema):
            writer.write_table(table)
            yield sink.taken()
    yield sink.taken()


class _Sink:
    """A file that is only written, and handed on as soon as it is."""

    closed = False

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> int:
        self._chunks.append(bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.closed = True

    def taken(self) -> bytes:
        """What was written since the last time."""
        written = b"".join(self._chunks)
        self._chunks.clear()
        return written


def _schema(cursor: Cursor[Any], extract: Extract, user_id: str) -> pa.Schema:
    types = {column: _arrow_type(base_type) for column, base_type in extract.typed_columns}
    ranges = {column: values for column, (_, values) in types.items() if values}
    misfits = set()
    if ranges:
        row = cursor.execute(unfit(extract, user_id, ranges)).fetchone() or ()
        misfits = {column for column, misfit in zip(ranges, row, strict=True) if misfit}
    declared = dict(zip(extract.columns, extract.types, strict=True))
    return pa.schema(
        pa.field(
            column,
            pa.string() if column in misfits else arrow_type,
            metadata={_TYPE_KEY: declared[column]},
        )
        for column, (arrow_type, _) in types.items()
    )


def _arrow_type(base_type: str) -> tuple[pa.DataType, str]:
    """Arrow's type, and the values that it can hold, as SQL: empty means all of them."""
    if base_type in _EXACT:
        return _EXACT[base_type], ""
    if base_type in _RANGED:
        return _RANGED[base_type]
    if numeric := _NUMERIC.fullmatch(base_type):
        precision, scale = map(int, numeric.groups())
        if scale <= precision <= _MAX_PRECISION:
            return pa.decimal128(precision, scale), "<> 'NaN'"
    return pa.string(), ""


def _tables(copy: Copy, schema: pa.Schema) -> Iterator[pa.Table]:
    """One table for each row group."""
    names = [f"c{number}" for number in range(len(schema))]
    convert = pa_csv.ConvertOptions(
        column_types=dict(zip(names, schema.types, strict=True)),
        # COPY writes NULL as nothing and an empty text as two quotes.
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        true_values=["t"],
        false_values=["f"],
    )
    # A NULL in a table of one column is an empty line.
    parse = pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
    for block in _groups(copy, names):
        read = pa_csv.ReadOptions(use_threads=False, block_size=len(block))
        try:
            table = pa_csv.read_csv(pa.py_buffer(block), read, parse, convert)
        except pa.ArrowInvalid:
            # Its text quotes the value.
            raise SourceRefused("A value of the source does not fit its column's type in Parquet.") from None
        yield pa.Table.from_arrays(table.columns, schema=schema)
        del table, block
        pa.default_memory_pool().release_unused()


def _groups(copy: Copy, names: list[str]) -> Iterator[bytearray]:
    """Whole rows, about `_GROUP` bytes of them, behind a header of our own.

    (Arrow would take a byte order mark at the beginning of a block for no part of the first value.)
    """
    header = ",".join(names).encode() + b"\n"
    block, limit, chunks = bytearray(header), _GROUP, 0
    for row in copy:
        block += row
        if len(block) >= limit:
            yield block
            chunks += len(names)
            limit = _GROUP << min(chunks // _CHUNKS_OF_A_SIZE, _MOST_DOUBLINGS)
            block = bytearray(header)
    if len(block) > len(header):
        yield block
