"""Forgets old runs in Dagster's own tables, many at a time.

Dagster's way, `DagsterInstance.delete_run` and `delete_dynamic_partition`, takes one after the other. The statements
here are private knowledge like that in `internals`: `integration/test_pruning.py` compares what they leave
with what `delete_run` leaves, in every table. Where Dagster's tables are not beside ours, nothing is done.

Each batch is one transaction that takes some tenths of a second, holds only rows that nobody else wants, and does not
wait for anybody: it may be killed at any point, and the next round goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from psycopg import Connection
from psycopg.errors import LockNotAvailable

from export_pipeline.db import history
from export_pipeline.db.pool import Database

_BATCH = 100
_AT_ONCE = 100_000
_LOCK_TIMEOUT = "500ms"
#: What has no run, or no request, any more goes when nobody can be in the middle of making it.
_LEFTOVER = timedelta(days=1)
_FINISHED = ["SUCCESS", "FAILURE", "CANCELED"]

_ARE_HERE = "SELECT to_regclass('dagster.runs') IS NOT NULL AND to_regclass('dagster.dynamic_partitions') IS NOT NULL"
_PARTITIONS = """
SELECT partition, count(*) OVER () FROM dagster.dynamic_partitions
WHERE partitions_def_name = %(partitions_def)s ORDER BY id LIMIT %(limit)s
"""
_RUNS_OF = """
SELECT run_id, partition.value, status FROM dagster.runs JOIN dagster.run_tags AS partition USING (run_id)
WHERE partition.key = 'dagster/partition' AND partition.value = ANY (%(partitions)s)
"""
_DROP_PARTITIONS = """
DELETE FROM dagster.dynamic_partitions
WHERE partitions_def_name = %(partitions_def)s AND partition = ANY (%(partitions)s)
"""
#: Runs of the housekeeping itself, runs that somebody launched without a partition, runs whose partition is gone.
_STRAY_RUNS = """
SELECT run_id FROM dagster.runs
WHERE status = ANY (%(finished)s)
  AND coalesce(end_time, extract(epoch FROM update_timestamp AT TIME ZONE 'UTC'))
      < extract(epoch FROM now() - %(age)s)
  AND NOT EXISTS (SELECT FROM dagster.dynamic_partitions AS kept
                  WHERE kept.partitions_def_name = %(partitions_def)s AND kept.partition = runs.partition)
ORDER BY id LIMIT %(limit)s
"""
_UNKNOWN = "SELECT id FROM unnest(%(run_ids)s::text[]) AS id WHERE id NOT IN (SELECT run_id FROM dagster.runs)"
#: In the order and with the conditions of `delete_run`; tags go with their run. `runs` comes last because its rows are
#: what finds the others again.
_FORGET_RUNS = {
    "asset_event_tags": """
        DELETE FROM dagster.asset_event_tags WHERE event_id IN (
            SELECT id FROM dagster.event_logs WHERE run_id = ANY (%(run_ids)s)
            AND dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION'))""",
    "events": "DELETE FROM dagster.event_logs WHERE run_id = ANY (%(run_ids)s)",
    "deleted_slots": "DELETE FROM dagster.concurrency_slots WHERE run_id = ANY (%(run_ids)s) AND deleted",
    "slots": "UPDATE dagster.concurrency_slots SET run_id = NULL, step_key = NULL WHERE run_id = ANY (%(run_ids)s)",
    "pending_steps": "DELETE FROM dagster.pending_steps WHERE run_id = ANY (%(run_ids)s)",
    "runs": "DELETE FROM dagster.runs WHERE run_id = ANY (%(run_ids)s)",
}
#: Dagster's own retention forgets the ticks of sensors, not those of schedules.
_FORGET_TICKS = """
DELETE FROM dagster.job_ticks WHERE id IN (
    SELECT id FROM dagster.job_ticks
    WHERE type = 'SCHEDULE' AND status <> 'STARTED' AND timestamp < (now() - %(age)s) AT TIME ZONE 'UTC'
    LIMIT %(limit)s)
"""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was forgotten, in rows.

    Attributes:
        left: Partitions that were due and are still there: on their way, held by somebody, or the time was over.
    """

    partitions: int = 0
    runs: int = 0
    events: int = 0
    tickets: int = 0
    ticks: int = 0
    left: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """One round of housekeeping.

    Attributes:
        database: Ours, which also holds Dagster's tables.
        partitions_def: Name of the dynamic partitions.
        keep: Partitions that stay, the newest, unless they are too old.
        age: Requests that ended longer ago lose their partition and runs.
        patience_s: After so many seconds no further batch is begun.
    """

    database: Database
    partitions_def: str
    keep: int
    age: timedelta
    patience_s: float = 120.0

    def run(self) -> Pruned:
        """Forget what is due.

        Raises:
            DatabaseUnavailable: The server does not answer.
        """
        end = time.monotonic() + self.patience_s
        with self.database.connect() as connection:
            if not _value(connection, _ARE_HERE):
                return Pruned()
            due = self._due(connection)
        pruned = Pruned(left=len(due))
        for start in range(0, len(due), _BATCH):
            if time.monotonic() < end:
                pruned += self._partitions(due[start : start + _BATCH])
        while time.monotonic() < end and (strays := self._stray_runs()).runs:
            pruned += strays
        return pruned + self._traces() + self._ticks()

    def _due(self, connection: Connection) -> list[str]:
        rows = connection.execute(_PARTITIONS, self._names(limit=_AT_ONCE)).fetchall()
        total = rows[0][1] if rows else 0
        return history.overdue(connection, [row[0] for row in rows], age=self.age, excess=max(0, total - self.keep))

    def _partitions(self, due: Sequence[str]) -> Pruned:
        """Forget some partitions with all their runs, unless a run of theirs is in progress."""
        try:
            with self.database.connect() as connection:
                connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'".encode())
                held = history.hold(connection, due)
                runs = connection.execute(_RUNS_OF, {"partitions": held}).fetchall()
                busy = {partition for _, partition, status in runs if status not in _FINISHED}
                gone = [partition for partition in held if partition not in busy]
                forgotten = _forget(connection, [run_id for run_id, partition, _ in runs if partition not in busy])
                dropped = connection.execute(_DROP_PARTITIONS, self._names(partitions=gone)).rowcount
        except LockNotAvailable:
            return Pruned()
        return forgotten + Pruned(partitions=dropped, left=-dropped)

    def _stray_runs(self) -> Pruned:
        try:
            with self.database.connect() as connection:
                connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'".encode())
                found = connection.execute(_STRAY_RUNS, self._names(finished=_FINISHED, limit=_BATCH))
                return _forget(connection, [row[0] for row in found])
        except LockNotAvailable:
            return Pruned()

    def _traces(self) -> Pruned:
        """Forget what runs left in our tables that Dagster knows no more, such as those deleted in the UI."""
        with self.database.connect() as connection:
            old = history.traces(connection, age=_LEFTOVER)
            unknown = connection.execute(_UNKNOWN, {"run_ids": old}).fetchall()
            return Pruned(tickets=history.forget(connection, [row[0] for row in unknown]))

    def _ticks(self) -> Pruned:
        with self.database.connect() as connection:
            return Pruned(ticks=connection.execute(_FORGET_TICKS, self._names(limit=_AT_ONCE)).rowcount)

    def _names(self, **values: Any) -> dict[str, Any]:
        return {"partitions_def": self.partitions_def, "age": self.age, **values}


def _forget(connection: Connection, run_ids: Sequence[str]) -> Pruned:
    """Delete runs and everything that refers to them, in Dagster's tables and in ours."""
    if not run_ids:
        return Pruned()
    rows = {
        name: connection.execute(statement.encode(), {"run_ids": list(run_ids)}).rowcount
        for name, statement in _FORGET_RUNS.items()
    }
    return Pruned(runs=rows["runs"], events=rows["events"], tickets=history.forget(connection, run_ids))


def _value(connection: Connection, statement: str) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None
