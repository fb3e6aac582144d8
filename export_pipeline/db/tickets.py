"""`export_run_tickets`: what one op of a run hands to the next."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from export_pipeline.db.pool import Database
from export_pipeline.errors import DatabaseError


class TicketStore:
    """Tickets by run, step and output.

    Args:
        database: Where our tables live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, run_id: str, step_key: str, output: str, ticket: Any) -> None:
        """Write a ticket; a step that runs again replaces its own."""
        with self._database.connect() as connection:
            connection.execute(
                "INSERT INTO export_pipeline.export_run_tickets (run_id, step_key, output, ticket)"
                " VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (run_id, step_key, output) DO UPDATE SET ticket = excluded.ticket, created_at = now()",
                [run_id, step_key, output, Jsonb(ticket)],
            )

    def get(self, run_id: str, step_key: str, output: str) -> Any:
        """Read a ticket.

        Raises:
            DatabaseError: There is none.
        """
        with self._database.connect() as connection:
            row = connection.execute(
                "SELECT ticket FROM export_pipeline.export_run_tickets"
                " WHERE run_id = %s AND step_key = %s AND output = %s",
                [run_id, step_key, output],
            ).fetchone()
        if row is None:
            raise DatabaseError(f"Step {step_key} of run {run_id} left no ticket.", hint="Retry the request.")
        return row[0]
