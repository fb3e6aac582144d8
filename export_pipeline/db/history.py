"""Requests that have ended, as housekeeping sees them: their rows stay, what runs left behind may go."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from psycopg import Connection

_ENDED = "status NOT IN ('awaiting_approval', 'pending', 'processing')"

#: Ids that no request has any more are the first to go, but not for their age: nobody knows it.
_OVERDUE = f"""
SELECT request_id FROM (
    SELECT request_id, ended_at, row_number() OVER (ORDER BY ended_at NULLS FIRST, request_id) AS place FROM (
        SELECT id AS request_id, coalesce(completed_at, requested_at) AS ended_at
        FROM unnest(%(request_ids)s::text[]) AS id
        LEFT JOIN export_pipeline.export_requests AS r ON r.request_id = id
        WHERE r.request_id IS NULL OR {_ENDED}
    ) AS ended
) AS ranked
WHERE place <= %(excess)s OR ended_at < now() - %(age)s
ORDER BY place
"""
#: As long as the row is held, no retry and no claim can begin; an audit row can be written all the same.
_HOLD = f"""
WITH ended AS (
    SELECT request_id FROM export_pipeline.export_requests
    WHERE request_id = ANY (%(request_ids)s) AND {_ENDED}
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id FROM unnest(%(request_ids)s::text[]) AS id
WHERE id IN (SELECT request_id FROM ended)
   OR NOT EXISTS (SELECT FROM export_pipeline.export_requests WHERE request_id = id)
"""
_TRACES = """
SELECT DISTINCT run_id FROM (
    SELECT run_id FROM export_pipeline.export_run_tickets WHERE created_at < now() - %(age)s
    UNION ALL
    SELECT run_id FROM export_pipeline.export_run_queue WHERE enqueued_at < now() - %(age)s
) AS traces
"""


def overdue(connection: Connection, request_ids: Sequence[str], *, age: timedelta, excess: int) -> list[str]:
    """Choose, of these requests, those whose runs may be forgotten; the one that ended first comes first.

    Args:
        connection: To our database.
        request_ids: Requests that still have runs.
        age: Those that ended longer ago are chosen.
        excess: So many are chosen in any case, if so many have ended.
    """
    chosen = {"request_ids": list(request_ids), "age": age, "excess": excess}
    return _texts(connection, _OVERDUE, chosen)


def hold(connection: Connection, request_ids: Sequence[str]) -> list[str]:
    """Keep requests that have ended from moving until the transaction ends.

    Returns:
        Those that are held now; not those that somebody else moves at this moment, or that are on their way.
    """
    return _texts(connection, _HOLD, {"request_ids": list(request_ids)})


def traces(connection: Connection, *, age: timedelta) -> list[str]:
    """Name the runs that left tickets or a place in the run queue longer ago than `age`."""
    return _texts(connection, _TRACES, {"age": age})


def forget(connection: Connection, run_ids: Sequence[str]) -> int:
    """Remove the tickets of runs, and their places in the run queue.

    Returns:
        Tickets that were removed.
    """
    connection.execute("DELETE FROM export_pipeline.export_run_queue WHERE run_id = ANY (%s)", [list(run_ids)])
    return connection.execute(
        "DELETE FROM export_pipeline.export_run_tickets WHERE run_id = ANY (%s)", [list(run_ids)]
    ).rowcount


def _texts(connection: Connection, statement: str, values: dict[str, Any]) -> list[str]:
    return [row[0] for row in connection.execute(statement.encode(), values)]
