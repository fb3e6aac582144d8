"""What goes over the wire, in the specification's names."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from export_pipeline.data_type_file import DataTypeFields
from export_pipeline.db.links import IssuedLink
from export_pipeline.db.listing import Listed
from export_pipeline.errors import DataTypeUnusable
from export_pipeline.models import (
    MAX_DATA_TYPES,
    MAX_ID_LENGTH,
    REQUEST_ID_PATTERN,
    AuditAction,
    DataTypeConfig,
    ExportFormat,
    RequestStatus,
    RequestType,
)
from export_pipeline.settings import Settings

_EXAMPLE_ID = "5d7f0f66-3f1c-4f9e-9f0b-6f4e3f0f8a51"
_EXAMPLE: dict[str, JsonValue] = {
    "request_id": _EXAMPLE_ID,
    "user_id": "user-0004",
    "requested_by": "user-0004",
    "request_type": "gdpr",
    "data_types": ["user_profile", "user_sessions"],
    "format": "json",
    "status": "completed",
    "requested_at": "2026-11-24T09:30:00Z",
    "completed_at": "2026-11-24T09:30:02Z",
    "due_at": "2026-12-24T09:30:00Z",
    "due_extension": None,
    "attempt": 1,
    "anonymize": None,
    "recipient": None,
    "decided_by": None,
    "decision_reason": None,
    "file_url": f"/api/exports/download/{_EXAMPLE_ID}",
    "error_message": None,
    "total_records": 812,
    "file_size_bytes": 90210,
}


def _printable(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("must be printable and not empty")
    return value


UserId = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH), AfterValidator(_printable)]
RequestId = Annotated[str, Field(pattern=f"^{REQUEST_ID_PATTERN.pattern}$")]
_TypeName = Annotated[str, Field(min_length=1, max_length=100)]
_Profile = Annotated[str, Field(min_length=1, max_length=100)]
#: A 16384-bit RSA key of SSH has 2,700 characters.
_PublicKey = Annotated[str, Field(min_length=1, max_length=4000)]


class Body(BaseModel):
    """What a caller sends: a misspelt field is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class RequestExport(Body):
    """What to export."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "user_id": "user-0004",
                    "data_types": ["user_sessions", "user_clicks"],
                    "format": "csv",
                    "request_type": "backup",
                }
            ]
        },
    )

    user_id: UserId = Field(description="Whose data.")
    data_types: list[_TypeName] = Field(
        max_length=MAX_DATA_TYPES, description="Names as in `GET /data-types`; a gdpr request gets them all."
    )
    format: ExportFormat = Field(ExportFormat.JSON, description="What the file is.")
    request_type: RequestType = Field(RequestType.BACKUP, description="Why it is made; gdpr goes first.")
    anonymize: _Profile | None = Field(None, description="Anonymization profile to apply.")
    recipient: _PublicKey | None = Field(
        None, description="Public key (age or SSH) that alone will open the file; null seals it for this installation."
    )


class Reason(Body):
    """Why; it stands in the audit trail, so no personal data."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "Ticket 4711"}]})

    reason: str = Field(min_length=1, max_length=1000)


class OptionalReason(Body):
    """Why, if there is something to say."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "Ticket 4711"}]})

    reason: str = Field("", max_length=1000)


class Requested(BaseModel):
    """A request that was made, or the same one that was open already."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": _EXAMPLE_ID,
                    "status": "pending",
                    "message": "Export request created. Its status is at status_url.",
                    "status_url": f"/api/exports/status/{_EXAMPLE_ID}",
                    "due_at": None,
                }
            ]
        }
    )

    request_id: str
    status: RequestStatus
    message: str
    status_url: str
    due_at: AwareDatetime | None = Field(description="By when the law wants an answer; gdpr requests only.")


class Export(BaseModel):
    """One export request."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    request_id: str
    user_id: str
    requested_by: str
    request_type: str
    data_types: list[str]
    format: str
    status: RequestStatus
    requested_at: AwareDatetime
    completed_at: AwareDatetime | None
    due_at: AwareDatetime | None = Field(description="By when the law wants an answer; gdpr requests only.")
    due_extension: str | None = Field(description="Why that was moved by two months; null when it was not.")
    attempt: int = Field(description="Runs so far.")
    anonymize: str | None
    recipient: str | None = Field(description="Public key that alone opens the file.")
    decided_by: str | None = Field(description="Who approved or rejected.")
    decision_reason: str | None
    file_url: str | None = Field(description="Where to get a link to the file; null when there is none.")
    error_message: str | None = Field(description="Why there is no file, or what is missing in it.")
    total_records: int | None
    file_size_bytes: int | None = Field(description="Of the file as it is delivered.")

    @classmethod
    def of(cls, listed: Listed, settings: Settings) -> Export:
        """Show a row; not where its file lies."""
        request = listed.request
        file_url = settings.address(f"/api/exports/download/{request.request_id}")
        values = {name: getattr(request, name, None) for name in cls.model_fields}
        return cls(
            **values
            | {
                "data_types": list(request.data_types),
                "file_url": file_url if listed.has_file else None,
                "total_records": listed.total_records,
                "file_size_bytes": listed.file_size_bytes,
            }
        )


class History(BaseModel):
    """A person's exports, newest first."""

    user_id: str
    exports: list[Export]
    count: int


class Exports(BaseModel):
    """One page of exports, newest first."""

    exports: list[Export]
    count: int = Field(description="On this page.")
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class Download(BaseModel):
    """Where to fetch the file, for a while."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "download_url": f"/api/exports/files/{'A' * 96}",
                    "expires_in": 3600,
                    "link_id": "0123456789abcdef0123456789abcdef",
                }
            ],
        }
    )

    download_url: str
    expires_in: int = Field(description="Seconds.")
    link_id: str = Field(description="By which it is revoked; it opens nothing.")


class DownloadLink(BaseModel):
    """A download link; nothing here opens the file."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "link_id": "0123456789abcdef0123456789abcdef",
                    "issued_to": "user-0004",
                    "issued_at": "2026-11-24T09:31:00Z",
                    "expires_at": "2026-11-24T10:31:00Z",
                    "revoked_at": None,
                    "downloads": 1,
                    "works": True,
                }
            ]
        }
    )

    link_id: str
    issued_to: str
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    revoked_at: AwareDatetime | None = Field(description="Since when it opens nothing; null when nobody ended it.")
    downloads: int
    works: bool = Field(description="Whether it opens the file now.")

    @classmethod
    def of(cls, link: IssuedLink) -> DownloadLink:
        """Show a row."""
        works = link.revoked_at is None and not link.expired
        return cls(works=works, **{name: getattr(link, name) for name in cls.model_fields if name != "works"})


class DownloadLinks(BaseModel):
    """Download links of a request, newest first."""

    request_id: str
    links: list[DownloadLink]
    count: int = Field(description="Of those that are shown.")
    more: bool = Field(description="Whether there are older ones.")


class LinksRevoked(BaseModel):
    """Links were ended."""

    request_id: str
    revoked: int = Field(description="How many ended now.")


class Deleted(BaseModel):
    """The file is gone; row and trail stay."""

    message: str
    request_id: str
    status: RequestStatus


class DataType(BaseModel):
    """Something that can be asked for."""

    data_type: str
    title: str
    table_name: str
    is_sensitive: bool = Field(description="Asking for one's own needs a fresh verification.")
    requires_approval: bool = Field(description="Requests wait for an approver.")
    usable: bool = Field(description="False: its row is wrong, and `GET /data-types/{data_type}` says what.")

    @classmethod
    def of(cls, config: DataTypeConfig) -> DataType:
        """The part of the configuration that everybody may see."""
        shown = {name: getattr(config, name) for name in cls.model_fields if name != "usable"}
        return cls(**shown, usable=_is_usable(config))


def _is_usable(config: DataTypeConfig) -> bool:
    try:
        DataTypeFields.of(config)
    except DataTypeUnusable:
        return False
    return True


class DataTypes(BaseModel):
    """What can be asked for."""

    data_types: list[DataType]
    formats: list[ExportFormat]
    request_types: list[RequestType]


class DataTypeChanged(BaseModel):
    """What a change of the configuration did."""

    data_type: str
    changed: bool = Field(description="False when it was like that already.")


class AuditEntry(BaseModel):
    """One row of the trail."""

    log_id: int
    action: AuditAction | str
    timestamp: datetime
    actor: str
    ip_address: str | None
    user_agent: str | None
    detail: str


class AuditTrail(BaseModel):
    """What happened to a request, oldest first."""

    request_id: str
    entries: list[AuditEntry]
    count: int


class Manifest(BaseModel):
    """What the file says about itself; docs/FORMAT.md explains each field."""

    model_config = ConfigDict(extra="allow")

    format_version: int
    request_id: str
    total_records: int
    data_types: list[str]
    not_exported: list[dict[str, Any]]


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"] = "ok"
    version: str


class Ready(BaseModel):
    """Everything that a request needs is there."""

    status: Literal["ready", "not ready"]
    checks: dict[str, bool]


class Fault(BaseModel):
    """One thing that is wrong in what was sent."""

    pointer: str = Field(description="A JSON pointer into the body, or `query/…`, `path/…`, `header/…`.")
    detail: str


class Problem(BaseModel):
    """Why a call did not succeed (RFC 9457)."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:export-pipeline:problem:wrong-status",
                    "title": "The status does not allow this",
                    "status": 409,
                    "detail": "The request is completed.",
                }
            ]
        },
    )

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = Field(None, description="How to mend it.")
    errors: list[Fault] | None = None
    limit: int | None = Field(None, description="With 429: requests in 24 hours.")
    remaining: int | None = Field(None, description="With 429: what is left.")
    retry_after: int | None = Field(None, description="With 429: seconds.")
