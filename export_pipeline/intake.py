"""The way in: what API, command line and schedules call to make, retry or cancel a request."""

from __future__ import annotations

from collections.abc import Sequence

from export_pipeline.db.data_types import DataTypeStore
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import InvalidRequest
from export_pipeline.models import MAX_ID_LENGTH, REQUEST_ID_PATTERN, Actor, ExportRequest, NewRequest
from export_pipeline.plan import export_format, request_type, requested_types, require_profile


class Intake:
    """The use cases around a request's life before and after its run.

    Args:
        database: Our tables.
    """

    def __init__(self, database: Database) -> None:
        self._requests = RequestStore(database)
        self._data_types = DataTypeStore(database)

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
    ) -> ExportRequest:
        """Write a pending request; the sensor starts its run.

        Args:
            user_id: Whose data.
            data_types: What to export; for a gdpr request everything is exported, whatever is listed.
            actor: Who asks.
            format: One of `ExportFormat`.
            kind: One of `RequestType`.
            request_id: An id of the caller's own; None makes one.
            anonymize: The anonymization profile that is applied; None asks for none.

        Raises:
            InvalidRequest: Something is wrong with what was asked; nothing was written.
        """
        chosen = requested_types(request_type(kind), data_types, self._data_types.all())
        require_profile(anonymize, chosen)
        return self._requests.insert(
            NewRequest(
                user_id=_id(user_id, "user id"),
                requested_by=_id(actor.id, "id of the requester"),
                request_type=request_type(kind),
                data_types=tuple(config.data_type for config in chosen),
                format=export_format(format),
                request_id=None if request_id is None else _request_id(request_id),
                anonymize=anonymize or None,
            ),
            actor,
        )

    def retry(self, request_id: str, actor: Actor) -> ExportRequest:
        """Put a failed or cancelled request back into the queue, as a new attempt.

        Raises:
            RequestNotFound, WrongStatus: See `RequestStore.retry`.
        """
        return self._requests.retry(request_id, actor)

    def cancel(self, request_id: str, actor: Actor) -> ExportRequest:
        """End a request that has no file yet; its run, if there is one, ends at its next step.

        Raises:
            RequestNotFound, WrongStatus: See `RequestStore.cancel`.
        """
        return self._requests.cancel(request_id, actor)


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
