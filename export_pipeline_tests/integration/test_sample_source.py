"""The demo's source database: the same on every server, as odd as promised, and never in anybody's way."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from export_pipeline import sample_source
from export_pipeline.errors import ConfigurationError, SourceUnavailable
from export_pipeline.sample_source import (
    EMPTY_USER,
    HEAVY_USER,
    HOSTILE_USER,
    MARK,
    TABLES,
    USERS,
    SampleCounts,
    install,
    remove,
)

KEYS = {
    "users": "user_id",
    "user_sessions": "session_id",
    "user_clicks": "click_id",
    "user_workflow_usage": "usage_id",
    "user_errors": "error_id",
    "user_feedback": "feedback_id",
}
ACTIVITY = [table for table in TABLES if table != "users"]
COUNTS = SampleCounts(
    users=300,
    user_sessions=10_164,
    user_clicks=280_322,
    user_workflow_usage=12_735,
    user_errors=4_835,
    user_feedback=1_285,
)
#: SHA-256 over every row of every table. Changes only together with the version in MARK.
FINGERPRINT = "b7713bdd8b4cc736c86713e6d424d6112bff4b31616d67c0ea8b4cad34037780"

#: A session that disagrees with ours in each setting that could colour a value.
ODD_SETTINGS = (
    "-c timezone=Asia/Kolkata -c datestyle=German -c intervalstyle=postgres_verbose -c search_path= "
    "-c standard_conforming_strings=off -c backslash_quote=off -c array_nulls=off -c bytea_output=escape"
)


@contextmanager
def database(pg_url: str, *, encoding: str = "UTF8") -> Iterator[str]:
    """A database of the test's own: others may use schema public of `pg_url` meanwhile."""
    name = f"sample_{uuid.uuid4().hex}"
    create = "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE_PROVIDER libc LOCALE 'C'"
    with psycopg.connect(pg_url, autocommit=True) as server:
        server.execute(sql.SQL(create).format(sql.Identifier(name), sql.Literal(encoding)))
        try:
            yield make_conninfo(pg_url, dbname=name)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def pg_url(server_url: str) -> str:
    """These tests make databases of their own, once for the module."""
    return server_url


@pytest.fixture(scope="module")
def installed_url(pg_url: str) -> Iterator[str]:
    with database(pg_url) as url:
        with psycopg.connect(url, options=ODD_SETTINGS) as connection:
            install(connection)
        yield url


@pytest.fixture
def sample(installed_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(installed_url, options="-c default_transaction_read_only=on") as connection:
        yield connection


@pytest.fixture
def empty_url(pg_url: str) -> Iterator[str]:
    with database(pg_url) as url:
        yield url


@pytest.fixture
def empty(empty_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        yield connection


def one(connection: psycopg.Connection, query: str, *parameters: object):
    [(value,)] = connection.execute(query, parameters or None).fetchall()
    return value


def fingerprint(connection: psycopg.Connection) -> str:
    digest = hashlib.sha256()
    connection.execute("SET timezone = 'UTC'; SET intervalstyle = 'iso_8601'; SET datestyle = 'ISO, YMD'")
    for table, key in KEYS.items():
        digest.update(table.encode())
        copy = f'COPY (SELECT * FROM public.{table} ORDER BY {key}::text COLLATE "C") TO STDOUT'
        with connection.cursor() as cursor, cursor.copy(copy) as rows:
            for chunk in rows:
                digest.update(chunk)
    return digest.hexdigest()


def objects(connection: psycopg.Connection) -> list[tuple[str, str]]:
    """Everything in the database that is neither the server's own nor a table of somebody else's session."""
    return connection.execute(
        """
        SELECT 'relation', nspname || '.' || relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
        UNION ALL
        SELECT 'type', nspname || '.' || typname FROM pg_type JOIN pg_namespace n ON n.oid = typnamespace
        WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
        UNION ALL
        SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1, 2
        """
    ).fetchall()


# What is in it


def test_counts(sample):
    assert install(sample) == COUNTS
    assert COUNTS.users == USERS


def test_same_bytes_everywhere_whatever_the_session_is_set_to(sample):
    assert fingerprint(sample) == FINGERPRINT


def test_columns_of_the_default_configurations_exist(sample):
    for columns, table in (
        ("user_id, email, created_at", "users"),
        ("session_id, user_id, start_time, end_time", "user_sessions"),
        ("user_id, element_id, timestamp", "user_clicks"),
        ("user_id, workflow_id, timestamp", "user_workflow_usage"),
        ("user_id, error_message, timestamp", "user_errors"),
        ("feedback_id, user_id, rating, comment, tags, details, created_at", "user_feedback"),
    ):
        sample.execute(f"SELECT {columns} FROM {table} LIMIT 0")


def test_no_time_is_without_a_zone(sample):
    query = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public' AND data_type ~ %s"
    assert one(sample, query, "without time zone") == 0
    assert one(sample, query, "with time zone") == 7


def test_people(sample):
    rows = sample.execute("SELECT user_id, email FROM users ORDER BY user_id").fetchall()
    assert rows == [(f"user-{n:04}", f"user-{n:04}@example.org") for n in range(1, USERS + 1)]


@pytest.mark.parametrize("table", ACTIVITY)
def test_rows_of_each_person(sample, table):
    query = f"SELECT user_id, count(t.user_id) FROM users LEFT JOIN {table} AS t USING (user_id) GROUP BY 1"
    rows = dict(sample.execute(query).fetchall())
    heavy, nothing, hostile = rows.pop(HEAVY_USER), rows.pop(EMPTY_USER), rows.pop(HOSTILE_USER)
    assert heavy == 250_000 if table == "user_clicks" else heavy >= 40
    assert nothing == 0
    assert hostile >= 50
    assert min(rows.values()) == 0
    assert max(rows.values()) <= 200
    assert len(set(rows.values())) >= 9


def test_heavy_rows_lie_among_everybodys(sample):
    query = "SELECT count(DISTINCT user_id) FROM user_clicks WHERE click_id BETWEEN 100000 AND 110000"
    assert one(sample, query) > 100


ODDITIES = {
    "LF": r"E'\n'",
    "CRLF": r"E'\r\n'",
    "CR": r"E'\rl'",
    "tab": r"E'\t'",
    "comma": "','",
    "semicolon": "';'",
    "double quote": "'\"'",
    "two double quotes": "'\"\"'",
    "single quote": "''''",
    "backslash": r"E'\\'",
    "injected SQL": "'DROP TABLE'",
    "HTML": "'<script>'",
    "Typst": "'#eval('",
    "Han": "'太'",
    "Hangul": "'한'",
    "Arabic": "'مرحبا'",
    "Hebrew": "'שלום'",
    "Devanagari": "'नमस्ते'",
    "emoji": r"E'\U0001F600'",
    "joined emoji": r"E'\U0001F468\u200D'",
    "combining mark": r"E'e\u0301'",
    "override": r"E'\u202E'",
    "line separator": r"E'\u2028'",
    "byte order mark": r"E'\uFEFF'",
    "control": r"E'\x01'",
    "escape": r"E'\x1B['",
    "outside of the basic plane": r"E'\U00020000'",
}
HOSTILE_COLUMNS = [
    ("user_sessions", "user_agent"),
    ("user_clicks", "element_id"),
    ("user_clicks", "page"),
    ("user_workflow_usage", "workflow_id"),
    ("user_workflow_usage", "parameters ->> 'text'"),
    ("user_errors", "error_message"),
    ("user_errors", "stack_trace"),
    ("user_errors", "context ->> 'text'"),
    ("user_feedback", "comment"),
    ("user_feedback", "tags[1]"),
    ("user_feedback", "details -> 'nested' -> '文字' ->> 0"),
]
WHOLE_VALUES = ["''", "' '", "'NULL'", "'null'", "'NaN'", "'007'", "'1e5'", r"E'\\N'", r"E'\\.'", "'\"'"]
BEGINNINGS = ["=", "+", "-", "@", "\t=", "\r=", "  s", "../", "\n\n"]


@pytest.mark.parametrize(("table", "column"), HOSTILE_COLUMNS)
def test_hostile_text_everywhere(sample, table, column):
    of_user = f"SELECT bool_or({{}}) FROM {table} WHERE user_id = '{HOSTILE_USER}'"

    def absent(tests: dict[str, str]) -> list[str]:
        return [name for name, test in tests.items() if one(sample, of_user.format(test)) is not True]

    assert absent({name: f"strpos({column}, {part}) > 0" for name, part in ODDITIES.items()}) == []
    assert absent({value: f"{column} = {value}" for value in WHOLE_VALUES}) == []
    for beginning in BEGINNINGS:
        assert one(sample, of_user.format(f"starts_with({column}, %s)"), beginning), beginning
    assert one(sample, of_user.format(f"{column} LIKE '%  '")), "spaces at the end"
    assert one(sample, of_user.format(f"{column} IS NULL")), "NULL"


def test_names_in_every_script(sample):
    names = " ".join(name for (name,) in sample.execute("SELECT display_name FROM users").fetchall())
    for part in (
        "山田",
        "김",
        "محمد",
        "דוד",
        "अनिता",
        "தமிழ்",
        "Дмитрий",
        "\u0308",
        "\U0001f31e",
        '"',
        ",",
        "\\",
        "\r\n",
    ):
        assert part in names, part


def test_long_text_once(sample):
    query = "SELECT user_id, octet_length(error_message) FROM user_errors WHERE length(error_message) > 1000"
    assert sample.execute(query).fetchall() == [(HOSTILE_USER, 20_480)]


def test_infinity_once(sample):
    query = "SELECT user_id, start_time::text, end_time::text FROM user_sessions WHERE NOT isfinite(start_time)"
    assert sample.execute(query).fetchall() == [(HOSTILE_USER, "-infinity", "infinity")]
    assert one(sample, "SELECT count(*) FROM user_sessions WHERE NOT isfinite(end_time)") == 1


def test_sessions_without_an_end(sample):
    query = "SELECT count(*), count(DISTINCT user_id) FROM user_sessions WHERE end_time IS NULL"
    [(sessions, people)] = sample.execute(query).fetchall()
    assert sessions > 100
    assert people > 100


def test_session_ids_follow_the_time(sample):
    assert one(
        sample,
        "SELECT bool_and(session_id > before) FROM (SELECT session_id, lag(session_id) OVER by_time AS before"
        " FROM user_sessions WHERE isfinite(start_time) AND user_id = %s"
        " WINDOW by_time AS (ORDER BY start_time)) AS pair",
        HEAVY_USER,
    )


@pytest.mark.parametrize(
    ("table", "condition"),
    [
        ("users", "bio = ''"),
        ("users", "bio IS NULL"),
        ("users", "roles = '{}'"),
        ("users", "roles IS NULL"),
        ("users", "array_position(roles, NULL) > 0 AND '' = ANY(roles) AND 'with \"quotes\"' = ANY(roles)"),
        ("users", r"E'back\\slash' = ANY(roles) AND 'NULL' = ANY(roles)"),
        (
            "users",
            "preferences #>> '{thème,名前,5}' = U&'\\+01F600' AND preferences #> '{thème,名前,1}' = 'null'",
        ),
        ("users", "preferences #>> '{deep,0,0,0,ключ,مفتاح,3}' = '12345678901234567890.123456789'"),
        ("users", "preferences #>> '{layout,ratio}' = '0.3'"),
        ("users", "balance = -99999999999999999999.000000001"),
        ("users", "score = 'NaN'"),
        ("users", r"avatar = '\x00ff5c22270a0d2c'"),
        ("user_sessions", "family(ip_address) = 6"),
        ("user_workflow_usage", "duration > interval '2 days'"),
        ("user_errors", r"context::text LIKE E'{\"text\":\n\t%\r\n%again%again%'"),
        ("user_feedback", "array_ndims(tags) = 2 AND tags[2][1] IS NULL"),
        ("user_feedback", "array_ndims(tags) = 1 AND tags[1] IS NULL AND 'comma, semicolon;' = ANY(tags)"),
        ("user_feedback", "tags = '{}'"),
        ("user_feedback", "rating IS NULL"),
        ("user_feedback", "details IS NULL"),
    ],
)
def test_oddity(sample, table, condition):
    assert one(sample, f"SELECT count(*) FROM {table} WHERE {condition}") > 0


def test_new_rows_get_new_numbers(installed_url):
    with psycopg.connect(installed_url) as connection:
        for table, key in KEYS.items():
            if table in ("users", "user_sessions"):
                continue
            last = one(connection, f"SELECT max({key}) FROM {table}")
            time_column = "created_at" if table == "user_feedback" else '"timestamp"'
            insert = f"INSERT INTO {table} (user_id, {time_column}) VALUES (%s, now()) RETURNING {key}"
            assert one(connection, insert, EMPTY_USER) == last + 1
        connection.rollback()


# How it is read


def plan(connection: psycopg.Connection, table: str, user: str) -> str:
    query = f"EXPLAIN (COSTS OFF) SELECT * FROM {table} WHERE user_id = '{user}' ORDER BY {KEYS[table]}"
    return "\n".join(line for (line,) in connection.execute(query).fetchall())


@pytest.mark.parametrize("table", ACTIVITY)
@pytest.mark.parametrize("user", [HEAVY_USER, EMPTY_USER, HOSTILE_USER, "user-0150"])
def test_index_gives_one_persons_rows_in_order(installed_url, table, user):
    # A few rows are cheap to sort, and most of a table is cheap to filter along its primary key. So the
    # question is put without these ways out: can the index on (user_id, key) alone do it?
    with psycopg.connect(installed_url) as connection:
        connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey; SET LOCAL enable_sort = off")
        lines = plan(connection, table, user)
        connection.rollback()
    assert "Sort" not in lines
    assert f"Index Cond: (user_id = '{user}'::text)" in lines


def test_heavy_clicks_are_not_sorted_under_default_settings(sample):
    assert "Sort" not in plan(sample, "user_clicks", HEAVY_USER)


def test_statistics_are_fresh(sample):
    query = "SELECT count(DISTINCT tablename) FROM pg_stats WHERE schemaname = 'public' AND tablename = ANY(%s)"
    assert one(sample, query, list(TABLES)) == len(TABLES)


# Coming and going


def test_second_install_changes_nothing(empty):
    first = install(empty)
    empty.execute(f"UPDATE users SET bio = 'mine' WHERE user_id = '{EMPTY_USER}'")
    empty.execute(f"DELETE FROM user_feedback WHERE user_id = '{HEAVY_USER}'")
    before = fingerprint(empty)
    second = install(empty)
    assert fingerprint(empty) == before
    assert (first.user_feedback - second.user_feedback, second.user_clicks) == (40, first.user_clicks)


def test_remove_leaves_nothing_and_install_comes_back(empty):
    before = objects(empty)
    install(empty)
    assert objects(empty) != before
    remove(empty)
    assert objects(empty) == before
    remove(empty)
    assert install(empty) == COUNTS
    assert fingerprint(empty) == FINGERPRINT


FOREIGN = [
    ("CREATE TABLE public.user_errors (id integer)", "user_errors"),
    ("CREATE TABLE public.users (id integer); COMMENT ON TABLE public.users IS 'people'", "users"),
    ("CREATE VIEW public.user_clicks AS SELECT 1 AS one", "user_clicks"),
    ("CREATE TYPE public.user_feedback AS ENUM ('good', 'bad')", "user_feedback"),
    ("CREATE SEQUENCE public.user_sessions", "user_sessions"),
]


@pytest.mark.parametrize(("statement", "name"), FOREIGN)
def test_refuses_and_keeps_what_is_not_ours(empty, statement, name):
    empty.execute(statement)
    before = objects(empty)
    with pytest.raises(ConfigurationError, match=rf"already has {name}, which"):
        install(empty)
    remove(empty)
    assert objects(empty) == before


def test_same_names_in_another_schema_are_in_nobodys_way(empty):
    empty.execute("CREATE SCHEMA app; CREATE TABLE app.users (id integer); SET search_path = app, public")
    before = objects(empty)
    assert install(empty) == COUNTS
    remove(empty)
    assert objects(empty) == before


def test_refuses_what_is_incomplete(empty):
    empty.execute(f"CREATE TABLE public.users (id integer); COMMENT ON TABLE public.users IS '{MARK}'")
    with pytest.raises(ConfigurationError, match=r"incomplete or of another version.*Remove it"):
        install(empty)


def test_remove_takes_other_versions_along(empty):
    older = sample_source._MARK_OF_ANY_VERSION + "0"
    before = objects(empty)
    empty.execute(f"CREATE TABLE public.users (id integer); COMMENT ON TABLE public.users IS '{older}'")
    with pytest.raises(ConfigurationError, match="of another version"):
        install(empty)
    remove(empty)
    assert objects(empty) == before


def test_remove_spares_what_depends_on_it(empty):
    install(empty)
    empty.execute("CREATE VIEW public.mine AS SELECT user_id FROM public.users")
    before = objects(empty)
    with pytest.raises(ConfigurationError, match="depends on its tables"):
        remove(empty)
    assert objects(empty) == before


def test_callers_transaction_decides(empty_url):
    with psycopg.connect(empty_url) as connection:
        before = objects(connection)
        install(connection)
        connection.rollback()
        assert objects(connection) == before


def test_row_factory_of_the_caller_does_not_matter(installed_url):
    with psycopg.connect(installed_url, row_factory=dict_row) as connection:
        assert install(connection) == COUNTS


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_at_the_same_time_take_turns(empty, empty_url):
    counts: list[SampleCounts] = []

    def second() -> None:
        with psycopg.connect(empty_url) as connection:
            counts.append(install(connection))

    thread = threading.Thread(target=second)
    with empty.transaction():
        counts.append(install(empty))
        thread.start()
        with psycopg.connect(empty_url, autocommit=True) as watcher:
            waiting = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            wait_for(lambda: one(watcher, waiting))
    thread.join(60)
    assert counts == [COUNTS, COUNTS]


# What can go wrong


def test_account_without_rights(empty):
    role = sql.Identifier(f"sample_{uuid.uuid4().hex}")
    empty.execute(sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE {}").format(role))
    before = objects(empty)
    try:
        empty.execute(sql.SQL("SET ROLE {}").format(role))
        with pytest.raises(ConfigurationError, match=r"may not create.*GRANT it CREATE"):
            install(empty)
    finally:
        empty.execute("RESET ROLE")
        empty.execute(sql.SQL("DROP ROLE {}").format(role))
    assert objects(empty) == before


def test_read_only(empty):
    empty.execute("SET default_transaction_read_only = on")
    with pytest.raises(ConfigurationError, match="may not create"):
        install(empty)


def test_no_schema_public(empty):
    empty.execute("DROP SCHEMA public")
    with pytest.raises(ConfigurationError, match="no schema public"):
        install(empty)


def test_database_of_another_encoding(pg_url):
    with (
        database(pg_url, encoding="SQL_ASCII") as url,
        psycopg.connect(url) as connection,
        pytest.raises(ConfigurationError, match="UTF8"),
    ):
        install(connection)


def test_connection_of_another_encoding(empty_url):
    with (
        psycopg.connect(empty_url, client_encoding="LATIN1") as connection,
        pytest.raises(ConfigurationError, match="UTF8"),
    ):
        install(connection)


def test_out_of_time_leaves_nothing(empty):
    before = objects(empty)
    empty.execute("SET statement_timeout = '20ms'")
    with pytest.raises(SourceUnavailable):
        install(empty)
    empty.execute("RESET statement_timeout")
    assert objects(empty) == before
