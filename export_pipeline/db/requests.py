"""`export_requests`, `export_metadata` and their trail: every change of status is one guarded statement.

Each statement moves a request only from the statuses that allow the move, and writes the audit row in the same
statement. Nobody reads a status, decides, and writes: two writers at once can't both win.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from psycopg import Connection, Cursor
from psycopg.errors import UniqueViolation
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from export_pipeline.db.pool import Database
from export_pipeline.errors import (
    InvalidRequest,
    NotAllowed,
    RateLimited,
    RequestNotFound,
    RunNotEntitled,
    TooManyRetries,
    WrongStatus,
)
from export_pipeline.models import (
    SYSTEM,
    Actor,
    AuditAction,
    ExportMetadata,
    ExportRequest,
    NewRequest,
    RequestStatus,
)

_Row = TypeVar("_Row")

_COLUMNS = """request_id, user_id, requested_by, request_type, data_types, format, status, requested_at,
    completed_at, file_url, error_message, attempt, run_id, anonymize,
    due_at, due_extension, decided_by, decision_reason, recipient"""

#: One move of one request: `set` and `guard` are constants of this file, everything else is bound.
_MOVE = (
    """
WITH moved AS (
    UPDATE export_pipeline.export_requests SET {set}
    WHERE request_id = %(request_id)s AND {guard}
    RETURNING *
), logged AS (
    INSERT INTO export_pipeline.export_audit_logs
        (request_id, user_id, action, actor, ip_address, user_agent, detail)
    SELECT request_id, user_id, %(action)s, %(actor)s, %(ip_address)s, %(user_agent)s, %(detail)s FROM moved
)
SELECT """
    + _COLUMNS
    + " FROM moved"
)

#: A request of a type that needs approval and that nobody has decided on: cancelling it first and putting it back
#: afterwards must not be a way past the approver. `receive_request` of the migrations asks the same of a new one.
_UNDECIDED = """(decided_by IS NULL AND EXISTS (
    SELECT FROM export_pipeline.data_type_configs
    WHERE requires_approval AND (request_type = 'gdpr' OR data_type = ANY (data_types))))"""
#: Where a request goes that is put back.
_BACK = f"CASE WHEN {_UNDECIDED} THEN 'awaiting_approval' ELSE 'pending' END"

_CANCEL = "status = 'cancelled', completed_at = now(), error_message = 'Cancelled.'"
#: What was read of a stalled request is still so.
_AS_SEEN = "status = %(status)s AND attempt = %(attempt)s AND run_id IS NOT DISTINCT FROM %(run_id)s"

#: A week is time enough to look into a request that failed or waits, and to answer within the month.
DUE_SOON = timedelta(days=7)
_WARN_DUE = """
WITH near AS (
    UPDATE export_pipeline.export_requests SET warned_at = now()
    WHERE status IN ('awaiting_approval', 'pending', 'processing', 'failed')
      AND due_at < now() + %(within)s AND warned_at IS NULL
    RETURNING request_id, user_id, status, due_at
), logged AS (
    INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, detail)
    SELECT request_id, user_id, %(action)s, %(actor)s,
           'due ' || to_char(due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI"Z"')
    FROM near
)
SELECT request_id, status, due_at FROM near ORDER BY due_at, request_id
"""
_DEADLINES = """
SELECT count(*) FILTER (WHERE due_at < now()) AS overdue, count(*) FILTER (WHERE due_at >= now()) AS soon
FROM export_pipeline.export_requests
WHERE status IN ('awaiting_approval', 'pending', 'processing', 'failed') AND due_at < now() + %(within)s
"""
_TURN = """
SELECT pg_advisory_xact_lock(hashtextextended(%(requested_by)s, 20260103)),
       set_config('export_pipeline.ip_address', %(ip_address)s, true),
       set_config('export_pipeline.user_agent', %(user_agent)s, true)
"""
_SAME = f"""
SELECT {_COLUMNS} FROM export_pipeline.export_requests
WHERE (sameness = %(sameness)s AND %(request_id)s::text IS NULL
       AND status IN ('awaiting_approval', 'pending', 'processing'))
   OR (requested_by = %(requested_by)s AND idempotency_key = %(idempotency_key)s)
-- What the key was used for comes first.
ORDER BY idempotency_key IS NOT DISTINCT FROM %(idempotency_key)s DESC
LIMIT 1
"""
#: A key that found an identical request stands for that one from now on.
_KEEP_KEY = """
UPDATE export_pipeline.export_requests SET idempotency_key = %(key)s
WHERE request_id = %(same)s AND idempotency_key IS NULL
"""
#: Requests about oneself and about others have limits of their own, so each is counted by itself. The next one is
#: possible when so many have become old that fewer than the limit are left.
_LIMITING = """
SELECT ceil(extract(epoch FROM requested_at + interval '24 hours' - now()))::bigint AS retry_after_s
FROM export_pipeline.export_requests
WHERE requested_by = %(requested_by)s AND requested_at > now() - interval '24 hours'
  AND (user_id = requested_by) = (%(user_id)s = %(requested_by)s)
ORDER BY requested_at DESC OFFSET %(limit)s - 1 LIMIT 1
"""
#: A person's own retries of a request: each is a run, as each request is.
_RETRIES = """
FROM export_pipeline.export_audit_logs AS l
WHERE l.request_id = %(request_id)s AND l.action = 'export_retried' AND l.actor = %(actor)s
  AND l.timestamp > now() - interval '24 hours'
"""
_RETRY_LIMITING = f"""
SELECT ceil(extract(epoch FROM l.timestamp + interval '24 hours' - now()))::int AS retry_after_s
{_RETRIES} ORDER BY l.timestamp DESC OFFSET %(limit)s - 1 LIMIT 1
"""
_INSERT = f"""
INSERT INTO export_pipeline.export_requests
    (request_id, user_id, requested_by, request_type, data_types, format, anonymize, recipient, idempotency_key,
     sameness)
VALUES (coalesce(%(request_id)s, gen_random_uuid()::text), %(user_id)s, %(requested_by)s, %(request_type)s,
        %(data_types)s, %(format)s, %(anonymize)s, %(recipient)s, %(idempotency_key)s,
        CASE WHEN %(request_id)s::text IS NULL THEN %(sameness)s END)
RETURNING {_COLUMNS}
"""

#: Takes turns between users, so that nobody's thousand requests keep anybody's first one waiting; within a turn, and
#: among the requests of one user, what the law wants comes first. No more is claimed than can soon begin: the rest
#: waits here, where it can be ordered. Arrays and not joins: the planner can't know how few rows they hold, and would
#: read the whole table for them.
_CLAIM = """
WITH busy AS MATERIALIZED (
    SELECT user_id, count(*) AS runs FROM export_pipeline.export_requests
    WHERE status = 'processing' OR (status = 'pending' AND claimed_at IS NOT NULL)
    GROUP BY user_id
), waiting AS (
    SELECT request_id, requested_at, export_pipeline.priority(request_type) AS priority,
           coalesce(runs, 0) + row_number() OVER (
               PARTITION BY user_id ORDER BY export_pipeline.priority(request_type), requested_at, request_id) AS turn
    FROM export_pipeline.export_requests LEFT JOIN busy USING (user_id)
    WHERE status = 'pending' AND claimed_at IS NULL
), chosen AS MATERIALIZED (
    SELECT request_id, row_number() OVER (ORDER BY turn, priority, requested_at, request_id) AS place
    FROM waiting ORDER BY turn, priority, requested_at, request_id
    LIMIT least(%(limit)s, greatest(0, %(in_flight)s - (SELECT coalesce(sum(runs), 0) FROM busy)))
), open AS MATERIALIZED (
    SELECT request_id FROM export_pipeline.export_requests
    WHERE request_id = ANY (ARRAY(SELECT request_id FROM chosen)) AND status = 'pending' AND claimed_at IS NULL
    FOR UPDATE SKIP LOCKED
), claimed AS (
    -- Begins again after a million, as no more fits: one row must not fail the statement for all.
    UPDATE export_pipeline.export_requests SET claimed_at = now(), attempt = attempt %% 1000000 + 1
    WHERE request_id = ANY (ARRAY(SELECT request_id FROM open))
    RETURNING request_id, user_id, attempt
), logged AS (
    INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, detail)
    SELECT request_id, user_id, %(action)s, %(actor)s, 'attempt ' || attempt FROM claimed
)
SELECT request_id, attempt FROM claimed JOIN chosen USING (request_id) ORDER BY place
"""

_METADATA = """
SELECT *, coalesce(expires_at <= now(), false) AS expired FROM export_pipeline.export_metadata WHERE request_id = %s
"""

#: Reads only requests that are on their way.
_QUEUE = """
SELECT count(*) FILTER (WHERE status = 'pending' AND claimed_at IS NULL) AS pending,
       count(*) FILTER (WHERE status = 'pending' AND claimed_at IS NOT NULL) AS claimed,
       count(*) FILTER (WHERE status = 'processing') AS processing,
       greatest(0, coalesce(extract(epoch FROM now() - min(requested_at) FILTER (WHERE status = 'pending')), 0))::float8
           AS oldest_waiting_seconds
FROM export_pipeline.export_requests WHERE status IN ('pending', 'processing')
"""

#: A claimed request whose run has not begun, or a processing one whose run no longer holds its lease.
#: The lock is tried last and only on the rows that are old enough: the CTE keeps the planner from trying earlier.
_STALLED = """
WITH old AS MATERIALIZED (
    SELECT request_id, status, attempt, run_id FROM export_pipeline.export_requests
    -- What lies in the future was written by hand, and would never grow old.
    WHERE (status = 'pending' AND claimed_at NOT BETWEEN now() - %(grace)s AND now() + %(grace)s)
       OR (status = 'processing'
           AND coalesce(started_at, requested_at) NOT BETWEEN now() - %(grace)s / 4 AND now() + %(grace)s)
)
SELECT request_id, status, attempt, run_id FROM old
-- After a restart of the server the living need a moment to take their leases again.
WHERE pg_postmaster_start_time() <= now() - %(settle)s
  AND pg_try_advisory_xact_lock(export_pipeline.lease_key(request_id))
ORDER BY request_id
"""


#: Of some requests, those that have ended (or are gone) and on which nobody works.
_LEFT = """
WITH over AS MATERIALIZED (
    SELECT asked.request_id, coalesce(status, 'gone') AS status
    FROM unnest(%(request_ids)s::text[]) AS asked (request_id)
    LEFT JOIN export_pipeline.export_requests USING (request_id)
    WHERE status IS NULL OR status NOT IN ('pending', 'processing')
)
SELECT request_id, status FROM over
WHERE pg_postmaster_start_time() <= now() - %(settle)s
  AND pg_try_advisory_xact_lock(export_pipeline.lease_key(request_id))
"""
#: Cancelled or deleted: now, or since this run began it, though it may have been put back meanwhile.
_WITHDRAWN = """
SELECT status IN ('cancelled', 'deleted') OR EXISTS (
    SELECT FROM export_pipeline.export_audit_logs AS begun
    JOIN export_pipeline.export_audit_logs AS ended USING (request_id)
    WHERE request_id = %(request_id)s AND begun.action = 'export_started' AND begun.detail = %(begun)s
      AND ended.action IN ('export_cancelled', 'export_deleted') AND ended.log_id > begun.log_id)
FROM export_pipeline.export_requests WHERE request_id = %(request_id)s
"""
#: Of some runs, those whose request was cancelled or deleted under them.
_WITHDRAWN_RUNS = """
SELECT run_id FROM export_pipeline.export_requests
WHERE request_id = ANY (%(request_ids)s) AND status IN ('cancelled', 'deleted') AND run_id = ANY (%(run_ids)s)
"""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A request that the sensor took, and the attempt that its run will be."""

    request_id: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """How much is on its way.

    Attributes:
        pending: Requests that wait to be claimed.
        claimed: Requests whose run was asked for and has not begun.
        processing: Requests whose run works.
        oldest_waiting_seconds: Since the oldest pending or claimed request was made; 0 when none waits.
    """

    pending: int
    claimed: int
    processing: int
    oldest_waiting_seconds: float


@dataclass(frozen=True, kw_only=True)
class DueRequest:
    """A request whose due date is near."""

    request_id: str
    status: str
    due_at: datetime


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How many requests without a file are to be answered by a date.

    Attributes:
        overdue: The date is past.
        soon: The date is near.
    """

    overdue: int
    soon: int


@dataclass(frozen=True, kw_only=True)
class StalledRequest:
    """A request that says it is on its way while nobody works on it."""

    request_id: str
    status: RequestStatus
    attempt: int
    run_id: str | None


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One row of `export_audit_logs`."""

    log_id: int
    request_id: str | None
    user_id: str | None
    action: str
    timestamp: datetime
    ip_address: str | None
    user_agent: str | None
    actor: str
    detail: str


class RequestStore:
    """The life of export requests.

    Args:
        database: Where our tables live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- reading

    def get(self, request_id: str) -> ExportRequest:
        """Read one request.

        Raises:
            RequestNotFound: There is none with this id.
        """
        with self._database.connect() as connection:
            return _get(connection, request_id)

    def search(self, *, status: str | None = None, user_id: str | None = None, limit: int = 50) -> list[ExportRequest]:
        """Read requests, newest first."""
        query = f"""
            SELECT {_COLUMNS} FROM export_pipeline.export_requests
            WHERE (%(status)s::text IS NULL OR status = %(status)s)
              AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s)
            ORDER BY requested_at DESC, request_id LIMIT %(limit)s"""
        with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(query, {"status": status, "user_id": user_id, "limit": limit})
            return [_request(row) for row in cursor]

    def metadata(self, request_id: str) -> ExportMetadata | None:
        """Read what the delivered file of a request holds; None before there is one."""
        with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(_METADATA, [request_id])
            row = cursor.fetchone()
        return (
            ExportMetadata(**{**row, "data_types_included": tuple(row["data_types_included"] or ())}) if row else None
        )

    def completed_by(self, request_id: str, run_id: str) -> ExportRequest | None:
        """Read a request whose file this run has published; None when it has not, or the file is gone again."""
        query = f"""
            SELECT {_COLUMNS} FROM export_pipeline.export_requests
            WHERE request_id = %s AND run_id = %s AND status IN ('completed', 'partial')"""
        with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(query, [request_id, run_id]).fetchone()
        return _request(row) if row else None

    def used(self, idempotency_key: str, requested_by: str) -> bool:
        """Whether a requester made a request with this key already."""
        query = "SELECT FROM export_pipeline.export_requests WHERE requested_by = %s AND idempotency_key = %s"
        with self._database.connect() as connection:
            return connection.execute(query, [requested_by, idempotency_key]).fetchone() is not None

    def queue(self) -> QueueState:
        """Count what is on its way."""
        with (
            self._database.connect() as connection,
            connection.cursor(row_factory=class_row(QueueState)) as cursor,
        ):
            return _only(cursor.execute(_QUEUE).fetchone())

    def deadlines(self, within: timedelta) -> Deadlines:
        """Count requests without a file whose due date is past, or not further away than `within`."""
        with self._database.connect() as connection, connection.cursor(row_factory=class_row(Deadlines)) as cursor:
            return _only(cursor.execute(_DEADLINES, {"within": within}).fetchone())

    def trail(self, request_id: str) -> list[AuditEntry]:
        """Read the audit rows of a request, oldest first."""
        with (
            self._database.connect() as connection,
            connection.cursor(row_factory=class_row(AuditEntry)) as cursor,
        ):
            cursor.execute(
                "SELECT * FROM export_pipeline.export_audit_logs WHERE request_id = %s ORDER BY log_id",
                [request_id],
            )
            return cursor.fetchall()

    # --- the way in

    def insert(self, new: NewRequest, actor: Actor, *, limit: int | None = None) -> ExportRequest:
        """Write a request; the table's triggers write its audit row in the same transaction.

        An identical request that is still open, or one with the same idempotency key, is returned instead.

        Args:
            new: What is asked.
            actor: Who asks.
            limit: Requests that the requester may make in 24 hours about themselves, or about others, whichever this
                one is; None means no limit.

        Raises:
            InvalidRequest: The id is taken.
            RateLimited: The limit is reached; nothing was written.
        """
        try:
            with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
                # One requester's calls take turns: none of fifty at once counts before another has written.
                cursor.execute(_TURN, {"requested_by": new.requested_by, **_origin(actor)})
                if same := cursor.execute(_SAME, _values(new)).fetchone():
                    if new.idempotency_key is not None:
                        cursor.execute(_KEEP_KEY, {"key": new.idempotency_key, "same": same["request_id"]})
                    return _request(same)
                if limit is not None:
                    _limit(cursor, new, limit)
                return _request(_only(cursor.execute(_INSERT, _values(new)).fetchone()))
        except UniqueViolation:
            raise InvalidRequest("A request with this id exists already.", hint="Leave the id out.") from None

    def approve(self, request_id: str, actor: Actor, reason: str = "") -> ExportRequest:
        """Let a request go into the queue.

        Raises:
            RequestNotFound: There is none with this id.
            WrongStatus: It does not wait for approval.
            NotAllowed: The actor asked for it, or is the person whose data it is.
        """
        return self._decide(request_id, actor, reason, status=RequestStatus.PENDING, action=AuditAction.APPROVED)

    def reject(self, request_id: str, actor: Actor, reason: str) -> ExportRequest:
        """End a request that waits for approval, with a reason.

        Raises:
            RequestNotFound, WrongStatus, NotAllowed: As for `approve`.
        """
        return self._decide(request_id, actor, reason, status=RequestStatus.REJECTED, action=AuditAction.REJECTED)

    def extend(self, request_id: str, actor: Actor, reason: str) -> ExportRequest:
        """Move the due date of a gdpr request by two months, once (article 12(3) of the GDPR), with a reason.

        Raises:
            RequestNotFound: There is none with this id.
            WrongStatus: It has no due date, was extended before, or has ended.
        """
        return self._move(
            request_id,
            set="due_at = due_at + interval '2 months', due_extension = %(reason)s",
            guard="due_at IS NOT NULL AND due_extension IS NULL"
            " AND status IN ('awaiting_approval', 'pending', 'processing', 'failed')",
            action=AuditAction.DEADLINE_EXTENDED,
            actor=actor,
            detail=reason,
            reason=reason,
        )

    def warn_due(self, within: timedelta) -> list[DueRequest]:
        """Take down, once for each due date, that it is near (or past) and the request has no file yet.

        Args:
            within: How near.

        Returns:
            The requests that were warned about now, the most urgent first.
        """
        with (
            self._database.connect() as connection,
            connection.cursor(row_factory=class_row(DueRequest)) as cursor,
        ):
            cursor.execute(
                _WARN_DUE, {"within": within, "action": AuditAction.DEADLINE_WARNED.value, "actor": SYSTEM.id}
            )
            return cursor.fetchall()

    def delete(self, request_id: str, actor: Actor) -> ExportRequest:
        """Leave only the tombstone of a request: its row and its trail. Deleting twice is harmless.

        The caller removes the file afterwards; from now on nobody can download it.

        Raises:
            RequestNotFound: There is none with this id.
        """
        try:
            return self._move(
                request_id,
                set="status = 'deleted', file_url = NULL, error_message = NULL, claimed_at = NULL,"
                " completed_at = coalesce(completed_at, now())",
                guard="status <> 'deleted'",
                action=AuditAction.DELETED,
                actor=actor,
            )
        except WrongStatus:
            return self.get(request_id)

    def _decide(
        self, request_id: str, actor: Actor, reason: str, *, status: RequestStatus, action: AuditAction
    ) -> ExportRequest:
        try:
            return self._move(
                request_id,
                set="status = %(status)s::text, decided_by = %(actor)s, decision_reason = %(reason)s,"
                " completed_at = CASE WHEN %(status)s::text = 'rejected' THEN now() END",
                guard="status = 'awaiting_approval' AND requested_by <> %(actor)s AND user_id <> %(actor)s",
                action=action,
                actor=actor,
                detail=reason,
                status=status.value,
                reason=reason,
            )
        except WrongStatus:
            if self.get(request_id).status is RequestStatus.AWAITING_APPROVAL:
                raise NotAllowed("Somebody else must decide: not the requester, not the person.") from None
            raise

    def retry(self, request_id: str, actor: Actor, *, limit: int | None = None) -> ExportRequest:
        """Put a failed or cancelled request back into the queue; its next run is a new attempt.

        One that needs approval and was never decided on waits for it again.

        Args:
            request_id: The request.
            actor: Who wants it.
            limit: How often in 24 hours the person whose data it is may; None means no limit.

        Raises:
            RequestNotFound: There is none with this id.
            WrongStatus: It has not failed, or an identical request is open.
            TooManyRetries: The limit is reached.
        """
        try:
            return self._move(
                request_id,
                set=f"status = {_BACK}, claimed_at = NULL, completed_at = NULL, error_message = NULL",
                guard="status IN ('failed', 'cancelled') AND (user_id <> %(actor)s OR %(limit)s::int IS NULL"
                f" OR (SELECT count(*) {_RETRIES}) < %(limit)s)",
                action=AuditAction.RETRIED,
                actor=actor,
                limit=limit,
            )
        except WrongStatus:
            if limit is not None:
                self._limit_retries(request_id, actor, limit)
            raise

    def _limit_retries(self, request_id: str, actor: Actor, limit: int) -> None:
        """Say that it was the limit, where it was."""
        found = self.get(request_id)
        if found.user_id != actor.id or found.status not in (RequestStatus.FAILED, RequestStatus.CANCELLED):
            return
        asked = {"request_id": request_id, "actor": actor.id, "limit": limit}
        with self._database.connect() as connection:
            last_within = connection.execute(_RETRY_LIMITING, asked).fetchone()
        if last_within:
            raise TooManyRetries(limit=limit, retry_after_s=max(1, last_within[0]))

    def cancel(self, request_id: str, actor: Actor, *, run_id: str | None = None, detail: str = "") -> ExportRequest:
        """End a request that has no file yet. With `run_id`, only when that run owns it.

        Raises:
            RequestNotFound: There is none with this id.
            WrongStatus: It has ended, or another run owns it.
        """
        return self._move(
            request_id,
            set=_CANCEL,
            guard="status IN ('awaiting_approval', 'pending', 'processing')"
            " AND (%(run_id)s::text IS NULL OR run_id = %(run_id)s)",
            action=AuditAction.CANCELLED,
            actor=actor,
            detail=detail,
            run_id=run_id,
        )

    # --- the sensor

    def claim(self, limit: int, *, in_flight: int = 1_000_000) -> list[Claim]:
        """Take open requests: users take turns, then gdpr before backup, then the oldest first; in that order.

        Sensors that claim at the same time get different rows.

        Args:
            limit: At most so many now.
            in_flight: At most so many that are claimed or processing in all.
        """
        with (
            self._database.connect() as connection,
            connection.cursor(row_factory=class_row(Claim)) as cursor,
        ):
            cursor.execute(
                _CLAIM,
                {"limit": limit, "in_flight": in_flight, "action": AuditAction.CLAIMED.value, "actor": SYSTEM.id},
            )
            return cursor.fetchall()

    def stalled(self, *, grace: timedelta, settle: timedelta = timedelta(0)) -> list[StalledRequest]:
        """Find requests that nobody works on: no run holds the lease.

        Args:
            grace: Time from the claim to the run's first step. A quarter of it serves for requests that are processing:
                their run held the lease before it said so.
            settle: Time after a start of the database in which runs take their leases again; nothing is found before.
        """
        with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(_STALLED, {"grace": grace, "settle": settle})
            return [StalledRequest(**{**row, "status": RequestStatus(row["status"])}) for row in cursor]

    def left(self, request_ids: Sequence[str], *, settle: timedelta = timedelta(0)) -> dict[str, str]:
        """Say which of these requests have ended and are worked on by nobody.

        Args:
            request_ids: Which requests.
            settle: As for `stalled`.

        Returns:
            Request → status, or `gone` where there is no such row.
        """
        with self._database.connect() as connection:
            return dict(connection.execute(_LEFT, {"request_ids": list(request_ids), "settle": settle}).fetchall())

    def withdrawn(self, request_id: str, run_id: str) -> bool:
        """Say whether a request was cancelled or deleted while it was this run's, or before the run had begun it."""
        with self._database.connect() as connection:
            values = {"request_id": request_id, "begun": _begun(run_id)}
            row = connection.execute(_WITHDRAWN, values).fetchone()
        return bool(row and row[0])

    def withdrawn_runs(self, runs: Mapping[str, str]) -> set[str]:
        """Say which runs work for a request that was cancelled or deleted.

        Args:
            runs: Run → its request.
        """
        values = {"request_ids": list(runs.values()), "run_ids": list(runs)}
        with self._database.connect() as connection:
            return {row[0] for row in connection.execute(_WITHDRAWN_RUNS, values)}

    def requeue(self, stalled: StalledRequest, *, max_attempts: int, detail: str) -> ExportRequest:
        """Return a stalled request to the queue, or fail it when its attempts are spent.

        One that needs approval and was never decided on waits for it, as after `retry`.

        Raises:
            WrongStatus: It moved on meanwhile.
        """
        spent = stalled.attempt >= max_attempts
        message = (
            f"The run ended unexpectedly {stalled.attempt} times. Look at the run in Dagster, then retry the request."
        )
        return self._move(
            stalled.request_id,
            set="status = 'failed', completed_at = now(), claimed_at = NULL, error_message = %(message)s"
            if spent
            else f"status = {_BACK}, claimed_at = NULL, started_at = NULL",
            guard=_AS_SEEN,
            action=AuditAction.FAILED if spent else AuditAction.REQUEUED,
            actor=SYSTEM,
            detail=detail,
            status=stalled.status.value,
            attempt=stalled.attempt,
            run_id=stalled.run_id,
            message=message,
        )

    def cancel_stalled(self, stalled: StalledRequest, *, detail: str) -> ExportRequest:
        """End a stalled request whose run a person terminated.

        Raises:
            WrongStatus: It moved on meanwhile: a person may have put it back already.
        """
        return self._move(
            stalled.request_id,
            set=_CANCEL,
            guard=_AS_SEEN,
            action=AuditAction.CANCELLED,
            actor=SYSTEM,
            detail=detail,
            status=stalled.status.value,
            attempt=stalled.attempt,
            run_id=stalled.run_id,
        )

    # --- the run

    def start(self, request_id: str, run_id: str, *, reopen: bool) -> ExportRequest:
        """Give a request to a run, once. Calling again for the same run is harmless.

        Args:
            request_id: The request.
            run_id: The Dagster run.
            reopen: Whether this run may take up a request that failed or was cancelled: a re-execution that a
                person asked for may, a run that waited in the queue while the request was cancelled may not.

        Raises:
            RequestNotFound: There is none with this id.
            RunNotEntitled: The request has ended, or another run owns it; or it was never approved.
        """
        with suppress(RunNotEntitled):
            return self.owned(request_id, run_id)
        try:
            return self._move(
                request_id,
                set="status = 'processing', run_id = %(run_id)s, started_at = now(), claimed_at = NULL,"
                " completed_at = NULL, error_message = NULL, attempt = greatest(attempt, 1)"
                " + CASE WHEN status IN ('failed', 'cancelled') THEN 1 ELSE 0 END",
                guard="(status = 'pending'"
                f" OR (%(reopen)s AND status IN ('failed', 'cancelled') AND NOT {_UNDECIDED}))",
                action=AuditAction.STARTED,
                actor=SYSTEM,
                detail=_begun(run_id),
                run_id=run_id,
                reopen=reopen,
            )
        except WrongStatus as error:
            raise _not_entitled(error.message) from None

    def owned(self, request_id: str, run_id: str) -> ExportRequest:
        """Read a request that this run has started.

        Raises:
            RequestNotFound: There is none with this id.
            RunNotEntitled: It is not this run's any more: it has ended, or went back into the queue.
        """
        found = self.get(request_id)
        if found.status is not RequestStatus.PROCESSING or found.run_id != run_id:
            raise _not_entitled(_stands(found))
        return found

    def complete(
        self,
        metadata: ExportMetadata,
        *,
        run_id: str,
        file_url: str,
        partial: str,
        retention: timedelta = timedelta(days=7),
    ) -> ExportRequest:
        """Publish the file of a request: metadata, status and audit row in one transaction.

        Args:
            metadata: What the file holds.
            run_id: The run that made it; only the owner may complete.
            file_url: Where the sealed object lies.
            partial: Empty, or one sentence that names what was asked for and is not in the file.
            retention: How long the file can be fetched from now on.

        Raises:
            RunNotEntitled: Another run owns the request by now.
        """
        with self._database.connect() as connection:
            moved = _move(
                connection,
                metadata.request_id,
                set="status = %(status)s, completed_at = now(), file_url = %(file_url)s,"
                " error_message = nullif(%(partial)s, ''), data_types = %(data_types)s",
                guard="status = 'processing' AND run_id = %(run_id)s",
                action=AuditAction.PARTIAL if partial else AuditAction.COMPLETED,
                actor=SYSTEM,
                detail=f"run {run_id}, {metadata.total_records} records",
                status=(RequestStatus.PARTIAL if partial else RequestStatus.COMPLETED).value,
                file_url=file_url,
                partial=partial,
                run_id=run_id,
                data_types=_asked(metadata.manifest),
            )
            if moved is None:
                raise RunNotEntitled("Another run owns the request by now; this file was discarded.")
            if moved.completed_at is not None:
                metadata = replace(metadata, expires_at=moved.completed_at + retention)
            _write_metadata(connection, metadata)
            return moved

    def fail(self, request_id: str, *, run_id: str, message: str) -> None:
        """End a request with a reason. Does nothing when the run does not own it (any more)."""
        with self._database.connect() as connection:
            _move(
                connection,
                request_id,
                set="status = 'failed', completed_at = now(), error_message = %(message)s",
                guard="status = 'processing' AND run_id = %(run_id)s",
                action=AuditAction.FAILED,
                actor=SYSTEM,
                detail=f"run {run_id}",
                run_id=run_id,
                message=message,
            )

    def log(self, request_id: str, action: AuditAction, actor: Actor, detail: str = "") -> None:
        """Write an audit row that goes with no change of status, such as a download."""
        with self._database.connect() as connection:
            connection.execute(
                "INSERT INTO export_pipeline.export_audit_logs"
                " (request_id, user_id, action, actor, ip_address, user_agent, detail)"
                " SELECT request_id, user_id, %s, %s, %s, %s, %s"
                " FROM export_pipeline.export_requests WHERE request_id = %s",
                [action.value, actor.id, actor.ip_address, actor.user_agent, detail, request_id],
            )

    def _move(self, request_id: str, **move: Any) -> ExportRequest:
        try:
            with self._database.connect() as connection:
                moved = _move(connection, request_id, **move)
                if moved is None:
                    raise WrongStatus(_stands(_get(connection, request_id)))
                return moved
        except UniqueViolation:
            # Only one of identical requests is open at a time, and this one was not.
            raise WrongStatus(
                "An identical request is open already.", hint="Wait for that one, or cancel it first."
            ) from None


def _move(
    connection: Connection,
    request_id: str,
    *,
    set: str,
    guard: str,
    action: AuditAction,
    actor: Actor,
    detail: str = "",
    **values: Any,
) -> ExportRequest | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            _MOVE.format(set=set, guard=guard).encode(),
            {
                **values,
                "request_id": request_id,
                "action": action.value,
                "actor": actor.id,
                "ip_address": actor.ip_address,
                "user_agent": actor.user_agent,
                "detail": detail,
            },
        )
        row = cursor.fetchone()
    return _request(row) if row else None


def _get(connection: Connection, request_id: str) -> ExportRequest:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM export_pipeline.export_requests WHERE request_id = %s".encode(),
            [request_id],
        )
        row = cursor.fetchone()
    if row is None:
        raise RequestNotFound("There is no export request with this id.", hint="`export-pipeline list` shows them.")
    return _request(row)


def _stands(request: ExportRequest) -> str:
    return f"The request is {request.status.value.replace('_', ' ')}."


def _begun(run_id: str) -> str:
    """What the trail says of a run that takes up its request; later it is looked for."""
    return f"run {run_id}"


def _not_entitled(why: str) -> RunNotEntitled:
    return RunNotEntitled(
        f"This run may not work on the request: {why}",
        hint="Nothing is wrong with the run; use `export-pipeline retry` to export again.",
    )


def _request(row: dict[str, Any]) -> ExportRequest:
    return ExportRequest(
        **{**row, "status": RequestStatus(row["status"]), "data_types": tuple(row["data_types"] or ())}
    )


def _write_metadata(connection: Connection, metadata: ExportMetadata) -> None:
    """A retried request replaces the metadata of an earlier file."""
    values = {
        **{name: getattr(metadata, name) for name in metadata.__dataclass_fields__ if name != "expired"},
        "data_types_included": list(metadata.data_types_included),
        "manifest": Jsonb(metadata.manifest),
    }
    names: Sequence[str] = list(values)
    connection.execute(
        f"""INSERT INTO export_pipeline.export_metadata ({", ".join(names)})
            VALUES ({", ".join(f"%({name})s" for name in names)})
            ON CONFLICT (request_id) DO UPDATE
            SET {", ".join(f"{name} = excluded.{name}" for name in names)}""".encode(),
        values,
    )


def _asked(manifest: dict[str, Any]) -> list[str]:
    return [*manifest["data_types"], *(part["data_type"] for part in manifest["not_exported"])]


def _values(new: NewRequest) -> dict[str, Any]:
    asked = [new.user_id, new.requested_by, new.request_type.value, sorted(new.data_types), new.format.value]
    return {
        "request_id": new.request_id,
        "user_id": new.user_id,
        "requested_by": new.requested_by,
        "request_type": new.request_type.value,
        "data_types": list(new.data_types),
        "format": new.format.value,
        "anonymize": new.anonymize,
        "recipient": new.recipient,
        "idempotency_key": new.idempotency_key,
        "sameness": hashlib.sha256(json.dumps([*asked, new.anonymize, new.recipient]).encode()).hexdigest(),
    }


def _origin(actor: Actor) -> dict[str, str]:
    return {"ip_address": actor.ip_address or "", "user_agent": actor.user_agent or ""}


def _limit(cursor: Cursor[dict[str, Any]], new: NewRequest, limit: int) -> None:
    asked = {"requested_by": new.requested_by, "user_id": new.user_id, "limit": limit}
    if last_within := cursor.execute(_LIMITING, asked).fetchone():
        raise RateLimited(limit=limit, retry_after_s=max(1, last_within["retry_after_s"]))


def _only(row: _Row | None) -> _Row:
    if row is None:
        raise RuntimeError("a statement that always gives a row gave none")
    return row
