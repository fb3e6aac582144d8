"""From COPY to a part: what is counted, hashed and compressed is what PostgreSQL sent. A stand-in sends the rows."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from export_pipeline.collect.parts import Part, collect
from export_pipeline.collect.source import SnapshotInfo
from export_pipeline.collect.statements import Extract, RowEncoding
from export_pipeline.errors import SourceRefused, StorageUnavailable

CLICKS = Extract(schema="app", table="clicks", columns=("id",), user_id_column="user_id", order_by=("id",))
#: Around the sizes in which rows are joined.
COUNTS = [0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 5000]


class Source:
    """A snapshot, connection and cursor in one: sends what it was given, one message for each row."""

    def __init__(
        self, messages: list[bytes], *, counted: int | None, header: bool = False, rows: int | None = None
    ) -> None:
        self._messages = messages
        self._counted = counted
        self.rowcount = -1
        self._rows = len(messages) - header if rows is None else rows
        self.info = SnapshotInfo(id="10:12:", taken_at=datetime(2026, 1, 1, tzinfo=UTC), lsn=None)
        self.executed: list[str] = []
        self.asked = 0

    @contextmanager
    def attempt(self) -> Iterator[Source]:
        yield self

    @contextmanager
    def cursor(self, *_: Any, **__: Any) -> Iterator[Source]:
        yield self

    def execute(self, statement: psycopg.sql.Composable) -> None:
        self.executed.append(statement.as_string(None))

    def fetchone(self) -> tuple[int] | None:
        return None if self._counted is None else (self._counted,)

    @contextmanager
    def copy(self, statement: psycopg.sql.Composable) -> Iterator[Iterator[memoryview]]:
        self.execute(statement)
        yield self._send()
        self.rowcount = self._rows

    def _send(self) -> Iterator[memoryview]:
        for message in self._messages:
            self.asked += 1
            yield memoryview(message)


class Store:
    """Keeps what it is given, as raw deflate, and says what it decompresses to."""

    def __init__(self) -> None:
        self.packed: dict[str, bytes] = {}

    def __call__(self, key: str, chunks: Iterable[bytes]) -> None:
        self.packed[key] = b"".join(chunks)

    @property
    def text(self) -> bytes:
        (packed,) = self.packed.values()
        return zlib.decompress(packed, wbits=-15)


def csv_rows(count: int) -> list[bytes]:
    return [b"id,text\n", *(b'%d,"a\nb ""%d"""\n' % (number, number) for number in range(count))]


def json_rows(count: int) -> list[bytes]:
    return [json.dumps({"id": number, "text": "a\n]\x01,"}).encode() for number in range(count)]


def binary(values: list[bytes]) -> list[bytes]:
    """As binary COPY sends a text column: the header is part of the first message, the trailer a message of its own."""
    header = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    first, *others = [*(struct.pack("!hl", 1, len(value)) + value for value in values), b"\xff\xff"]
    return [header + first, *others]


def run(source: Source, store: Any, encoding: RowEncoding = RowEncoding.CSV) -> Part:
    return collect(source, CLICKS, "ada", data_type="clicks", encoding=encoding, key="a/clicks.part", store=store)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", COUNTS)
def test_csv_is_exactly_what_was_sent(count: int) -> None:
    store = Store()
    part = run(Source(csv_rows(count), counted=count, header=True), store)
    assert store.text == b"".join(csv_rows(count))
    assert (part.rows, part.rows_in_snapshot) == (count, count)


@pytest.mark.parametrize("count", COUNTS)
def test_json_is_the_inside_of_an_array(count: int) -> None:
    store = Store()
    part = run(Source(binary(json_rows(count)), counted=count, rows=count), store, RowEncoding.JSON)
    assert json.loads(b"[" + store.text + b"]") == [json.loads(row) for row in json_rows(count)]
    assert store.text.count(b"\n") == max(count - 1, 0), "one row a line"
    assert not store.text.endswith((b"\n", b","))
    assert part.rows == count


@pytest.mark.parametrize("encoding", [RowEncoding.CSV, RowEncoding.JSON])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_the_ticket_says_what_is_in_the_part(encoding: RowEncoding, count: int) -> None:
    csv, store = encoding is RowEncoding.CSV, Store()
    part = run(Source(csv_rows(count) if csv else binary(json_rows(count)), counted=count, rows=count), store, encoding)
    assert (part.data_type, part.key, part.snapshot_id) == ("clicks", "a/clicks.part", "10:12:")
    assert part.size == len(store.text)
    assert part.sha256 == hashlib.sha256(store.text).hexdigest()
    assert part.crc32 == zlib.crc32(store.text)
    assert part.packed_size == len(store.packed["a/clicks.part"])
    assert part.seconds >= 0


def test_a_ticket_survives_the_way_through_json() -> None:
    part = run(Source(csv_rows(3), counted=3, header=True), Store())
    assert Part(**json.loads(json.dumps(part.ticket()))) == part


def test_the_count_is_asked_for_before_the_rows() -> None:
    source = Source(csv_rows(1), counted=1, header=True)
    run(source, Store())
    counted, copied = source.executed
    assert counted.startswith("SELECT count(*)")
    assert copied.startswith("COPY (SELECT")


def test_a_difference_between_count_and_rows_is_in_the_ticket() -> None:
    part = run(Source(csv_rows(3), counted=4, header=True), Store())
    assert (part.rows_in_snapshot, part.rows) == (4, 3)


def test_a_source_that_does_not_count_is_refused() -> None:
    with pytest.raises(SourceRefused, match="did not count"):
        run(Source(csv_rows(1), counted=None, header=True), Store())


def test_memory_stays_flat() -> None:
    """The store takes the first bytes long before the last row is asked for."""
    rows = [hashlib.sha256(b"%d" % number).hexdigest().encode() * 20 + b"\n" for number in range(20_000)]
    source = Source(rows, counted=20_000)
    asked: list[int] = []

    def store(_: str, chunks: Iterable[bytes]) -> None:
        asked.extend(source.asked for _ in chunks)

    run(source, store)
    assert asked[0] < 5000
    assert source.asked == 20_000


def test_errors_of_the_store_arrive_unchanged() -> None:
    fault = StorageUnavailable("full")

    def store(_: str, chunks: Iterable[bytes]) -> None:
        next(iter(chunks))
        raise fault

    with pytest.raises(StorageUnavailable) as caught:
        run(Source(csv_rows(5), counted=5, header=True), store)
    assert caught.value is fault
