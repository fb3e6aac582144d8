"""Waiting for requests to end, by the notices that the tables send: no polling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg

from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import DatabaseUnavailable
from export_pipeline.models import ExportRequest, RequestStatus

#: A request in one of these moves on by itself.
ON_ITS_WAY = frozenset({RequestStatus.PENDING, RequestStatus.PROCESSING})
#: A notice can be lost with its connection; then the table is asked again after this time, in seconds.
_REASSURE_S = 5.0


def ended(request: ExportRequest) -> bool:
    """Whether a request does not move on by itself any more."""
    return request.status not in ON_ITS_WAY


def follow(
    database: Database,
    request_ids: list[str],
    *,
    timeout: float | None = None,
    until: Callable[[ExportRequest], bool] = ended,
) -> Iterator[ExportRequest]:
    """Yield the requests at the beginning and whenever one changes, until all are done or `timeout` is over.

    Args:
        database: Our tables.
        request_ids: Which requests.
        timeout: Seconds; None waits for ever.
        until: When a request is done.

    Raises:
        RequestNotFound: One does not exist.
        DatabaseUnavailable: The server went away.
    """
    store = RequestStore(database)
    deadline = time.monotonic() + timeout if timeout is not None else None
    seen: dict[str, ExportRequest] = {}
    with database.dedicated() as connection:
        connection.execute("LISTEN export_requests")
        while True:
            for request_id in request_ids:
                if (now := store.get(request_id)) != seen.get(request_id):
                    seen[request_id] = now
                    yield now
            left = None if deadline is None else deadline - time.monotonic()
            if all(map(until, seen.values())) or (left is not None and left <= 0):
                return
            _next_notice(connection, _REASSURE_S if left is None else min(left, _REASSURE_S))


def _next_notice(connection: psycopg.Connection, timeout: float) -> None:
    try:
        for _ in connection.notifies(timeout=timeout, stop_after=1):
            pass
    except psycopg.OperationalError:
        raise DatabaseUnavailable("Our database went away while waiting.", hint="Start it again.") from None
