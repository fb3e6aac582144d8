"""The Parquet path: blocks, row groups, memory, and what happens when Arrow refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from export_pipeline.collect import catalogue, parquet
from export_pipeline.collect.parts import Part, collect
from export_pipeline.collect.source import Source
from export_pipeline.collect.statements import Extract, RowEncoding
from export_pipeline.errors import FileNotVerified, SourceRefused
from export_pipeline.models import DataTypeConfig
from export_pipeline.plan import plan_type
from export_pipeline.render import parquet_archive
from export_pipeline.render.parquet_archive import ParquetRenderer

MEGABYTE = 1024 * 1024


@pytest.fixture
def collected(tables_url: str, admin: psycopg.Connection[Any]) -> Iterator[Callable[..., tuple[bytes, Part]]]:
    """Collect table ``t`` as Parquet: call with the SELECT that fills it, and what to change about the extract."""

    def make(select: str, **changes: Any) -> tuple[bytes, Part]:
        admin.execute("DROP TABLE IF EXISTS public.t")
        admin.execute(f"CREATE TABLE public.t AS {select}".encode())
        config = DataTypeConfig(data_type="t", table_name="t")
        kept = bytearray()
        with Source(tables_url).snapshot() as snapshot:
            extract: Extract = plan_type(config, catalogue.describe(snapshot, config), matchable=True).extract
            part = collect(
                snapshot,
                replace(extract, **changes),
                "ada",
                data_type="t",
                encoding=RowEncoding.PARQUET,
                key="t",
                store=lambda _, chunks: [kept.extend(chunk) for chunk in chunks],
            )
        return bytes(kept), part

    yield make


def test_formats_without_arrow_do_not_load_it() -> None:
    check = "import sys; import export_pipeline.wiring; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_row_groups_are_bounded_and_grow_when_there_are_many(
    collected: Callable[..., tuple[bytes, Part]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP", 10_000)
    monkeypatch.setattr(parquet, "_CHUNKS_OF_A_SIZE", 20)
    file, part = collected("SELECT 'ada' AS user_id, i AS id FROM generate_series(1, 50000) AS i")
    metadata = pa_parquet.read_metadata(io.BytesIO(file))
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert (sum(rows), part.rows) == (50_000, 50_000)
    assert rows[0] < 2_000
    assert rows[-2] > 3 * rows[0]
    assert [row["id"] for row in pa_parquet.read_table(io.BytesIO(file)).to_pylist()] == list(range(1, 50_001))


def test_memory_does_not_grow_with_the_rows(collected: Callable[..., tuple[bytes, Part]]) -> None:
    collected(
        "SELECT 'ada' AS user_id, i AS id, md5(i::text) AS a, md5((-i)::text) AS b, now() AS c, i::numeric(12, 2) AS d"
        " FROM generate_series(1, 400000) AS i"
    )
    assert pa.default_memory_pool().max_memory() < 60 * MEGABYTE
    assert pa.total_allocated_bytes() < MEGABYTE


def test_a_value_larger_than_a_row_group(collected: Callable[..., tuple[bytes, Part]]) -> None:
    file, _ = collected(
        "SELECT 'ada' AS user_id, i AS id, CASE WHEN i = 2 THEN repeat(E'a\"\\n,', 5 * 1024 * 1024) ELSE '' END AS text"
        " FROM generate_series(1, 3) AS i"
    )
    texts = pa_parquet.read_table(io.BytesIO(file)).column("text").to_pylist()
    assert texts == ["", 'a"\n,' * (5 * MEGABYTE), ""]


def test_a_byte_order_mark_at_the_beginning_of_a_block_belongs_to_the_value(
    collected: Callable[..., tuple[bytes, Part]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP", 10)
    file, _ = collected("SELECT E'\\uFEFF' || i AS first, 'ada' AS user_id FROM generate_series(1, 5) AS i")
    assert pa_parquet.read_table(io.BytesIO(file)).column("first").to_pylist() == [f"\ufeff{i}" for i in range(1, 6)]


def test_null_and_empty_differ_also_in_a_table_of_one_column(collected: Callable[..., tuple[bytes, Part]]) -> None:
    file, part = collected(
        "SELECT unnest(ARRAY['ada', 'ada', 'ada']) AS user_id, unnest(ARRAY[NULL, '', 'NULL']) AS text",
        columns=("text",), types=("text",), base_types=("text",),
    )  # fmt: skip
    assert pa_parquet.read_table(io.BytesIO(file)).column("text").to_pylist() == [None, "", "NULL"]
    assert part.rows == 3


@pytest.mark.parametrize("user_id", ["eve", "ada"])
def test_one_value_of_another_person_changes_no_type(
    collected: Callable[..., tuple[bytes, Part]], user_id: str
) -> None:
    file, _ = collected(
        "SELECT user_id, at, amount::numeric(5, 2)"
        f" FROM (VALUES ('ada', '2024-01-01'::timestamptz, 1::numeric), ('{user_id}', 'infinity', 'NaN'))"
        " AS v (user_id, at, amount)"
    )
    types = {str(field.type) for field in pa_parquet.read_schema(io.BytesIO(file))}
    expected = {"string", "timestamp[us, tz=UTC]", "decimal128(5, 2)"} if user_id == "eve" else {"string"}
    assert types == expected


def test_a_value_that_does_not_fit_is_refused_and_not_quoted(
    collected: Callable[..., tuple[bytes, Part]],
) -> None:
    with pytest.raises(SourceRefused) as caught:
        collected("SELECT 'ada' AS user_id, 'secret words' AS x", base_types=("text", "integer"))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


class TestFooter:
    """The number of rows is read off the end of a stream."""

    def test_it_is_found_however_the_stream_is_cut(self, collected: Callable[..., tuple[bytes, Part]]) -> None:
        file, _ = collected("SELECT 'ada' AS user_id, i AS id FROM generate_series(1, 1000) AS i")
        for size in (1, 7, 64, 1000, len(file)):
            pieces = [file[at : at + size] for at in range(0, len(file), size)]
            assert ParquetRenderer().count(pieces) == 1000

    def test_only_the_end_is_kept(
        self, collected: Callable[..., tuple[bytes, Part]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file, _ = collected("SELECT 'ada' AS user_id, i AS id, md5(i::text) AS x FROM generate_series(1, 20000) AS i")
        pieces = [file[at : at + 100] for at in range(0, len(file), 100)]
        monkeypatch.setattr(parquet_archive, "_LONGEST_FOOTER", 5_000)
        assert ParquetRenderer().count(pieces) == 20_000
        monkeypatch.setattr(parquet_archive, "_LONGEST_FOOTER", 500)
        with pytest.raises(FileNotVerified):
            ParquetRenderer().count(pieces)

    @pytest.mark.parametrize(
        "content", [b"", b"PAR1", b"x" * 100, b"x" * 92 + b"\xff\xff\xff\x7fPAR1", bytes(4) + b"PAR1"]
    )
    def test_what_has_none_is_refused(self, content: bytes) -> None:
        with pytest.raises(FileNotVerified):
            ParquetRenderer().count([content])
