"""Stored files as our tables know them: when they expire, which key opens them, which may go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from export_pipeline.db.pool import Database
from export_pipeline.models import SYSTEM, Actor, AuditAction, RequestStatus

_AT_ONCE = 1000
_OPEN = (RequestStatus.AWAITING_APPROVAL, RequestStatus.PENDING, RequestStatus.PROCESSING)
_WITH_FILE = (RequestStatus.COMPLETED, RequestStatus.PARTIAL)

_DUE = """
SELECT request_id FROM export_pipeline.export_requests JOIN export_pipeline.export_metadata USING (request_id)
WHERE status IN ('completed', 'partial') AND expires_at <= now() AND removed_at IS NULL
ORDER BY expires_at, request_id LIMIT %(limit)s
"""
_EXPIRE = f"""
WITH due AS MATERIALIZED ({_DUE} FOR UPDATE OF export_requests SKIP LOCKED), moved AS (
    UPDATE export_pipeline.export_requests SET status = 'expired', file_url = NULL
    WHERE request_id = ANY (ARRAY(SELECT request_id FROM due)) AND status IN ('completed', 'partial')
    RETURNING request_id, user_id
), logged AS (
    INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor)
    SELECT request_id, user_id, %(action)s, %(actor)s FROM moved
)
SELECT request_id FROM moved ORDER BY request_id
"""
_STATES = """
SELECT request_id, status, storage_key, removed_at IS NOT NULL AS removed
FROM export_pipeline.export_requests LEFT JOIN export_pipeline.export_metadata USING (request_id)
WHERE request_id = ANY (%(request_ids)s)
"""
#: Files that should be there, and files that should be gone and are not known to be.
_TRACKED = """
SELECT request_id, status, storage_key, removed_at IS NOT NULL AS removed
FROM export_pipeline.export_requests JOIN export_pipeline.export_metadata USING (request_id)
WHERE removed_at IS NULL AND status IN ('completed', 'partial', 'expired', 'deleted') ORDER BY request_id
"""
_LOG = """
INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, detail)
SELECT request_id, user_id, %(action)s::text, %(actor)s, %(detail)s::text
FROM export_pipeline.export_requests WHERE request_id = %(request_id)s
"""
#: Said once for each file: the purge comes back every hour.
_MISSING = """
WITH still AS MATERIALIZED (
    SELECT request_id, r.user_id, 'The store has no ' || storage_key || '.' AS detail
    FROM unnest(%(request_ids)s::text[], %(storage_keys)s::text[]) AS asked (request_id, storage_key)
    JOIN export_pipeline.export_requests AS r USING (request_id)
    JOIN export_pipeline.export_metadata AS m USING (request_id, storage_key)
    WHERE status IN ('completed', 'partial') AND removed_at IS NULL
), logged AS (
    INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, detail)
    SELECT request_id, user_id, %(action)s::text, %(actor)s, detail FROM still
    WHERE NOT EXISTS (
        SELECT FROM export_pipeline.export_audit_logs AS said
        WHERE said.request_id = still.request_id AND said.action = %(action)s::text AND said.detail = still.detail)
)
SELECT request_id FROM still ORDER BY request_id
"""
_LOG_ROTATION = "INSERT INTO export_pipeline.export_audit_logs (action, actor, detail) VALUES (%s, %s, %s)"
_BY_KEY = """
SELECT coalesce(sealed_for, ''), count(*)
FROM export_pipeline.export_requests JOIN export_pipeline.export_metadata USING (request_id)
WHERE status IN ('completed', 'partial') AND removed_at IS NULL AND content_encoding <> 'age' GROUP BY 1
"""


@dataclass(frozen=True, kw_only=True)
class FileState:
    """What our tables say of a request's stored file.

    Attributes:
        status: Of the request.
        storage_key: Name of its file; None when it never had one.
        removed: Whether the file is known to be gone.
    """

    request_id: str
    status: str
    storage_key: str | None
    removed: bool

    @property
    def is_open(self) -> bool:
        """Whether a run may still come, or works: it clears what an earlier one left."""
        return self.status in _OPEN

    @property
    def has_file(self) -> bool:
        """Whether the file must be there."""
        return self.status in _WITH_FILE and not self.removed


class HeldRequest:
    """A request that no run works on as long as this is held.

    Args:
        connection: In whose transaction it is held.
        state: As it is now; None when our tables do not know it.
    """

    def __init__(self, connection: Connection, state: FileState | None) -> None:
        self._connection = connection
        self.state = state

    def removed(self, detail: str | None) -> None:
        """Write down that its file is gone for good, and in the trail with `detail`, unless it is None."""
        assert self.state is not None  # noqa: S101 - who has no row has no file to speak of
        request_id = self.state.request_id
        written = self._connection.execute(
            "UPDATE export_pipeline.export_metadata SET removed_at = now()"
            " WHERE request_id = %s AND removed_at IS NULL",
            [request_id],
        )
        if written.rowcount and detail is not None:
            self._connection.execute(_LOG, _entry(request_id, AuditAction.FILE_REMOVED, detail))


class FileStore:
    """Reads and moves what concerns stored files.

    Args:
        database: Where our tables live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def log_rotation(self, actor: Actor, detail: str) -> None:
        """Write into the trail that somebody made a new first key; `detail` names its public half and its use."""
        with self._database.connect() as connection:
            connection.execute(_LOG_ROTATION, [AuditAction.KEY_ROTATED.value, actor.id, detail])

    def by_key(self) -> dict[str, int]:
        """Count the stored files that each public key of ours opens; the key is empty where it is not known."""
        with self._database.connect() as connection:
            return dict(connection.execute(_BY_KEY).fetchall())

    def due(self) -> list[str]:
        """Name requests whose file has expired and that do not say so yet."""
        with self._database.connect() as connection:
            return [row[0] for row in connection.execute(_DUE, {"limit": None})]

    def expire(self) -> list[str]:
        """Make requests `expired` whose time has come, each with its audit row. From then on nobody gets the file."""
        expired: list[str] = []
        values = {"limit": _AT_ONCE, "action": AuditAction.EXPIRED.value, "actor": SYSTEM.id}
        while True:
            with self._database.connect() as connection:
                moved = [row[0] for row in connection.execute(_EXPIRE.encode(), values)]
            expired += moved
            if len(moved) < _AT_ONCE:
                return expired

    def tracked(self) -> list[FileState]:
        """Read every file that must be there, and every file that must go and is not known to be gone."""
        with self._database.connect() as connection, connection.cursor(row_factory=class_row(FileState)) as cursor:
            return cursor.execute(_TRACKED).fetchall()

    def states(self, request_ids: Sequence[str]) -> dict[str, FileState]:
        """Read what is known of some requests; who is not in the answer has no row."""
        with self._database.connect() as connection:
            return {state.request_id: state for state in _states(connection, request_ids)}

    @contextmanager
    def hold(self, request_id: str) -> Iterator[HeldRequest | None]:
        """Keep runs away from a request: they take the same lease. None when a run has it now."""
        with self._database.connect() as connection:
            row = connection.execute(
                "SELECT pg_try_advisory_xact_lock(export_pipeline.lease_key(%s))", [request_id]
            ).fetchone()
            if not (row and row[0]):
                yield None
                return
            yield HeldRequest(connection, next(iter(_states(connection, [request_id])), None))

    def missing(self, states: Sequence[FileState]) -> list[str]:
        """Write down, once for each, that files are not in the store though their requests have them.

        Returns:
            The requests of which that is still so: others may have moved on meanwhile.
        """
        still: list[str] = []
        for some in (states[first : first + _AT_ONCE] for first in range(0, len(states), _AT_ONCE)):
            values = {
                "request_ids": [state.request_id for state in some],
                "storage_keys": [state.storage_key for state in some],
                "action": AuditAction.FILE_MISSING.value,
                "actor": SYSTEM.id,
            }
            with self._database.connect() as connection:
                still += [row[0] for row in connection.execute(_MISSING, values)]
        return still


def _states(connection: Connection, request_ids: Sequence[str]) -> list[FileState]:
    with connection.cursor(row_factory=class_row(FileState)) as cursor:
        return cursor.execute(_STATES, {"request_ids": list(request_ids)}).fetchall()


def _entry(request_id: str, action: AuditAction, detail: str) -> dict[str, Any]:
    return {"request_id": request_id, "action": action.value, "actor": SYSTEM.id, "detail": detail}
