"""The lease that a run holds on its request: a lock that vanishes with the process that took it.

It tells a working run from a dead one at once, whatever launched it, without heartbeats. It lives in the session of one
connection, so the URL of our database must not go through a pooler in transaction mode.
"""

from __future__ import annotations

import select
import threading
import time
from contextlib import suppress

import psycopg

from export_pipeline.db.pool import Database
from export_pipeline.errors import DatabaseUnavailable, RunNotEntitled

#: A killed run's lock goes when the server notices that its socket is closed: usually at once.
_PATIENCE_S = 5.0
_PATIENCE_AGAIN_S = 0.5
_KEEP_S = 2.0


class RequestLease:
    """Holds the lock of one request on a connection of its own.

    Args:
        database: Where our tables live.
        request_id: The request.
    """

    def __init__(self, database: Database, request_id: str) -> None:
        self._database = database
        self._request_id = request_id
        self._connection: psycopg.Connection | None = None
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock, or make sure that it is still held.

        Raises:
            RunNotEntitled: Another process works on the request.
            DatabaseUnavailable: The server does not answer.
        """
        with self._lock:
            self._hold(_PATIENCE_S)
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
            self._keeper.start()

    def release(self) -> None:
        """Let go before this returns. By closing alone it would end when the server notices, a moment later."""
        self._released.set()
        with self._lock:
            if self._connection is not None:
                with suppress(psycopg.OperationalError):  # then the lock went with its session
                    self._connection.execute("SELECT pg_advisory_unlock_all()")
            self._drop()

    def _keep(self) -> None:
        """Take the lock again as soon as its connection has ended, also in the middle of a long step: whoever looks for
        requests that nobody works on may look in this moment."""
        while not self._released.is_set():
            self._wait_for_the_end()
            with suppress(DatabaseUnavailable, RunNotEntitled), self._lock:
                if not self._released.is_set():
                    self._hold(_PATIENCE_AGAIN_S)

    def _wait_for_the_end(self) -> None:
        """Of the connection: nothing else comes by it unasked. After a while it is asked whether it still lives."""
        connection = self._connection
        if connection is None:
            self._released.wait(_KEEP_S)
            return
        with suppress(OSError, psycopg.Error):  # closed by another thread in this moment
            end = select.poll()
            end.register(connection.fileno(), select.POLLIN)
            end.poll(_KEEP_S * 1000)

    def _hold(self, patience: float) -> None:
        if self._connection is not None and _alive(self._connection):
            return
        self._drop()
        connection = self._database.dedicated()
        try:
            self._wait(connection, patience)
        except psycopg.OperationalError:
            connection.close()
            raise DatabaseUnavailable(
                "Our database ended the connection.", hint="Is it restarting? Run `export-pipeline doctor`."
            ) from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _wait(self, connection: psycopg.Connection, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self._try(connection):
            if time.monotonic() >= deadline:
                raise RunNotEntitled("Another process works on this request now.")
            time.sleep(0.1)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try(self, connection: psycopg.Connection) -> bool:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(export_pipeline.lease_key(%s))", [self._request_id]
        ).fetchone()
        return bool(row and row[0])


def _alive(connection: psycopg.Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True
