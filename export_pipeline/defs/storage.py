"""Dagster's storage: PostgreSQL beside our tables, in a schema of its own, found through our settings.

Named in `dagster.yaml` as `storage: custom`, Dagster's public way to bring one's own; so no URL and no password has to
stand in that file, and `dagster dev`, `export-pipeline up` and tests all use the same storage.

Dagster's own PostgreSQL storage opens a connection for every statement and commits every event by itself. Ours keeps a
few connections, and a warm worker writes the events of a step together. What a kill can lose is the last quarter of a
second of a run's step events and log lines; a change of a run's status is always written at once, after all before it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dagster import DagsterEvent, DagsterEventType, EventLogEntry
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage, PostgresRunStorage
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from export_pipeline.defs.internals import (
    ConfigurableClassData,
    UserConfigSchema,
    insert_events,
    share_pool,
)
from export_pipeline.defs.lasting import outlast
from export_pipeline.defs.process import services

_FLUSH_S = 0.25
#: Everything else changes a run's status, is read by other processes, or goes to more tables than one.
_MAY_WAIT = frozenset(
    {
        DagsterEventType.ENGINE_EVENT,
        DagsterEventType.HANDLED_OUTPUT,
        DagsterEventType.LOADED_INPUT,
        DagsterEventType.LOGS_CAPTURED,
        DagsterEventType.RESOURCE_INIT_STARTED,
        DagsterEventType.RESOURCE_INIT_SUCCESS,
        DagsterEventType.STEP_INPUT,
        DagsterEventType.STEP_OUTPUT,
        DagsterEventType.STEP_START,
        DagsterEventType.STEP_SUCCESS,
        DagsterEventType.STEP_WORKER_STARTED,
        DagsterEventType.STEP_WORKER_STARTING,
    }
)


class BufferedEventLogStorage(PostgresEventLogStorage):
    """Event log that may gather what can wait. Only a process that executes runs buffers."""

    _buffering = False

    def begin_buffering(self) -> None:
        """From now on, write what can wait together, at most a quarter of a second late."""
        self._waiting: list[EventLogEntry] = []
        self._lock = threading.RLock()
        self._some = threading.Event()
        self._buffering = True
        threading.Thread(target=self._flush_regularly, name="event-log", daemon=True).start()

    def store_event(self, event: EventLogEntry) -> None:
        """Write an event, after everything that came before it."""
        if not self._buffering:
            super().store_event(event)
            return
        with self._lock:
            if not event.is_dagster_event or event.get_dagster_event().event_type in _MAY_WAIT:
                self._waiting.append(event)
                self._some.set()
                return
            outlast(self.flush)
            outlast(lambda: PostgresEventLogStorage.store_event(self, event))

    def flush(self) -> None:
        """Write what waits, in one statement."""
        with self._lock:
            if self._waiting:
                insert_events(self, self._waiting)
                self._waiting = []

    def _flush_regularly(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            threading.Event().wait(_FLUSH_S)
            try:
                self.flush()
            except Exception:  # what it says quotes the events
                # The server is away: all of it still waits. Whoever changes a run's status meanwhile is told.
                self._some.set()


class LastingRunStorage(PostgresRunStorage):
    """Runs, whose changes of status outlast a server that is away for a moment."""

    def handle_run_event(self, run_id: str, event: DagsterEvent, update_timestamp: datetime | None = None) -> None:
        """Change the status of a run as an event says."""
        outlast(lambda: PostgresRunStorage.handle_run_event(self, run_id, event, update_timestamp))


class SettingsPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` whose URL comes from `EXPORT_PIPELINE_DATABASE_URL` or the embedded server."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url=postgres_url, inst_data=inst_data)
        self._run_storage: PostgresRunStorage = LastingRunStorage(postgres_url)
        self._event_log_storage: PostgresEventLogStorage = BufferedEventLogStorage(postgres_url)
        share_pool(postgres_url, self._run_storage, self._event_log_storage, self._schedule_storage)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> SettingsPostgresStorage:
        """Called by Dagster for each instance."""
        return cls(inst_data=inst_data, postgres_url=dagster_url(services().database_url))


def dagster_url(url: str) -> str:
    """Point a PostgreSQL URL at Dagster's schema, by the driver that Dagster's storage needs.

    SQLAlchemy would take psycopg 3 for `postgresql://`, and Dagster's storage hangs with it. What libpq understands by
    a URL (several hosts, sockets, odd passwords, options of its own) goes on as parameters: SQLAlchemy reads URLs by
    other rules.
    """
    known = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    # The last setting of a name counts.
    known["options"] = f"{known.get('options', '')} -csearch_path=dagster".strip()
    return URL.create(
        "postgresql+psycopg2",
        username=known.pop("user", None),
        password=known.pop("password", None),
        database=known.pop("dbname", None),
        query=known,
    ).render_as_string(hide_password=False)
