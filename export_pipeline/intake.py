"""The way in: what API and command line call to make, retry or cancel a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export_pipeline.db.data_types import DataTypeStore
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.db.run_queue import RunQueue
from export_pipeline.errors import InvalidRequest, WrongStatus
from export_pipeline.models import MAX_ID_LENGTH, REQUEST_ID_PATTERN, Actor, ExportRequest, NewRequest
from export_pipeline.plan import export_format, request_type, requested_types, require_profile
from export_pipeline.vault import recipients

_MAX_REASON = 1000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Requests that one requester may make in 24 hours; None means no limit.

    Attributes:
        for_oneself: About the requester's own data.
        for_others: About anybody else's, by operators.
    """

    for_oneself: int | None = None
    for_others: int | None = None


class Intake:
    """The use cases around a request's life before and after its run.

    Args:
        database: Our tables.
        limits: How many requests may be made.
        clear: Removes what a request left in the stores.
    """

    def __init__(
        self, database: Database, *, limits: Limits | None = None, clear: Callable[[str], None] = lambda _: None
    ) -> None:
        self._requests = RequestStore(database)
        self._data_types = DataTypeStore(database)
        self._queue = RunQueue(database)
        self._limits = limits or Limits()
        self._clear = clear

    def request(
        self,
        *,
        user_id: str,
        data_types: Sequence[str],
        actor: Actor,
        format: str = "json",
        kind: str = "custom",
        request_id: str | None = None,
        anonymize: str | None = None,
        idempotency_key: str | None = None,
        recipient: str | None = None,
    ) -> ExportRequest:
        """Write a request; the sensor starts its run, after its approval where a data type needs one.

        An identical request that is still open is returned instead of a second one.

        Args:
            user_id: Whose data.
            data_types: What to export; for a gdpr request everything is exported, whatever is listed.
            actor: Who asks.
            format: One of `ExportFormat`.
            kind: One of `RequestType`.
            request_id: An id of the caller's own; None makes one.
            anonymize: The anonymization profile that is applied; None asks for none.
            idempotency_key: Calls of one actor with the same key make one request.
            recipient: Public key (age or SSH) that alone opens the file; None seals it for this installation.

        Raises:
            InvalidRequest: Something is wrong with what was asked; nothing was written.
            WrongStatus: The idempotency key was used for another recipient; nothing was written.
            RateLimited: The requester made too many already; nothing was written.
        """
        chosen = requested_types(request_type(kind), data_types, self._data_types.all())
        require_profile(anonymize, chosen)
        new = NewRequest(
            user_id=_id(user_id, "user id"),
            requested_by=_id(actor.id, "id of the requester"),
            request_type=request_type(kind),
            data_types=tuple(config.data_type for config in chosen),
            format=export_format(format),
            request_id=None if request_id is None else _request_id(request_id),
            anonymize=anonymize or None,
            idempotency_key=None if idempotency_key is None else _id(idempotency_key, "idempotency key"),
            # An empty text is a mistake, and not the wish for a file that others can open.
            recipient=None if recipient is None else recipients.canonical(recipient),
        )
        own = new.user_id == new.requested_by
        made = self._requests.insert(new, actor, limit=self._limits.for_oneself if own else self._limits.for_others)
        if made.recipient != new.recipient:
            raise WrongStatus(
                "This idempotency key belongs to a request with another recipient.", hint="Take a new one."
            )
        return made

    def approve(self, request_id: str, actor: Actor, reason: str = "") -> ExportRequest:
        """Let a request go into the queue; see `RequestStore.approve`."""
        return self._requests.approve(request_id, actor, _reason(reason, needed=False))

    def reject(self, request_id: str, actor: Actor, reason: str) -> ExportRequest:
        """End a request that waits for approval; see `RequestStore.reject`."""
        return self._requests.reject(request_id, actor, _reason(reason))

    def extend(self, request_id: str, actor: Actor, reason: str) -> ExportRequest:
        """Move a due date once; see `RequestStore.extend`."""
        return self._requests.extend(request_id, actor, _reason(reason))

    def retry(self, request_id: str, actor: Actor) -> ExportRequest:
        """Put a failed or cancelled request back into the queue, as a new attempt.

        People may do so with a request about themselves as often as they may make one: each is a run.

        Raises:
            RequestNotFound, WrongStatus, TooManyRetries: See `RequestStore.retry`.
        """
        return self._requests.retry(request_id, actor, limit=self._limits.for_oneself)

    def cancel(self, request_id: str, actor: Actor) -> ExportRequest:
        """End a request that has no file yet, and interrupt its run.

        Raises:
            RequestNotFound, WrongStatus: See `RequestStore.cancel`.
        """
        cancelled = self._requests.cancel(request_id, actor)
        self._interrupt(cancelled)
        return cancelled

    def delete(self, request_id: str, actor: Actor) -> ExportRequest:
        """Remove the file and everything else that a request left in the stores; keep its row and its trail.

        The row goes first: killed in between, nobody can download, and the file is found by who looks after the store.

        Raises:
            RequestNotFound: There is none with this id.
            VaultError: A store cannot be used; call again.
        """
        deleted = self._requests.delete(request_id, actor)
        self._interrupt(deleted)
        self._clear(request_id)
        return deleted

    def _interrupt(self, request: ExportRequest) -> None:
        """A warm worker hears it at once; any other run is told by the sensor `reconcile_export_requests`."""
        if request.run_id:
            self._queue.cancel(request.run_id)


def _reason(value: str, *, needed: bool = True) -> str:
    if needed and not value.strip():
        raise InvalidRequest("A reason is needed.", hint="It stands in the audit trail: no personal data, please.")
    if len(value) > _MAX_REASON or "\0" in value:
        raise InvalidRequest(f"The reason has more than {_MAX_REASON} characters, or a NUL character.")
    return value


def _id(value: str, what: str) -> str:
    if not value.strip():
        raise InvalidRequest(f"The {what} is empty.")
    if len(value) > MAX_ID_LENGTH:
        raise InvalidRequest(f"The {what} has {len(value)} characters; {MAX_ID_LENGTH} is the limit.")
    if "\0" in value or not value.isprintable():
        raise InvalidRequest(f"The {what} holds control characters.")
    return value


def _request_id(value: str) -> str:
    if not REQUEST_ID_PATTERN.fullmatch(value):
        raise InvalidRequest(
            "The request id is not usable.", hint="Use 1 to 255 letters, digits, dashes and underscores."
        )
    return value
