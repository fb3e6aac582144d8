"""Dagster's events on their way to the server: together, late by a moment, and never lost behind an outage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import psycopg
import pytest
from sqlalchemy.exc import SQLAlchemyError

from export_pipeline.defs import storage as module
from export_pipeline.defs.internals import insert_events
from export_pipeline.defs.storage import BufferedEventLogStorage, dagster_url

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
