"""Hostile names, configurations and ids: the right rows come out, or an error of ours; never anything else.

Whatever is tried, the table `users` stands beside it and must be there, unchanged, at the end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from export_pipeline.errors import ExportPipelineError, InvalidRequest
from export_pipeline.models import DataTypeConfig
from export_pipeline_tests.exporting import execute

if TYPE_CHECKING:
    from export_pipeline_tests.integration.conftest import Exporter

SEED = 20261124
PERSON = "person'; DROP TABLE users;--"

NAMES = [
    'we"ird', "a;b", "select", "Select", "Ünïcode", "日本語の表", "x'); DROP TABLE users;--", "two words", "a.b", "%s",
    "%", "%(name)s", "{0}", "{", "back\\slash", "\\", "new\nline", "carriage\rreturn", "tab\tstop", "\x01\x02\x7f",
    " ", "'", '"', '""', "$$", "$1", "/* no comment", "--", "user", "order", "group by", "NULL", "null", "r", "r_",
    "_", "1", "0x", "*", "ctid2", "COPY users TO STDOUT", "x" * 63, "é" * 31, "ﷺ" * 21, "\u202egpj", "a\u0301",
    "\N{PILE OF POO}", ",", "a,b", "=1+1", "@x",
]  # fmt: skip
FRAGMENTS = [
    '"', "'", ";", "--", "/*", "*/", "\\", "%s", "%", "{", "}", "{0}", "$$", "$1", "$x$", "(", ")", ",", ".", " ",
    "\n", "\t", "users", "public", "pg_catalog", "DROP TABLE users", "SELECT 1", "OR 1=1", "NULL", "=", "*", "E'\\'",
    "U&'\\0061'", "é", "日", "\u202e", "\u0301", "\N{PILE OF POO}", "a", "B", "0", "9", "_", ":", "::int", "[", "]",
    "|", "`", "#", "@", "!", "?",
]  # fmt: skip


@pytest.fixture(autouse=True)
def bystander(admin: psycopg.Connection) -> Iterator[None]:
    """What an injected statement would destroy or change."""
    admin.execute("CREATE TABLE public.users (user_id text PRIMARY KEY, secret text)")
    admin.execute("INSERT INTO public.users SELECT 'u' || n, 'secret ' || n FROM generate_series(1, 50) AS n")
    before = state(admin)
    yield
    assert state(admin) == before


def state(admin: psycopg.Connection) -> object:
    return admin.execute(
        "SELECT count(*), md5(string_agg(u::text, '' ORDER BY user_id)) FROM public.users AS u"
    ).fetchone()


def random_text(dice: random.Random, longest: int = 60) -> str:
    text = "".join(dice.choice(FRAGMENTS) for _ in range(dice.randint(1, 8)))
    while len(text.encode()) > longest:
        text = text[:-1]
    return text


def make_table(admin: psycopg.Connection, name: str) -> list[tuple[str, ...]]:
    """A table that is called `name`, with columns of the same spirit. Returns what PERSON has in it."""
    columns = ("id", name, tail(name, "u"), tail(name, "v"))
    table, number, first, user, last = map(sql.Identifier, (name, *columns))
    admin.execute(
        sql.SQL("CREATE TABLE public.{} ({} int PRIMARY KEY, {} text, {} text, {} text)").format(
            table, number, first, user, last
        )
    )
    mine = [("1", name, PERSON, "'; DROP TABLE users;--"), ("2", "", PERSON, 'quo"te\nline\\ , %s {0}')]
    for row in (*mine, ("3", "not mine", "somebody else", "")):
        admin.execute(sql.SQL("INSERT INTO public.{} VALUES ({})").format(table, sql.SQL(", ").join(row)))
    return [columns, *mine]


def tail(name: str, letter: str) -> str:
    """Another column's name, at most 63 bytes long."""
    while len(name.encode()) > 62:
        name = name[:-1]
    return name + letter


def config_of(data_type: str, name: str, *, quoted: bool = False) -> DataTypeConfig:
    table = sql.Identifier("public", name).as_string() if quoted else name
    return DataTypeConfig(data_type=data_type, table_name=table, user_id_column=tail(name, "u"))


def as_json(rows: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    header, *values = rows
    return [{**dict(zip(header, row, strict=True)), "id": int(row[0])} for row in values]


def as_csv(rows: list[tuple[str, ...]]) -> list[list[str]]:
    """A text that a spreadsheet might run has a quote in front; a name in the header has not."""
    header, *values = rows
    dangerous = ("'", "=", "+", "-", "@", "\t", "\r", "\n")
    return [list(header), *([f"'{text}" if text.startswith(dangerous) else text for text in row] for row in values)]


# --- names


@pytest.mark.parametrize("quoted", [False, True], ids=["bare", "quoted"])
def test_hostile_names_export_every_value(
    quoted: bool, tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    expected = {f"t{number}": make_table(admin, name) for number, name in enumerate(NAMES)}
    configs = [config_of(f"t{number}", name, quoted=quoted) for number, name in enumerate(NAMES)]
    exporter = exporter_for(tables_url, configs)
    assert exporter.json(PERSON, list(expected)) == {name: as_json(rows) for name, rows in expected.items()}
    assert exporter.csv(PERSON, list(expected)) == {name: as_csv(rows) for name, rows in expected.items()}


def test_chosen_columns_and_order_may_be_hostile_too(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    expected = {}
    configs = []
    for number, name in enumerate(NAMES):
        header, first, second = make_table(admin, name)
        chosen = [3, 1, 2]
        expected[f"t{number}"] = as_csv([tuple(row[i] for i in chosen) for row in (header, second, first)])
        configs.append(
            replace(
                config_of(f"t{number}", name),
                columns_to_export=tuple(header[i] for i in chosen),
                order_by=(header[1], header[0]),
            )
        )
    assert exporter_for(tables_url, configs).csv(PERSON, list(expected)) == expected


def test_schemas_may_be_hostile_too(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    configs = []
    for number, name in enumerate(NAMES):
        here = sql.Identifier(name)
        admin.execute(sql.SQL("CREATE SCHEMA {}").format(here))
        admin.execute(sql.SQL("CREATE TABLE {0}.{0} (user_id text)").format(here))
        admin.execute(sql.SQL("INSERT INTO {0}.{0} VALUES ({1})").format(here, PERSON))
        configs += [
            DataTypeConfig(data_type=f"bare{number}", table_name=f"{name}.{name}"),
            DataTypeConfig(data_type=f"quoted{number}", table_name=sql.Identifier(name, name).as_string()),
        ]
    found = exporter_for(tables_url, configs).json(PERSON, [config.data_type for config in configs])
    assert found == {config.data_type: [{"user_id": PERSON}] for config in configs}


def test_altered_columns_may_be_hostile_too(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    configs = []
    for number, name in enumerate(NAMES):
        make_table(admin, name)
        altered: dict[str, Any] = {name: {"replace": name}, tail(name, "u"): {"mask": 0}, tail(name, "v"): "hash"}
        configs.append(replace(config_of(f"t{number}", name), anonymization={"always": altered}))
    exported = exporter_for(tables_url, configs).json(PERSON, [config.data_type for config in configs])
    for number, name in enumerate(NAMES):
        if name == "*":  # in a profile it means every other column
            continue
        first, second = exported[f"t{number}"]
        assert (first["id"], first[name], first[tail(name, "u")]) == (1, name, "*" * len(PERSON))
        assert second[name] == name
        hashes = {row[tail(name, "v")] for row in (first, second)}
        assert len(hashes) == 2
        assert not [text for text in hashes if "DROP" in text or "quo" in text]


# --- anything at all


def test_random_names_export_every_value(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    dice = random.Random(SEED)
    names = {random_text(dice) for _ in range(120)} - {"users", "ctid"}
    expected = {f"t{number}": make_table(admin, name) for number, name in enumerate(sorted(names))}
    configs = [config_of(f"t{n}", name, quoted=bool(n % 2)) for n, name in enumerate(sorted(names))]
    assert len(names) > 100
    exported = exporter_for(tables_url, configs).json(PERSON, list(expected))
    assert exported == {name: as_json(rows) for name, rows in expected.items()}


def test_random_configurations_are_exported_or_refused(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    """One run plans again and again, each time with another configuration that no table was made for."""
    dice = random.Random(SEED + 1)
    plain = DataTypeConfig(data_type="t", table_name="users")
    exporter = exporter_for(tables_url, [plain])
    request = exporter.services.intake.request(user_id="u7", data_types=["t"], actor=exporter.admin)
    run = exporter.services.run(request.request_id, "run", reopen=False)
    outcomes = {"planned": 0, "refused": 0}
    try:
        for _ in range(300):
            exporter.services.data_types.apply([spoilt(plain, dice)], exporter.admin)
            try:
                part = run.collect(run.plan(), "t")
            except ExportPipelineError as error:
                outcomes["refused"] += 1
                assert "psycopg" not in str(error)
            else:
                outcomes["planned"] += 1
                assert part.rows == 1
    finally:
        run.close()
    assert sum(outcomes.values()) == 300
    assert outcomes["planned"] > 0


def spoilt(config: DataTypeConfig, dice: random.Random) -> DataTypeConfig:
    """The configuration with one or more of its texts replaced, and sometimes only by what means the same."""
    values: dict[str, Any] = {
        "table_name": dice.choice(
            [random_text(dice), "users" + random_text(dice), random_text(dice) + "users", '"users"', "public.users"]
        ),
        "user_id_column": dice.choice([random_text(dice), "user_id" + random_text(dice), '"user_id"']),
        "columns_to_export": dice.choice([(random_text(dice),), ("user_id", random_text(dice)), ("secret",), ("*",)]),
        "order_by": dice.choice([(random_text(dice),), ("secret " + random_text(dice),), ("secret",)]),
        "title": random_text(dice),
    }
    chosen = dice.sample(sorted(values), dice.randint(1, 2))
    return replace(config, **{name: values[name] for name in chosen})


def test_random_user_ids_get_their_rows_and_no_others(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    dice = random.Random(SEED + 2)
    people = sorted({random_text(dice) for _ in range(40)} | {"'", "\\", "''", "' OR ''='", "%", "_", "u7\\"})
    admin.execute("CREATE TABLE public.t (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text, word text)")
    for person in people:
        admin.execute("INSERT INTO public.t (user_id, word) VALUES (%s, %s)", [person, f"of {person}"])
    exporter = exporter_for(tables_url, [DataTypeConfig(data_type="t", table_name="t")])
    refused = 0
    for number, person in enumerate(people):
        expected = [{"n": number + 1, "user_id": person, "word": f"of {person}"}]
        try:
            assert exporter.json(person, ["t"]) == {"t": expected}
        except InvalidRequest as error:
            assert not person.isprintable() or not person.strip(), error
            refused += 1
            # Whoever writes the row by SQL goes around the door, and is served as well.
            assert by_plain_insert(exporter, admin, f"r{number}", person) == {"t": expected}
    assert 0 < refused < len(people) / 2


def by_plain_insert(exporter: Exporter, admin: psycopg.Connection, request_id: str, person: str) -> object:
    admin.execute(
        "INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, data_types,"
        " format) VALUES (%s, %s, 'sql', 'custom', ARRAY['t'], 'json')",
        [request_id, person],
    )
    return json.loads(exporter.fetch(execute(exporter.services, request_id)))["data"]


# --- types of the user column

#: Type → ids as they stand in the table. Each row is found by exactly the text that PostgreSQL shows for it.
COLUMN_TYPES = {
    "smallint": ["7", "-7", "0", "1000"],
    "int": ["7", "1000", "10", "2147483647"],
    "bigint": ["7", "1000", "9223372036854775807"],
    "oid": ["7", "1000"],
    "numeric": ["7", "1000", "NaN", "12345678901234567890.5", "99999999999999999999"],
    "numeric(10,2)": ["7.00", "1000.00"],
    "double precision": ["7", "1000", "0.1", "Infinity"],
    "text": ["7", "abc", " 7", "ABC", "\uff10\uff17", "1e3", "today", "a'b", "a\\b"],
    "varchar(3)": ["7", "abc", " 7"],
    "char(4)": ["7", "abc"],
    "name": ["7", "abc"],
    '"char"': ["7"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "date": ["2024-01-31", "infinity", "0001-01-01 BC"],
    "timestamptz": ["2024-01-31 00:00:00+00"],
    "boolean": ["true"],
    "inet": ["192.0.2.7/32"],
    "bytea": ["\\x61"],
    'public."weird""type"': ["7", "DROP TABLE users"],
    "public.words": ["7", "abc"],
    "public.numbers": ["7", "1000"],
    "text[]": ["{7}"],
    "jsonb": ["7"],
}
#: Ids that somebody may type, each a way to mean more than it says in one type or another.
TYPED = [
    "7", "07", "+7", " 7", "7 ", "\uff17", "\uff10\uff17", "0x7", "7_0", "7.0", "7.00", "7.000", "1000", "1e3", "1E3",
    "1_000", "abc", "ABC", "abcd", "abc ", "99999999999999999999", "9223372036854775807", "2147483648", "-7", "--7",
    "NaN", "nan", "inf", "Infinity", "infinity", "today", "now", "epoch", "2024-01-31", "20240131", "31.1.2024",
    "Jan 31 2024", "2024-01-31 00:00:00+00", "2024-01-31 01:00:00+01", "0001-01-01 BC",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc999c0b4ef8bb6d6bb9bd380a11",
    "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", "true", "t", "yes", "on", "1", "0", "192.0.2.7", "192.0.2.7/32",
    "\\x61", "a", "{7}", "{ 7 }", "7'; --", "7 OR 1=1", "NULL", "DROP TABLE users", "a'b", "a\\b", "0.1", ".1",
    "12345678901234567890.5", "x" * 255, "é" * 255, "\N{PILE OF POO}",
]  # fmt: skip


@pytest.fixture
def typed(tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]) -> Exporter:
    """A table for each type of user column."""
    admin.execute("""
        CREATE TYPE public."weird""type" AS ENUM ('7', 'DROP TABLE users');
        CREATE DOMAIN public.words AS text CHECK (length(VALUE) < 5);
        CREATE DOMAIN public.numbers AS int CHECK (VALUE > 0);
    """)
    admin.execute("SET timezone = 'UTC'")
    for number, (column_type, ids) in enumerate(COLUMN_TYPES.items()):
        admin.execute(f"CREATE TABLE public.t{number} (n int PRIMARY KEY, user_id {column_type})".encode())
        for n, user_id in enumerate(ids):
            admin.execute(f"INSERT INTO public.t{number} VALUES (%s, %s::{column_type})".encode(), [n, user_id])
        shown = admin.execute(f"SELECT user_id::text FROM public.t{number} ORDER BY n".encode()).fetchall()
        assert [text for (text,) in shown] == ids, column_type
    return exporter_for(tables_url, [DataTypeConfig(data_type=f"t{n}", table_name=f"t{n}") for n in range(number + 1)])


def test_an_id_finds_its_rows_in_every_type_and_nobody_elses(typed: Exporter) -> None:
    found = {user_id: column_types_with_rows(typed, user_id) for user_id in TYPED}
    expected = {user_id: {name for name, ids in COLUMN_TYPES.items() if user_id in ids} for user_id in TYPED}
    for zeros in ("7.0", "7.00", "7.000"):
        # A number without a scale equals another with zeros at its end: here the type itself says who is meant.
        expected[zeros] |= {"numeric", "jsonb"}
    assert found == expected


def column_types_with_rows(exporter: Exporter, user_id: str) -> set[str]:
    """Plan for this id, and collect what could hold it. Each table has at most one row of anybody."""
    types = {f"t{number}": column_type for number, column_type in enumerate(COLUMN_TYPES)}
    request = exporter.services.intake.request(user_id=user_id, data_types=list(types), actor=exporter.admin)
    run = exporter.services.run(request.request_id, f"run-of-{request.request_id}", reopen=False)
    try:
        plan = run.plan()
        likely = [planned.data_type for planned in plan.types if planned.extract.matchable]
        return {types[data_type] for data_type in likely if run.collect(plan, data_type).rows}
    except InvalidRequest as error:
        assert "knows this user id" in error.message
        return set()
    finally:
        run.close()


def test_a_type_that_cannot_hold_the_id_gives_a_header_alone(typed: Exporter) -> None:
    types = [f"t{number}" for number in range(len(COLUMN_TYPES))]
    tables = typed.csv("abc", types)
    for data_type, ids in zip(types, COLUMN_TYPES.values(), strict=True):
        header, *rows = tables[data_type]
        assert (header, [row[0] for row in rows]) == (["n", "user_id"], [str(ids.index("abc"))] if "abc" in ids else [])


def test_a_uuid_may_be_written_in_capitals(typed: Exporter) -> None:
    number = list(COLUMN_TYPES).index("uuid")
    assert len(typed.json("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", [f"t{number}"])[f"t{number}"]) == 1


@pytest.mark.parametrize(
    "column_type", ["json", "point", "xid8", "bit(3)", "interval", "money", "tsvector", "int4range"]
)
def test_a_strange_user_column_ends_in_an_error_of_ours(
    column_type: str, tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    admin.execute(f"CREATE TABLE public.t (user_id {column_type})".encode())
    exporter = exporter_for(tables_url, [DataTypeConfig(data_type="t", table_name="t")])
    for user_id in ("7", "abc", "(1,2)", "'"):
        with pytest.raises(ExportPipelineError):
            exporter.json(user_id, ["t"])


# --- the index is used


@pytest.mark.parametrize(
    ("column_type", "value"),
    [
        ("int", "n"),
        ("bigint", "n"),
        ("numeric", "n"),
        ("text", "'u' || n"),
        ("varchar(20)", "'u' || n"),
        ("char(20)", "'u' || n"),
        ("uuid", "md5(n::text)::uuid"),
        ("date", "date '2000-01-01' + n"),
        ("public.person", "'u' || n"),
    ],
)
def test_the_index_on_the_user_column_is_used(
    column_type: str,
    value: str,
    tables_url: str,
    admin: psycopg.Connection,
    exporter_for: Callable[..., Exporter],
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    admin.execute("CREATE DOMAIN public.person AS text")
    admin.execute(f"CREATE TABLE public.t (n int PRIMARY KEY, user_id {column_type})".encode())
    admin.execute(
        f"INSERT INTO public.t SELECT n, ({value})::{column_type} FROM generate_series(1, 3000) AS n".encode()
    )
    admin.execute("CREATE INDEX by_user ON public.t (user_id)")
    admin.execute("VACUUM ANALYZE public.t")
    person = admin.execute("SELECT rtrim(user_id::text) FROM public.t WHERE n = 77").fetchone()
    assert person is not None
    # What building the index and choosing the person read is counted before, not between.
    admin.execute("SELECT pg_stat_force_next_flush()")
    scans_before, whole_before = scans(admin)
    exporter = exporter_for(tables_url, [DataTypeConfig(data_type="t", table_name="t")])
    assert [row["n"] for row in exporter.json(person[0], ["t"])["t"]] == [77]
    # Is the user known, how many rows, the rows: three statements, three times the index.
    wait_until(lambda: scans(admin)[0] >= scans_before + 3)
    assert scans(admin)[1] == whole_before


def scans(admin: psycopg.Connection) -> tuple[int, int]:
    """Scans of the index on the user column, and of the whole table."""
    row = admin.execute(
        "SELECT pg_stat_get_numscans('public.by_user'::regclass), pg_stat_get_numscans('public.t'::regclass)"
    ).fetchone()
    assert row is not None
    return row
