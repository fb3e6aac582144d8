"""Dagster's events on their way to the server: together, late by a moment, and never lost behind an outage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from export_pipeline.defs import lasting
from export_pipeline.defs import storage as module
from export_pipeline.defs.internals import insert_events
from export_pipeline.defs.storage import BufferedEventLogStorage, dagster_url
from export_pipeline.errors import DatabaseUnavailable

RUN = "0f0f0f0f-0000-4000-8000-000000000000"


@pytest.fixture
def storage(migrated_url: str) -> Iterator[BufferedEventLogStorage]:
    made = BufferedEventLogStorage(dagster_url(migrated_url))
    made.begin_buffering()
    yield made
    made.dispose()


@pytest.fixture
def server(migrated_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        yield connection


def said(message: str) -> dg.EventLogEntry:
    return dg.EventLogEntry(
        error_info=None, level=20, user_message=message, run_id=RUN, timestamp=time.time(), dagster_event=None
    )


def written(server: psycopg.Connection) -> int:
    row = server.execute("SELECT count(*) FROM dagster.event_logs").fetchone()
    return row[0] if row else 0


def test_what_waits_is_written_soon(
    storage: BufferedEventLogStorage, server: psycopg.Connection, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    for number in range(3):
        storage.store_event(said(str(number)))
    wait_until(lambda: written(server) == 3)


def test_an_outage_delays_what_waits_and_ends_nothing(
    storage: BufferedEventLogStorage,
    server: psycopg.Connection,
    wait_until: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = threading.Event()

    def watched(*given: Any) -> None:
        try:
            insert_events(*given)
        except SQLAlchemyError:
            refused.set()
            raise

    monkeypatch.setattr(module, "insert_events", watched)
    server.execute("ALTER TABLE dagster.event_logs RENAME TO away")
    storage.store_event(said("during"))
    assert refused.wait(10)
    server.execute("ALTER TABLE dagster.away RENAME TO event_logs")
    wait_until(lambda: written(server) == 1)
    storage.store_event(said("after"))
    wait_until(lambda: written(server) == 2)


def test_the_end_of_a_run_outlasts_an_answer_that_is_lost(
    storage: BufferedEventLogStorage, server: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies when it has written, and before it says so: the run has not failed."""
    write, lost = PostgresEventLogStorage.store_event, [1]

    def lose_the_answer(self: PostgresEventLogStorage, event: dg.EventLogEntry) -> None:
        write(self, event)
        if lost.pop():
            lost.append(0)
            raise OperationalError("INSERT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(lasting, "_AGAIN_S", 0.0)
    monkeypatch.setattr(PostgresEventLogStorage, "store_event", lose_the_answer)
    ended = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_SUCCESS.value, job_name="job")
    storage.store_event(
        dg.EventLogEntry(
            error_info=None, level=20, user_message="", run_id=RUN, timestamp=time.time(), dagster_event=ended
        )
    )
    assert written(server) == 2, "twice does no harm"


def test_what_does_not_pass_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "_AGAIN_S", 0.0)
    monkeypatch.setattr(lasting, "_OUTLAST_S", 0.05)
    tried = []

    def refuse() -> None:
        tried.append(1)
        raise DatabaseUnavailable("It is away.")

    with pytest.raises(DatabaseUnavailable):
        lasting.outlast(refuse)
    assert len(tried) > 1
