"""What every format must keep: it is tested here by standing in RENDERERS."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from export_pipeline import manifest
from export_pipeline.collect import catalogue
from export_pipeline.collect.parts import Part, collect
from export_pipeline.collect.source import Snapshot, Source
from export_pipeline.errors import FileNotVerified, StorageUnavailable
from export_pipeline.models import DataTypeConfig, ExportFormat, ExportRequest, RequestStatus
from export_pipeline.plan import ExportPlan, PlannedType, plan_type
from export_pipeline.render.formats import RENDERERS, delivered
from export_pipeline.render.renderer import Document, FoundPart, Inspection, Renderer
from export_pipeline.vault import keys
from export_pipeline.vault.store import Vault
from export_pipeline_tests.all_types import COLUMNS, MORE_COLUMNS, create

USER = "ada"
SMALL = """
CREATE TABLE public.people (user_id text, id int PRIMARY KEY, name text, document json);
INSERT INTO people SELECT 'ada', i, 'name ' || i, E'{"a":\\n 1}' FROM generate_series(1, 20) AS i;
CREATE TABLE public.nothing (user_id text, id int PRIMARY KEY, "at" timestamptz);
CREATE TABLE public.one (user_id text, value text);
INSERT INTO one VALUES ('ada', NULL), ('eve', 'not hers');
"""
MOMENT = datetime(2026, 11, 24, tzinfo=UTC)
REQUEST = ExportRequest(
    request_id="request-1",
    user_id=USER,
    requested_by="admin",
    request_type="custom",
    data_types=(),
    format="",
    status=RequestStatus.PROCESSING,
    requested_at=MOMENT,
    completed_at=None,
    file_url=None,
    error_message=None,
    attempt=1,
    run_id="run-1",
)
#: A seed for each run of the suite would find more, once; the same seed finds the same, always.
FUZZ = random.Random(20261124)


@dataclass(frozen=True)
class Workshop:
    """Collects and renders tables, without requests."""

    renderer: Renderer
    snapshot: Snapshot
    work: Vault
    vault: Vault

    def planned(self, table: str) -> PlannedType:
        config = DataTypeConfig(data_type=table, table_name=table)
        return plan_type(config, catalogue.describe(self.snapshot, config), matchable=True, escape_formulas=True)

    def collect(self, *tables: str, store: Callable[..., Any] | None = None) -> list[Part]:
        return [
            collect(
                self.snapshot,
                self.planned(table).extract,
                USER,
                data_type=table,
                encoding=self.renderer.encoding,
                key=f"{table}.part",
                store=store or self.work.store,
            )
            for table in tables
        ]

    def frame(self, parts: Sequence[Part]) -> Iterator[bytes]:
        plan = ExportPlan(format=self.renderer.format, types=tuple(self.planned(part.data_type) for part in parts))
        contents = manifest.build(REQUEST, plan, parts, {}, self.snapshot.info, MOMENT)
        document = Document(user_id=USER, request_id=REQUEST.request_id, export_date=MOMENT, manifest=contents)
        return self.renderer.frame(document, parts, lambda part: self.work.open(part.key))

    def make(self, *tables: str) -> tuple[bytes, list[Part]]:
        """The delivered file, by way of the vault."""
        parts = self.collect(*tables)
        self.vault.store("export.age", self.frame(parts))
        return b"".join(delivered(self.vault.open("export.age"), self.renderer.content_encoding)), parts

    def inspect(self, file: bytes, chunk: int = 65536) -> Inspection:
        return self.renderer.inspect(file[at : at + chunk] for at in range(0, len(file), chunk))


def found(parts: Sequence[Part]) -> dict[str, FoundPart]:
    return {part.data_type: FoundPart(rows=part.rows, size=part.size, sha256=part.sha256) for part in parts}


@pytest.fixture(params=list(RENDERERS), ids=str)
def workshop(
    request: pytest.FixtureRequest, tables_url: str, tmp_path: Path, admin: psycopg.Connection[Any]
) -> Iterator[Callable[..., Workshop]]:
    """Fill the source, then open it: call with SQL."""
    keys.create(tmp_path / "age.txt")
    source = Source(tables_url).snapshot()

    def opened(statements: str = SMALL) -> Workshop:
        admin.execute(statements.encode())
        return Workshop(
            renderer=RENDERERS[request.param],
            snapshot=source.__enter__(),
            work=Vault((tmp_path / "work").as_uri(), tmp_path / "age.txt"),
            vault=Vault((tmp_path / "vault").as_uri(), tmp_path / "age.txt"),
        )

    yield opened
    source.__exit__(None, None, None)


class TestContents:
    """Counts equal what was written."""

    @pytest.mark.parametrize(
        ("tables", "rows"),
        [
            (["people", "nothing", "one"], [20, 0, 1]),
            (["nothing"], [0]),
            (["one"], [1]),
            (["nothing", "people"], [0, 20]),
        ],
    )
    def test_few_rows(self, workshop: Callable[..., Workshop], tables: list[str], rows: list[int]) -> None:
        made = workshop()
        file, parts = made.make(*tables)
        assert [part.rows for part in parts] == [part.rows_in_snapshot for part in parts] == rows
        assert made.inspect(file).parts == found(parts)
        assert made.inspect(file).manifest["total_records"] == sum(rows)

    def test_many_rows(self, workshop: Callable[..., Workshop]) -> None:
        made = workshop(
            "CREATE TABLE public.many AS SELECT 'ada'::text AS user_id, i AS id, 'row ' || i AS title, now() AS at,"
            " i / 3.0::float8 AS ratio FROM generate_series(1, 50000) AS i"
        )
        file, [part] = made.make("many")
        assert (part.rows, made.inspect(file).parts["many"].rows) == (50_000, 50_000)

    def test_all_types_and_hostile_text(self, workshop: Callable[..., Workshop]) -> None:
        made = workshop(create(COLUMNS | MORE_COLUMNS))
        file, parts = made.make("things")
        for chunk in (1000, 1 << 20):
            assert made.inspect(file, chunk).parts == found(parts)

    def test_a_thousand_columns(self, workshop: Callable[..., Workshop]) -> None:
        columns = ", ".join(f'i AS "c,{number}\'"' for number in range(1000))
        made = workshop(
            f"CREATE TABLE public.wide AS SELECT 'ada'::text AS user_id, {columns} FROM generate_series(1, 50) AS i"
        )
        file, parts = made.make("wide")
        assert made.inspect(file).parts == found(parts)
        assert parts[0].rows == 50

    def test_a_value_of_five_megabytes(self, workshop: Callable[..., Workshop]) -> None:
        made = workshop(
            "CREATE TABLE public.large AS SELECT 'ada'::text AS user_id, i AS id,"
            " (SELECT string_agg(md5((i * j)::text), E'\\u00e9\"\\n,') FROM generate_series(1, 150000) AS j) AS text"
            " FROM generate_series(1, 3) AS i"
        )
        file, parts = made.make("large")
        assert made.inspect(file).parts == found(parts)
        assert parts[0].size > 7_000_000

    def test_numbers_and_documents_that_few_can_read(self, workshop: Callable[..., Workshop]) -> None:
        """What Python's decoder refuses: thousands of digits, and hundreds of levels."""
        made = workshop(
            "CREATE TABLE public.far (user_id text, id int, number numeric, document jsonb, raw json);"
            "INSERT INTO far VALUES ('ada', 1, repeat('9', 6000)::numeric,"
            " jsonb_build_array(repeat('8', 6000)::numeric),"
            " (repeat('[', 2000) || '\"],[\"' || repeat(']', 2000))::json),"
            " ('ada', 2, 1, (repeat('{\"a\": ', 1500) || '1' || repeat('}', 1500))::jsonb, '[[], {}, \":\"]')"
        )
        file, parts = made.make("far")
        assert made.inspect(file).parts == found(parts)
        assert parts[0].rows == 2

    @pytest.mark.parametrize("name", ["r", "data", "CamelCase", 'quo"te', "a,b", "=1", "漢字", " ", "c0"])
    def test_strange_names_of_columns(self, workshop: Callable[..., Workshop], name: str) -> None:
        quoted = name.replace('"', '""')
        made = workshop(f"CREATE TABLE public.named AS SELECT 'ada'::text AS user_id, 1 AS \"{quoted}\", NULL AS x")
        file, parts = made.make("named")
        assert made.inspect(file).parts == found(parts)
        assert parts[0].rows == 1

    def test_the_same_rows_give_the_same_bytes(self, workshop: Callable[..., Workshop]) -> None:
        made = workshop()
        assert made.make("people", "nothing")[0] == made.make("people", "nothing")[0]


class TestLeavingInTheMiddle:
    """Nothing half-made stays in the store, and the source can be read on."""

    class Torn(Exception):
        """What a test throws."""

    def tear(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)
        raise self.Torn

    def test_an_error_while_framing_leaves_no_file(self, workshop: Callable[..., Workshop]) -> None:
        made = workshop()
        parts = made.collect("people", "one")
        with pytest.raises(self.Torn):
            made.vault.store("export.age", self.tear(made.frame(parts)))
        assert made.vault.keys() == []

    def test_a_reader_that_leaves_ends_the_stream(self, workshop: Callable[..., Workshop]) -> None:
        made = workshop()
        parts = made.collect("people", "one")
        stream = made.frame(parts)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert made.vault.keys() == []

    def test_a_store_that_fails_leaves_the_snapshot_usable(self, workshop: Callable[..., Workshop]) -> None:
        made = workshop(
            SMALL + "CREATE TABLE public.many AS SELECT 'ada'::text AS user_id, i AS id, md5(i::text) AS x"
            " FROM generate_series(1, 300000) AS i"
        )

        def full(key: str, chunks: Iterator[bytes]) -> None:
            made.work.store(key, self.tear(iter(chunks)))

        def refused(key: str, chunks: Iterator[bytes]) -> None:
            next(iter(chunks))
            raise StorageUnavailable("The store is full.")

        with pytest.raises(self.Torn):
            made.collect("many", store=full)
        with pytest.raises(StorageUnavailable):
            made.collect("many", store=refused)
        assert made.work.keys() == []
        assert made.make("people")[1][0].rows == 20

    def test_a_source_that_goes_away_leaves_no_part(
        self, workshop: Callable[..., Workshop], admin: psycopg.Connection[Any]
    ) -> None:
        made = workshop(
            "CREATE TABLE public.many AS SELECT 'ada'::text AS user_id, i AS id, md5(i::text) AS x"
            " FROM generate_series(1, 300000) AS i"
        )

        def cut(key: str, chunks: Iterator[bytes]) -> None:
            def watched() -> Iterator[bytes]:
                for number, chunk in enumerate(chunks):
                    if number == 0:
                        admin.execute("SELECT pg_terminate_backend(%s)", [made.snapshot.connection.info.backend_pid])
                    yield chunk

            made.work.store(key, watched())

        with pytest.raises(Exception, match="source") as caught:
            made.collect("many", store=cut)
        assert type(caught.value).__module__ == "export_pipeline.errors"
        assert made.work.keys() == []


class TestDamage:
    """A damaged file is refused with FileNotVerified, or what is found differs, or nothing that it says has changed."""

    @pytest.fixture
    def whole(self, workshop: Callable[..., Workshop]) -> tuple[Workshop, bytes, Inspection]:
        made = workshop()
        file, _ = made.make("people", "nothing", "one")
        return made, file, made.inspect(file)

    def test_every_truncation_is_refused(self, whole: tuple[Workshop, bytes, Inspection]) -> None:
        made, file, _ = whole
        for size in {*range(0, len(file), max(len(file) // 300, 1)), *range(len(file) - 60, len(file))}:
            # White space behind the end of JSON is nothing.
            if file[size:].strip():
                with pytest.raises(FileNotVerified):
                    made.inspect(file[:size])

    def test_whatever_follows_is_refused(self, whole: tuple[Workshop, bytes, Inspection]) -> None:
        made, file, _ = whole
        for more in (b"x", b"\0", file):
            with pytest.raises(FileNotVerified):
                made.inspect(file + more)

    def test_a_turned_bit_is_refused_or_seen(self, whole: tuple[Workshop, bytes, Inspection]) -> None:
        made, file, right = whole
        unseen = 0
        for _ in range(1500):
            at = FUZZ.randrange(len(file))
            damaged = file[:at] + bytes([file[at] ^ 1 << FUZZ.randrange(8)]) + file[at + 1 :]
            with suppress(FileNotVerified):
                unseen += made.inspect(damaged) == right
        # The person's id in the first line of JSON, and bits that fill up the last byte of a compressed stream.
        assert unseen < 1500 * 0.05

    def test_noise_is_refused(self, whole: tuple[Workshop, bytes, Inspection]) -> None:
        made, file, _ = whole
        for _ in range(300):
            noise = FUZZ.randbytes(FUZZ.randrange(1, 2000))
            begun = file[: FUZZ.randrange(min(len(file), 2000))]
            for damaged in (noise, begun + noise, noise + file):
                with pytest.raises(FileNotVerified):
                    made.inspect(damaged)

    def test_pieces_put_together_anew_never_pass(self, whole: tuple[Workshop, bytes, Inspection]) -> None:
        made, file, right = whole
        for _ in range(300):
            one, other = sorted(FUZZ.sample(range(len(file) + 1), 2))
            for damaged in (file[:one] + file[other:], file[:other] + file[one:], file[one:other]):
                with suppress(FileNotVerified):
                    assert damaged == file or made.inspect(damaged) != right


def test_every_format_has_a_renderer() -> None:
    assert set(RENDERERS) == set(ExportFormat)
    assert all(renderer.format is form for form, renderer in RENDERERS.items())
