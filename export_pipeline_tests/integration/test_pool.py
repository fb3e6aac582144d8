"""Connections to our own database, when the server takes them away or is not there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import dup
from pathlib import Path

import psycopg
import pytest

from export_pipeline.collect.source import Source
from export_pipeline.db import pool as module
from export_pipeline.db.pool import Bounds, Database
from export_pipeline.errors import DatabaseUnavailable
from export_pipeline_tests import servers


def terminate_all(admin: psycopg.Connection) -> int:
    rows = admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'export-pipeline'"
    ).fetchall()
    return len(rows)


def one(database: Database) -> object:
    with database.connect() as connection:
        return connection.execute("SELECT 1").fetchone()


def test_after_the_server_ended_every_connection_the_next_use_works(
    database: Database, admin: psycopg.Connection
) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: one(database), range(8))) == [(1,)] * 8
    assert terminate_all(admin) >= 1
    assert one(database) == (1,)
    assert terminate_all(admin) >= 1
    assert one(database) == (1,)


def test_a_connection_that_ends_in_the_middle_is_unavailable(database: Database, admin: psycopg.Connection) -> None:
    with pytest.raises(DatabaseUnavailable) as refused, database.connect() as connection:
        connection.execute("SELECT 1")
        terminate_all(admin)
        connection.execute("SELECT 2")
    assert refused.value.retryable
    assert one(database) == (1,)


def test_a_block_commits_at_its_end_and_rolls_back_on_an_error(database: Database, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE public.t (n int)")
    with database.connect() as connection:
        connection.execute("INSERT INTO public.t VALUES (1)")
    with pytest.raises(RuntimeError, match="stop"), database.connect() as connection:
        connection.execute("INSERT INTO public.t VALUES (2)")
        raise RuntimeError("stop")
    assert admin.execute("SELECT n FROM public.t").fetchall() == [(1,)]


@pytest.mark.parametrize("use", [one, lambda database: database.dedicated()])
def test_where_nobody_answers_the_database_is_unavailable(
    use: Callable[[Database], object], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONNECT_TIMEOUT_S", 1)
    database = Database(f"postgresql://canary-user:canary-word@127.0.0.1:{closed_port}/canary-name")
    try:
        with pytest.raises(DatabaseUnavailable) as refused:
            use(database)
    finally:
        database.close()
    assert str(refused.value).startswith("Our database cannot be reached.")
    assert "EXPORT_PIPELINE_DATABASE_URL" in refused.value.hint
    assert refused.value.__cause__ is None
    assert not [word for word in ("canary", "127.0.0.1", "refused", "psycopg") if word in str(refused.value)]


def test_an_error_of_the_statement_is_not_called_unavailable(database: Database) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled), database.connect() as connection:
        connection.execute("SET LOCAL statement_timeout = 1")
        connection.execute("SELECT pg_sleep(10)")


@pytest.mark.parametrize(
    ("bounds", "statement"),
    [
        (Bounds(statement_s=60, lock_s=0.05), "SELECT pg_advisory_xact_lock(77)"),
        (Bounds(statement_s=0.05, lock_s=60), "SELECT pg_sleep(60)"),
    ],
)
def test_what_takes_too_long_makes_room_for_who_waits(
    bounds: Bounds, statement: str, tables_url: str, admin: psycopg.Connection
) -> None:
    admin.execute("SELECT pg_advisory_lock(77)")
    database = Database(tables_url, max_size=1, patience_s=60, bounds=bounds)
    try:
        with ThreadPoolExecutor(2) as threads:
            stuck = [threads.submit(run, database, statement) for _ in range(2)]
            for call in stuck:
                with pytest.raises(DatabaseUnavailable, match="in time") as refused:
                    call.result(60)
                assert refused.value.retryable
        assert one(database) == (1,)
        with database.dedicated() as connection:
            assert connection.execute("SHOW lock_timeout").fetchone() == ("0",)
    finally:
        database.close()
        admin.execute("SELECT pg_advisory_unlock(77)")


def run(database: Database, statement: str) -> None:
    with database.connect() as connection:
        connection.execute(statement.encode())


def test_closing_gives_every_connection_back(
    tables_url: str, admin: psycopg.Connection, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    database = Database(tables_url)
    assert one(database) == (1,)
    assert connections(admin) == 1
    database.close()
    database.close()
    wait_until(lambda: connections(admin) == 0)


def connections(admin: psycopg.Connection) -> int:
    row = admin.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'export-pipeline'"
    ).fetchone()
    assert row is not None
    return row[0]


def test_a_dedicated_connection_is_not_the_pools(database: Database, admin: psycopg.Connection) -> None:
    connection = database.dedicated()
    try:
        database.close()
        assert connection.autocommit
        assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        connection.close()


SILENCE = """
SELECT current_setting('tcp_keepalives_idle')::int + current_setting('tcp_keepalives_interval')::int
       * current_setting('tcp_keepalives_count')::int
"""


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="Linux names these options so")
def test_a_machine_that_is_gone_without_a_word_is_missed_soon(tmp_path: Path) -> None:
    """Its leases and row locks end then; the default is two hours and eleven minutes. With the power cut by a network
    namespace, a lease was free after 30 seconds."""
    with servers.postgres(tmp_path) as url:
        database = Database(url)
        with database.connect() as pooled, database.dedicated() as dedicated, Source(url).snapshot() as snapshot:
            for connection in (pooled, dedicated, snapshot.connection):
                assert connection.execute(SILENCE).fetchone() == (25,)
            for connection in (pooled, dedicated):
                with socket.socket(fileno=dup(connection.fileno())) as ours:
                    found = [ours.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS]
                assert found == [10, 5, 3, 30_000]
        database.close()
        own = Database(f"{url}?keepalives_idle=77")
        with own.dedicated() as connection, socket.socket(fileno=dup(connection.fileno())) as ours:
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        own.close()


OPTIONS = [getattr(socket, f"TCP_{name}", 0) for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")]
