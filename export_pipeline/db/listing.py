"""Requests as people look at them: one, or page by page, with what their files hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from export_pipeline.db.pool import Database
from export_pipeline.errors import RequestNotFound
from export_pipeline.models import ExportRequest, RequestStatus

_NAMES = tuple(field.name for field in fields(ExportRequest))
_SELECT = f"""
SELECT {", ".join(f"r.{name}" for name in _NAMES)}, m.total_records, m.file_size_bytes, m.storage_key,
    m.expires_at <= now() AS over
FROM export_pipeline.export_requests AS r
LEFT JOIN export_pipeline.export_metadata AS m ON m.request_id = r.request_id
"""
#: By the newest; the id decides between two of one moment, so that the order is total.
_ORDER = "ORDER BY r.requested_at DESC, r.request_id DESC"
_AFTER = "(r.requested_at, r.request_id) < (%(requested_at)s, %(after_id)s)"
_FILTERS = ("status", "user_id", "request_type", "format")
_COUNTS = """
SELECT status, format, count(*) AS requests FROM export_pipeline.export_requests GROUP BY status, format
"""
_WITH_FILE = (RequestStatus.COMPLETED, RequestStatus.PARTIAL)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A request, and what its file holds.

    Attributes:
        request: The row.
        total_records: Rows in the file; None before there is one.
        file_size_bytes: Size of the delivered file.
        has_file: Whether it can be downloaded now.
        over: Whether it had a file whose time is over; the purge may not have been here yet.
    """

    request: ExportRequest
    total_records: int | None
    file_size_bytes: int | None
    has_file: bool
    over: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a page ended."""

    requested_at: datetime
    request_id: str

    @classmethod
    def of(cls, request: ExportRequest) -> Place:
        """The place of a row."""
        return cls(requested_at=request.requested_at, request_id=request.request_id)


@dataclass(frozen=True, kw_only=True)
class Count:
    """Requests of one status and format."""

    status: str
    format: str
    requests: int


class Listing:
    """Reads requests.

    Args:
        database: Where our tables live.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, request_id: str, *, user_id: str | None = None) -> Listed:
        """Read one request.

        Args:
            request_id: Which.
            user_id: Only when it is this person's, as if there were no other; None reads anybody's.

        Raises:
            RequestNotFound: There is none with this id.
        """
        where = "r.request_id = %(request_id)s" + (" AND r.user_id = %(user_id)s" if user_id is not None else "")
        found = self._read(f"{_SELECT} WHERE {where}", {"request_id": request_id, "user_id": user_id})
        if not found:
            raise RequestNotFound("There is no export request with this id.", hint="`export-pipeline list` shows them.")
        return found[0]

    def page(self, *, limit: int, after: Place | None = None, **filters: str | None) -> list[Listed]:
        """Read requests, newest first. Pages that follow each other show each row once, whatever is inserted meanwhile.

        Args:
            limit: At most so many.
            after: Where the page before ended; None begins.
            filters: Of `status`, `user_id`, `request_type`, `format`: what they must be; None is anything.
        """
        chosen = {name: value for name in _FILTERS if (value := filters.get(name)) is not None}
        conditions = [f"r.{name} = %({name})s" for name in chosen] + [_AFTER] * (after is not None)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        values: dict[str, Any] = {**chosen, "limit": limit}
        if after is not None:
            values |= {"requested_at": after.requested_at, "after_id": after.request_id}
        return self._read(f"{_SELECT} {where} {_ORDER} LIMIT %(limit)s", values)

    def counts(self) -> list[Count]:
        """Count requests by status and format. Reads every row: not for each call of anybody."""
        with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return [Count(**row) for row in cursor.execute(_COUNTS)]

    def _read(self, query: str, values: dict[str, Any]) -> list[Listed]:
        with self._database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return [_listed(row) for row in cursor.execute(query.encode(), values)]


def _listed(row: dict[str, Any]) -> Listed:
    values = {name: row[name] for name in _NAMES}
    status = RequestStatus(row["status"])
    values |= {"status": status, "data_types": tuple(row["data_types"] or ())}
    return Listed(
        request=ExportRequest(**values),
        total_records=row["total_records"],
        file_size_bytes=row["file_size_bytes"],
        has_file=status in _WITH_FILE and row["storage_key"] is not None and not row["over"],
        over=status in _WITH_FILE and bool(row["over"]),
    )
