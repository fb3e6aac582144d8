"""What outlasts a database that is away for a moment. Uses no private name of Dagster's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy
from dagster_postgres.utils import DagsterPostgresException

from export_pipeline.errors import DatabaseUnavailable

_T = TypeVar("_T")

#: What Dagster's storage raises when the server is away or ends a connection.
UNAVAILABLE = (DagsterPostgresException, sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
_AGAIN_S = 0.5
#: What a restart of the server takes, and something more.
_OUTLAST_S = 15.0


def outlast(write: Callable[[], _T]) -> _T:
    """Write, again when the server was away or ended the connection.

    Else a run whose last event met the restart of a server would say that it succeeded, and then that it failed. What
    had got through without an answer is written twice: that does no harm.

    Raises:
        Exception: The server stays away.
    """
    deadline = time.monotonic() + _OUTLAST_S
    while True:
        try:
            return write()
        except (*UNAVAILABLE, DatabaseUnavailable):
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)
