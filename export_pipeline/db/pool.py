"""Connections to our own database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from export_pipeline.errors import DatabaseUnavailable, InvalidRequest

_CONNECT_TIMEOUT_S = 10
#: A machine that loses its power or its network says goodbye to nobody: the server would keep its locks for two hours,
#: and we would wait a quarter of an hour for an answer. Each side asks after ten silent seconds, and gives up after
#: fifteen more. On a Unix socket all of this means nothing.
_OUR_SIDE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_ITS_SIDE = """
SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '30000', false)
"""
_BOUND = "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false)"
#: What a statement ends with that a bound cut off: query_canceled, lock_not_available.
_CUT_OFF = ("57014", "55P03")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long a statement may take before its connection goes back to who else waits for one.

    Attributes:
        statement_s: Seconds for all of it.
        lock_s: Seconds of waiting for one lock.
    """

    statement_s: float
    lock_s: float


class Database:
    """A small pool over one URL. Every door of the room `db` takes one.

    Args:
        url: PostgreSQL URL.
        max_size: Connections at the same time.
        patience_s: Longest wait for one of them.
        bounds: Of the statements in the pool; None leaves that to the server, for work that takes its time.
    """

    def __init__(
        self, url: str, *, max_size: int = 4, patience_s: float = _CONNECT_TIMEOUT_S, bounds: Bounds | None = None
    ) -> None:
        self.url = url
        self._bounds = bounds
        self._pool = ConnectionPool(
            url,
            min_size=0,
            max_size=max_size,
            open=False,
            timeout=patience_s,
            # After a restart of the server the pool hands out dead connections unless it asks first.
            check=ConnectionPool.check_connection,
            kwargs={"application_name": "export-pipeline", **_patience(url)},
            configure=self._prepare,
        )

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """Borrow a connection; its transaction commits at the end of the block, or rolls back on an error.

        Raises:
            DatabaseUnavailable: The server does not answer, went away, or took longer than the bounds allow.
            InvalidRequest: A value was no text that a database could hold.
        """
        self._pool.open()
        try:
            with self._pool.connection() as connection:
                yield connection
        except PoolTimeout:
            raise _unavailable() from None
        except UnicodeEncodeError:
            # Bytes of a command line that are no text, for example.
            raise InvalidRequest("What was asked holds bytes that are no text.", hint="Use UTF-8.") from None
        except psycopg.OperationalError as error:
            if self._bounds and error.sqlstate in _CUT_OFF:
                raise _too_slow() from None
            # Only a broken connection is 'unavailable'; an operational error with a SQLSTATE of its own is not.
            if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
                raise _unavailable() from None
            raise

    def dedicated(self) -> psycopg.Connection:
        """Open a connection outside the pool, in autocommit: for locks and LISTEN. The caller closes it.

        Raises:
            DatabaseUnavailable: The server does not answer.
        """
        try:
            connection = psycopg.connect(self.url, autocommit=True, **_patience(self.url))
        except psycopg.OperationalError:
            raise _unavailable() from None
        try:
            _configure(connection)
        except psycopg.OperationalError:
            connection.close()
            raise _unavailable() from None
        return connection

    def close(self) -> None:
        """Give every connection back."""
        self._pool.close()

    def _prepare(self, connection: psycopg.Connection) -> None:
        if self._bounds:
            bounds = (self._bounds.statement_s, self._bounds.lock_s)
            connection.execute(_BOUND, [f"{round(seconds * 1000)}ms" for seconds in bounds])
        _configure(connection)


def _patience(url: str) -> dict[str, Any]:
    """What the URL does not say itself."""
    return {name: value for name, value in _OUR_SIDE.items() if name not in conninfo_to_dict(url)} | {
        "connect_timeout": _CONNECT_TIMEOUT_S
    }


def _configure(connection: psycopg.Connection) -> None:
    connection.execute(_ITS_SIDE)
    connection.commit()


def _unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "Our database cannot be reached.",
        hint="Check EXPORT_PIPELINE_DATABASE_URL and run `export-pipeline doctor`.",
    )


def _too_slow() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "Our database did not answer in time.",
        hint="Somebody else may hold a lock on our tables: pg_stat_activity shows who.",
    )
