"""The queue between launchers and warm workers: runs that were asked for and have no process yet.

It lives in PostgreSQL so that nothing is lost when a launcher or a worker dies, and so that workers need no address.
A worker is alive as long as its connection holds its lock; what a dead one had taken is taken over. Connections break
without anybody's death, also all at once when the server restarts, and then a lock is away for a moment: only who is
missed twice, some seconds apart, is dead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from export_pipeline.db.pool import Database
from export_pipeline.errors import DatabaseUnavailable

_NEW = "export_run_queue"
_CANCEL = "export_run_cancel"
_LOCK_CLASS = 20260102
_RECONNECT_S = 1.0
_LOOKS_S = 20.0
#: Far above what a living worker needs to take its lock again.
_MISSED_S = 4

_PUT = """
INSERT INTO export_pipeline.export_run_queue (run_id)
SELECT %(run_id)s WHERE export_pipeline.workers_alive() > 0 OR %(anyway)s
ON CONFLICT (run_id) DO NOTHING RETURNING run_id
"""
_MISS = """
UPDATE export_pipeline.export_run_queue
SET missed_at = CASE WHEN export_pipeline.worker_is_alive(worker) THEN NULL ELSE clock_timestamp() END
WHERE run_id IN (
    SELECT run_id FROM export_pipeline.export_run_queue
    WHERE worker IS NOT NULL AND (missed_at IS NULL) <> export_pipeline.worker_is_alive(worker)
    ORDER BY run_id FOR UPDATE SKIP LOCKED)
"""
_IS_DEAD = (
    f"(NOT export_pipeline.worker_is_alive(worker) AND missed_at < clock_timestamp() - interval '{_MISSED_S} seconds')"
)
_TAKE = f"""
UPDATE export_pipeline.export_run_queue SET worker = %(worker)s, missed_at = NULL
WHERE run_id = (
    SELECT run_id FROM export_pipeline.export_run_queue
    WHERE worker IS NULL OR {_IS_DEAD}
    ORDER BY enqueued_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING run_id
"""
_BEGIN = """
UPDATE export_pipeline.export_run_queue SET begun = true
WHERE run_id = %(run_id)s AND worker = %(worker)s AND NOT begun
"""
_FIND = f"""
SELECT worker IS NOT NULL, worker IS NOT NULL AND {_IS_DEAD} IS NOT TRUE
FROM export_pipeline.export_run_queue WHERE run_id = %s
"""
_ABANDON = """
DELETE FROM export_pipeline.export_run_queue
WHERE run_id = %(run_id)s AND export_pipeline.workers_alive() = 0
  AND (worker IS NULL OR NOT export_pipeline.worker_is_alive(worker))
"""


@dataclass(frozen=True, kw_only=True)
class QueuedRun:
    """Where a run stands in the queue.

    Attributes:
        taken: Whether a worker took it.
        alive: Whether that worker's process lives.
    """

    taken: bool
    alive: bool


class RunQueue:
    """What launchers and workers do with the queue.

    Args:
        database: Where our tables live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, run_id: str, *, anyway: bool = False) -> bool:
        """Hand a run to the workers.

        Args:
            run_id: The run.
            anyway: Also when no worker is alive now.

        Returns:
            False when no worker is alive: then nothing was written, and the run must be launched another way.
        """
        with self._database.connect() as connection:
            if connection.execute(_PUT, {"run_id": run_id, "anyway": anyway}).fetchone() is None:
                return False
            connection.execute("SELECT pg_notify(%s, '')", [_NEW])
            return True

    def take(self, worker: int) -> str | None:
        """Take the run that waits longest, or one whose worker died. Two workers never take the same."""
        with self._database.connect() as connection:
            connection.execute(_MISS)
            row = connection.execute(_TAKE, {"worker": worker}).fetchone()
        return row[0] if row else None

    def begin(self, run_id: str, worker: int) -> bool:
        """Say that a run will be executed now.

        Returns:
            False when it was begun before, or another worker has it by now: then it must not be executed.
        """
        with self._database.connect() as connection:
            return connection.execute(_BEGIN, {"run_id": run_id, "worker": worker}).rowcount > 0

    def holds(self, run_id: str, worker: int) -> bool:
        """Say whether a run is still this worker's."""
        with self._database.connect() as connection:
            query = "SELECT FROM export_pipeline.export_run_queue WHERE run_id = %s AND worker = %s"
            return connection.execute(query, [run_id, worker]).fetchone() is not None

    def done(self, run_id: str) -> None:
        """Forget a run that has ended."""
        with self._database.connect() as connection:
            connection.execute("DELETE FROM export_pipeline.export_run_queue WHERE run_id = %s", [run_id])

    def find(self, run_id: str) -> QueuedRun | None:
        """Say where a run stands; None when it is not in the queue."""
        with self._database.connect() as connection:
            connection.execute(_MISS)
            row = connection.execute(_FIND, [run_id]).fetchone()
        return QueuedRun(taken=row[0], alive=row[1]) if row else None

    def withdraw(self, run_id: str) -> bool:
        """Take a run back that no worker has taken yet.

        Returns:
            Whether it was still waiting.
        """
        with self._database.connect() as connection:
            return (
                connection.execute(
                    "DELETE FROM export_pipeline.export_run_queue WHERE run_id = %s AND worker IS NULL", [run_id]
                ).rowcount
                > 0
            )

    def abandoned(self, run_id: str) -> bool:
        """Say whether no worker will take a run: it is not in the queue, or all workers are gone."""
        with self._database.connect() as connection:
            connection.execute(_ABANDON, {"run_id": run_id})
            found = connection.execute("SELECT FROM export_pipeline.export_run_queue WHERE run_id = %s", [run_id])
            return found.fetchone() is None

    def workers(self) -> int:
        """Count the workers that are alive, on all machines."""
        with self._database.connect() as connection:
            row = connection.execute("SELECT export_pipeline.workers_alive()").fetchone()
        return int(row[0]) if row else 0

    def cancel(self, run_id: str) -> None:
        """Ask the worker that has the run to interrupt it."""
        with self._database.connect() as connection:
            connection.execute("SELECT pg_notify(%s, %s)", [_CANCEL, run_id])


class Absence:
    """How long no worker has been alive, as far as this process looked: workers that died together soon come back.

    Args:
        queue: Whose workers.
    """

    def __init__(self, queue: RunQueue) -> None:
        self._queue = queue
        self._since = self._looked = time.monotonic()

    def seconds(self) -> float:
        """Look, and say since when nobody has been there. What was between two looks far apart counts as presence."""
        now = time.monotonic()
        if self._queue.workers() or now - self._looked > _LOOKS_S:
            self._since = now
        self._looked = now
        return now - self._since


class Seat:
    """A worker's place: its number, the lock that shows that it lives, and what it is told.

    Args:
        database: Where our tables live.
        on_cancel: Called with a run's id, in a thread of the seat's own.
    """

    def __init__(self, database: Database, on_cancel: Callable[[str], None]) -> None:
        self._database = database
        self._on_cancel = on_cancel
        self._woken = threading.Event()
        self._left = threading.Event()
        self._connection = self._database.dedicated()
        self.worker = self._number(self._connection)
        self._sit(self._connection)
        threading.Thread(target=self._listen, name="seat", daemon=True).start()

    def wait(self, timeout: float) -> None:
        """Wait until there may be a run, at most `timeout` seconds."""
        self._woken.wait(timeout)
        self._woken.clear()

    def wake(self) -> None:
        """End a `wait`."""
        self._woken.set()

    def leave(self) -> None:
        """Give the seat back."""
        self._left.set()
        with suppress(psycopg.Error):
            self._connection.close()

    def _number(self, connection: psycopg.Connection) -> int:
        row = connection.execute("SELECT nextval('export_pipeline.export_run_worker')").fetchone()
        if row is None:
            raise DatabaseUnavailable("The database gave no number to a worker.")
        return int(row[0])

    def _sit(self, connection: psycopg.Connection) -> None:
        connection.execute("SELECT pg_advisory_lock(%s, %s)", [_LOCK_CLASS, self.worker])
        connection.execute(f"LISTEN {_NEW}; LISTEN {_CANCEL}".encode())

    def _listen(self) -> None:
        """Pass on what the seat is told; take it again when a restart of the server took it away."""
        while not self._left.is_set():
            with suppress(psycopg.Error):
                for notice in self._connection.notifies():
                    if notice.channel == _CANCEL:
                        self._on_cancel(notice.payload)
                    else:
                        self._woken.set()
            if not self._left.is_set():
                self._sit_again()

    def _sit_again(self) -> None:
        """At once: meanwhile another worker would take our run for a dead one's."""
        try:
            self._connection = self._database.dedicated()
            self._sit(self._connection)
            self._woken.set()
        except (psycopg.Error, DatabaseUnavailable):
            self._left.wait(_RECONNECT_S)
