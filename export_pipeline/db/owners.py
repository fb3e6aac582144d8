"""Which run works on which request now."""

from __future__ import annotations

from export_pipeline.db.pool import Database


def owners(database: Database, request_ids: list[str]) -> dict[str, str]:
    """Read the runs that own these requests; one that nobody works on is left out.

    Args:
        database: Our tables.
        request_ids: Which requests.

    Returns:
        Request → run.

    Raises:
        DatabaseUnavailable: The server does not answer.
    """
    with database.connect() as connection:
        rows = connection.execute(
            "SELECT request_id, run_id FROM export_pipeline.export_requests"
            " WHERE request_id = ANY(%s) AND status = 'processing' AND run_id IS NOT NULL",
            [request_ids],
        ).fetchall()
    return dict(rows)
