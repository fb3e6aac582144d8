"""The lease that a run holds on its request: a lock that vanishes with the process that took it.

It tells a working run from a dead one at once, whatever launched it, without heartbeats. It lives in the session of one
connection, so the URL of our database must not go through a pooler in transaction mode.
"""

from __future__ import annotations

import time

import psycopg

from export_pipeline.db.pool import Database
from export_pipeline.errors import RunNotEntitled

#: A killed run's lock goes when the server notices that its socket is closed: usually at once.
_PATIENCE_S = 5.0


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

    def acquire(self) -> None:
        """Take the lock, or make sure that it is still held (a restart of the server takes it away).

        Raises:
            RunNotEntitled: Another process works on the request.
            DatabaseUnavailable: The server does not answer.
        """
        if self._connection is not None and _alive(self._connection):
            return
        self._connection = self._database.dedicated()
        deadline = time.monotonic() + _PATIENCE_S
        while not self._try(self._connection):
            if time.monotonic() > deadline:
                self.release()
                raise RunNotEntitled("Another process works on this request now.")
            time.sleep(0.1)

    def release(self) -> None:
        """Let go; the lock ends with the connection."""
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
