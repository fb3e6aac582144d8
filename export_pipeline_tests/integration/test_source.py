"""The connection to the source: read-only, exact, bounded, and silent about what the driver says."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from export_pipeline.collect.source import Source
from export_pipeline.errors import (
    ConfigurationError,
    ExportPipelineError,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from export_pipeline.models import DataTypeConfig

if TYPE_CHECKING:
    from export_pipeline_tests.integration.conftest import Exporter, Role

THINGS = DataTypeConfig(data_type="things", table_name="things")
CANARY = "canary-user-7f3a"

#: One row with every type whose text depends on the settings of a session.
TRICKY = f"""
CREATE TABLE public.things (
    id int PRIMARY KEY, user_id text, at timestamptz, naive timestamp, day date, span interval, raw bytea,
    real4 real, real8 double precision, word text);
INSERT INTO public.things VALUES (
    1, '{CANARY}', '2024-02-03 04:05:06.789012+00', '2024-02-03 04:05:06', '2024-02-03',
    '1 year 2 mons -3 days 04:05:06', '\\xdeadbeef00', 0.1::real, 0.1::float8 + 0.2::float8,
    E'back\\\\slash ''quote'' Ünï');
"""
#: What a role or a database may have for its default.
OTHER_DEFAULTS = {
    "DateStyle": "German, DMY",
    "TimeZone": "Asia/Tokyo",
    "IntervalStyle": "postgres_verbose",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "standard_conforming_strings": "off",
    "escape_string_warning": "on",
    "xmloption": "document",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "200ms",
    "lock_timeout": "200ms",
    "idle_in_transaction_session_timeout": "200ms",
    "transaction_timeout": "200ms",  # from PostgreSQL 17 on
    "client_encoding": "LATIN1",
    "quote_all_identifiers": "on",
    "synchronize_seqscans": "on",
}


@pytest.fixture
def reader(admin: psycopg.Connection, tables_url: str, new_role: Callable[..., Role]) -> Role:
    """A role that may read the table and nothing else."""
    admin.execute(TRICKY)
    role = new_role(tables_url)
    admin.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(sql.Identifier(role.name)))
    admin.execute(sql.SQL("GRANT SELECT ON public.things TO {}").format(sql.Identifier(role.name)))
    return role


# --- settings


def test_nothing_can_be_written_through_it(tables_url: str, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t (n int)")
    with Source(tables_url).snapshot() as snapshot:
        for statement in ("INSERT INTO public.t VALUES (1)", "CREATE TABLE public.u ()", "DROP TABLE public.t"):
            with pytest.raises(SourceRefused, match="SQLSTATE 25006"), snapshot.attempt() as connection:
                connection.execute(statement)
        snapshot.connection.execute("ROLLBACK")
        # Not even after the snapshot: the session itself is read-only.
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            snapshot.connection.execute("INSERT INTO public.t VALUES (1)")
    assert admin.execute("SELECT count(*) FROM public.t").fetchone() == (0,)


@pytest.mark.parametrize("scope", ["role", "database"])
def test_settings_hold_whatever_the_defaults_are(
    scope: str, reader: Role, tables_url: str, admin: psycopg.Connection
) -> None:
    target = sql.SQL("ROLE {}").format(sql.Identifier(reader.name))
    if scope == "database":
        target = sql.SQL("DATABASE {}").format(sql.Identifier(urlsplit(tables_url).path[1:]))
    for name, value in OTHER_DEFAULTS.items():
        admin.execute(sql.SQL("ALTER {} SET {} = {}").format(target, sql.SQL(name), value))
    try:
        source = Source(reader.url, statement_timeout_s=30, lock_timeout_s=7)
        with source.snapshot() as snapshot, snapshot.attempt() as connection:
            found = dict(
                connection.execute(
                    "SELECT lower(name), setting FROM pg_settings WHERE lower(name) = ANY(%s)",
                    [[name.lower() for name in [*OTHER_DEFAULTS, "transaction_isolation", "transaction_read_only"]]],
                ).fetchall()
            )
    finally:
        admin.execute(sql.SQL("ALTER {} RESET ALL").format(target))
    assert found.items() >= {
        "datestyle": "ISO, YMD",
        "timezone": "UTC",
        "intervalstyle": "iso_8601",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "xmloption": "content",
        "transaction_isolation": "repeatable read",
        "transaction_read_only": "on",
        "default_transaction_read_only": "on",
        "statement_timeout": "30000",
        "lock_timeout": "7000",
        "idle_in_transaction_session_timeout": "0",
        "transaction_timeout": "0",
        "client_encoding": "UTF8",
        "synchronize_seqscans": "off",
    }.items()  # fmt: skip


def test_values_are_the_same_whatever_the_defaults_are(
    reader: Role, tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    exporter = exporter_for(tables_url, [THINGS], reader.url)
    plain = exporter.json(CANARY, ["things"]), exporter.csv(CANARY, ["things"])
    for name, value in OTHER_DEFAULTS.items():
        admin.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(sql.Identifier(reader.name), sql.SQL(name), value))
    assert (exporter.json(CANARY, ["things"]), exporter.csv(CANARY, ["things"])) == plain
    assert plain[0]["things"] == [
        {
            "id": 1,
            "user_id": CANARY,
            "at": "2024-02-03T04:05:06.789012+00:00",
            "naive": "2024-02-03T04:05:06",
            "day": "2024-02-03",
            "span": "P1Y2M-3DT4H5M6S",
            "raw": "\\xdeadbeef00",
            "real4": 0.1,
            "real8": 0.30000000000000004,
            "word": "back\\slash 'quote' Ünï",
        }
    ]
    assert plain[1]["things"][1] == [
        "1", CANARY, "2024-02-03 04:05:06.789012+00", "2024-02-03 04:05:06", "2024-02-03", "P1Y2M-3DT4H5M6S",
        "\\xdeadbeef00", "0.1", "0.30000000000000004", "back\\slash 'quote' Ünï",
    ]  # fmt: skip


def test_a_role_that_may_only_select_is_enough(
    reader: Role, tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    before = admin.execute("SELECT t.*::text FROM public.things AS t").fetchall()
    assert len(exporter_for(tables_url, [THINGS], reader.url).json(CANARY, ["things"])["things"]) == 1
    assert admin.execute("SELECT t.*::text FROM public.things AS t").fetchall() == before


# --- one moment


def test_the_snapshot_holds_while_others_write(tables_url: str, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t AS SELECT generate_series(1, 10) AS n")
    with Source(tables_url).snapshot() as snapshot:
        for change in ("INSERT INTO public.t VALUES (11)", "UPDATE public.t SET n = -n", "DELETE FROM public.t"):
            admin.execute(change)
            with snapshot.attempt() as connection:
                seen = connection.execute("SELECT count(*), sum(n) FROM public.t").fetchone()
            assert seen == (10, 55)
    with Source(tables_url).snapshot() as later, later.attempt() as connection:
        assert connection.execute("SELECT count(*) FROM public.t").fetchone() == (0,)


def test_the_snapshot_says_what_it_is(tables_url: str, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t (n int)")
    before = datetime.now(UTC)
    with Source(tables_url).snapshot() as first:
        admin.execute("INSERT INTO public.t VALUES (1)")
        with Source(tables_url).snapshot() as second:
            assert first.info.id != second.info.id
            assert first.info.lsn != second.info.lsn
            assert first.info.taken_at.utcoffset() == timedelta(0)
            assert before - timedelta(seconds=5) < first.info.taken_at < second.info.taken_at


@pytest.mark.parametrize(
    "statement",
    ["SELECT 1 / 0", "SELECT nonsense", "not SQL at all", "SELECT 'abc'::int", "SELECT * FROM no_such_table"],
)
def test_an_error_leaves_the_snapshot_usable(statement: str, tables_url: str, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t AS SELECT 1 AS n")
    with Source(tables_url).snapshot() as snapshot:
        with pytest.raises(SourceRefused), snapshot.attempt() as connection:
            connection.execute(statement)
        admin.execute("DELETE FROM public.t")
        with snapshot.attempt() as connection:
            assert connection.execute("SELECT count(*) FROM public.t").fetchone() == (1,)


def test_the_snapshot_ends_with_its_block(tables_url: str) -> None:
    with Source(tables_url).snapshot() as snapshot:
        connection = snapshot.connection
    assert connection.closed


# --- limits


def test_a_statement_that_takes_too_long_is_refused(tables_url: str) -> None:
    with Source(tables_url, statement_timeout_s=1).snapshot() as snapshot:
        took_too_long = pytest.raises(SourceRefused, match=r"took too long \(SQLSTATE 57014\)")
        with took_too_long as refused, snapshot.attempt() as connection:
            connection.execute("SELECT pg_sleep(60)")
        assert "EXPORT_PIPELINE_SOURCE_STATEMENT_TIMEOUT_S" in refused.value.hint
        assert not refused.value.retryable
        with snapshot.attempt() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_lock_that_stays_is_refused(tables_url: str, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t (n int)")
    with admin.transaction(), Source(tables_url, lock_timeout_s=1).snapshot() as snapshot:
        admin.execute("LOCK TABLE public.t")
        locked = pytest.raises(SourceRefused, match=r"locked for too long \(SQLSTATE 55P03\)")
        with locked as refused, snapshot.attempt() as connection:
            connection.execute("SELECT * FROM public.t")
    assert "EXPORT_PIPELINE_SOURCE_LOCK_TIMEOUT_S" in refused.value.hint


# --- no way in


def refusal(url: str) -> SourceError:
    with pytest.raises(SourceError) as refused, Source(url).snapshot():
        pytest.fail("there is a way in")
    # What is shown of it anywhere: the chain of causes too.
    shown = "".join(traceback.format_exception(refused.value))
    assert not [word for word in ("canary", "secret", "psycopg.Op", "FATAL", "127.0.0.1") if word in shown]
    return refused.value


def changed(url: str, **parts: str) -> str:
    return urlunsplit(urlsplit(url)._replace(**parts))


def test_a_host_that_does_not_answer_is_unavailable(closed_port: int) -> None:
    refused = refusal(f"postgresql://canary-user:canary-secret@127.0.0.1:{closed_port}/canary-db")
    assert isinstance(refused, SourceUnavailable)
    assert "EXPORT_PIPELINE_SOURCE_URL" in refused.hint


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://canary:canary-secret@no-such-host.invalid/canary",
        "postgresql:///canary?host=/nowhere/canary",
        "postgresql://canary:canary-secret@127.0.0.1:99999999/canary",
        "postgresql://canary:canary-secret@127.0.0.1/canary?canary-option=secret",
        "postgresql://canary:%zz-canary@[::1/canary",
    ],
)
def test_an_address_that_leads_nowhere_is_unavailable(url: str) -> None:
    assert isinstance(refusal(url), SourceUnavailable)


def test_a_wrong_password_is_unavailable(
    tables_url: str, new_role: Callable[..., Role], as_role: Callable[[str, str, str], str]
) -> None:
    role = new_role(tables_url)
    assert isinstance(refusal(as_role(tables_url, role.name, "canary-secret")), SourceUnavailable)
    assert isinstance(refusal(as_role(tables_url, role.name, "")), SourceUnavailable)


def test_an_unknown_role_is_unavailable(tables_url: str, as_role: Callable[[str, str, str], str]) -> None:
    assert isinstance(refusal(as_role(tables_url, "canary-role", "canary-secret")), SourceUnavailable)


def test_an_unknown_database_is_unavailable(tables_url: str) -> None:
    assert isinstance(refusal(changed(tables_url, path="/canary-database")), SourceUnavailable)


@pytest.mark.parametrize("words", ["NOLOGIN", "LOGIN CONNECTION LIMIT 0", "LOGIN VALID UNTIL '2001-01-01'"])
def test_a_role_that_may_not_come_in_is_unavailable(words: str, tables_url: str, new_role: Callable[..., Role]) -> None:
    assert isinstance(refusal(new_role(tables_url, words).url), SourceUnavailable)


def test_a_source_that_goes_away_is_unavailable_and_retryable(tables_url: str, admin: psycopg.Connection) -> None:
    with Source(tables_url).snapshot() as snapshot:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [snapshot.connection.info.backend_pid])
        with pytest.raises(SourceUnavailable) as refused, snapshot.attempt() as connection:
            connection.execute("SELECT 1")
    assert refused.value.retryable


# --- no permission


def without_select(reader: Role, admin: psycopg.Connection, revoke: str) -> None:
    admin.execute(sql.SQL(revoke).format(sql.Identifier(reader.name)))


@pytest.mark.parametrize("revoke", ["REVOKE SELECT ON public.things FROM {}", "REVOKE USAGE ON SCHEMA public FROM {}"])
@pytest.mark.parametrize("table_name", ["things", "public.things", "PUBLIC.Things", '"public"."things"'])
def test_a_table_that_may_not_be_read_is_named(
    revoke: str,
    table_name: str,
    reader: Role,
    tables_url: str,
    admin: psycopg.Connection,
    exporter_for: Callable[..., Exporter],
) -> None:
    without_select(reader, admin, revoke)
    config = DataTypeConfig(data_type="things", table_name=table_name)
    with pytest.raises((ConfigurationError, SourceRefused)) as refused:
        exporter_for(tables_url, [config], reader.url).json(CANARY, ["things"])
    assert "things" in str(refused.value).lower()
    assert CANARY not in str(refused.value)


def test_a_column_that_may_not_be_read_is_refused(
    reader: Role, tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    without_select(reader, admin, "REVOKE SELECT ON public.things FROM {}")
    without_select(reader, admin, "GRANT SELECT (id, user_id) ON public.things TO {}")
    exporter = exporter_for(tables_url, [THINGS], reader.url)
    with pytest.raises((ConfigurationError, SourceRefused), match=r"permission|read") as refused:
        exporter.json(CANARY, ["things"])
    assert "GRANT SELECT" in str(refused.value)
    allowed = DataTypeConfig(data_type="things", table_name="things", columns_to_export=("id", "user_id"))
    exporter = exporter_for(tables_url, [allowed], reader.url)
    assert exporter.json(CANARY, ["things"])["things"] == [{"id": 1, "user_id": CANARY}]


def test_a_table_of_no_concern_may_be_as_broken_as_it_likes(
    reader: Role, tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    """An unknown user is looked for in every configured table, and one that cannot be read is no reason to stop."""
    admin.execute("CREATE VIEW public.broken AS SELECT (1 / (id - 1))::text AS user_id FROM public.things")
    admin.execute(sql.SQL("GRANT SELECT ON public.broken TO {}").format(sql.Identifier(reader.name)))
    admin.execute(
        "CREATE TABLE public.a_empty (user_id text);"
        "CREATE TABLE public.c_closed (user_id text, secret text);"
        "CREATE TABLE public.d_strange (user_id point)"
    )
    for words in ("SELECT ON public.a_empty", "SELECT (secret) ON public.c_closed", "SELECT ON public.d_strange"):
        admin.execute(sql.SQL(f"GRANT {words} TO {{}}").format(sql.Identifier(reader.name)))
    configs = [
        DataTypeConfig(data_type=name, table_name=table)
        for name, table in [
            ("a_empty", "a_empty"), ("b_broken", "broken"), ("c_closed", "c_closed"), ("d_strange", "d_strange"),
            ("e_gone", "gone"), ("things", "things"),
        ]
    ]  # fmt: skip
    exporter = exporter_for(tables_url, configs, reader.url)
    assert exporter.json(CANARY, ["a_empty"]) == {"a_empty": []}


def test_no_error_of_the_source_carries_a_value(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    """Every way in which a statement with the user's id may fail."""
    admin.execute(
        f"""
        CREATE TABLE public.ints (user_id int);
        CREATE VIEW public.casts AS SELECT '{CANARY}'::text AS user_id, ('{CANARY}' || n)::int AS bad
            FROM generate_series(1, 1) AS n;
        CREATE TABLE public.points (user_id point);
        """
    )
    for table in ("ints", "casts", "points"):
        exporter = exporter_for(tables_url, [DataTypeConfig(data_type="t", table_name=table)])
        with pytest.raises(ExportPipelineError) as refused:
            exporter.json(CANARY, ["t"])
        assert "canary" not in "".join(traceback.format_exception(refused.value))
