"""The nouns that every room shares. Their names are those of the specification's tables and columns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

#: Ids and type names become storage keys, partition keys and file names: one alphabet serves them all.
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")
DATA_TYPE_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
MAX_ID_LENGTH = 255
MAX_DATA_TYPES = 1000


class RequestType(StrEnum):
    """Why the export is made."""

    GDPR = "gdpr"
    BACKUP = "backup"
    AUDIT = "audit"
    CUSTOM = "custom"


class ExportFormat(StrEnum):
    """What the delivered file is."""

    JSON = "json"
    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"
    PDF = "pdf"


class RequestStatus(StrEnum):
    """Where a request stands; `docs/architecture.md` draws the arrows."""

    AWAITING_APPROVAL = "awaiting_approval"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DELETED = "deleted"


class AuditAction(StrEnum):
    """Short codes for `export_audit_logs.action`."""

    REQUESTED = "export_requested"
    APPROVED = "export_approved"
    REJECTED = "export_rejected"
    DEADLINE_EXTENDED = "deadline_extended"
    DEADLINE_WARNED = "deadline_warned"
    VERIFIED = "verified"
    CLAIMED = "export_claimed"
    STARTED = "export_started"
    COMPLETED = "export_completed"
    PARTIAL = "export_partial"
    FAILED = "export_failed"
    RETRIED = "export_retried"
    REQUEUED = "export_requeued"
    CANCELLED = "export_cancelled"
    LINK_ISSUED = "export_link_issued"
    LINK_REVOKED = "export_link_revoked"
    DOWNLOADED = "export_downloaded"
    DELETED = "export_deleted"
    EXPIRED = "export_expired"
    FILE_REMOVED = "file_removed"
    FILE_MISSING = "file_missing"
    CONFIGURATION_CHANGED = "configuration_changed"
    KEY_ROTATED = "key_rotated"
    TOKEN_ISSUED = "token_issued"  # noqa: S105 - a code for the trail
    SIGNED_IN = "signed_in"
    SIGNED_OUT = "signed_out"
    REVOKED = "token_revoked"
    SIGN_IN_REFUSED = "sign_in_refused"
    VERIFICATION_REFUSED = "verification_refused"
    ACCESS_REFUSED = "access_refused"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One row of `export_requests`."""

    request_id: str
    user_id: str
    requested_by: str
    request_type: str
    data_types: tuple[str, ...]
    format: str
    status: RequestStatus
    requested_at: datetime
    completed_at: datetime | None
    file_url: str | None
    error_message: str | None
    attempt: int
    run_id: str | None
    anonymize: str | None = None
    due_at: datetime | None = None
    due_extension: str | None = None
    decided_by: str | None = None
    decision_reason: str | None = None
    recipient: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewRequest:
    """What a person asks for, before it is a row."""

    user_id: str
    requested_by: str
    request_type: RequestType
    data_types: tuple[str, ...]
    format: ExportFormat
    request_id: str | None = None
    anonymize: str | None = None
    idempotency_key: str | None = None
    recipient: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataTypeConfig:
    """One row of `data_type_configs`: where a data type lives in the source.

    Attributes:
        data_type: The name that people ask for.
        table_name: Table or view in the source, as ``table`` or ``schema.table``; SQL quoting is allowed in it.
        user_id_column: The column that holds the user's id.
        columns_to_export: The columns, in the order of the delivered file; empty means every column.
        is_sensitive: A request for it needs an additional verification.
        requires_approval: A request for it waits for an approver.
        order_by: Columns that give the rows their order; empty means the primary key.
        title: What the data type is called in front of people; empty means a title made from its name.
        anonymization: Profile → column → policy; `collect.policies` reads the policies. The profile ``always`` applies
            to every export.
        third_party: Columns that hold other people's data: pseudonyms in gdpr exports unless a policy says otherwise.
    """

    data_type: str
    table_name: str
    user_id_column: str = "user_id"
    columns_to_export: tuple[str, ...] = ()
    is_sensitive: bool = False
    requires_approval: bool = False
    order_by: tuple[str, ...] = ()
    title: str = ""
    anonymization: dict[str, dict[str, Any]] = field(default_factory=dict)
    third_party: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """One row of `export_metadata`: what the delivered file holds.

    Attributes:
        total_records: Rows in the file, over all data types.
        file_size_bytes: Size of the file as it is delivered.
        stored_size_bytes: Size of the sealed object in the store.
        sha256: Hex digest of the file as it is delivered.
        storage_key: Name of the sealed object in the store.
        content_encoding: ``gzip`` when what is sealed must be decompressed on delivery, ``age`` when the sealed object
            itself is delivered, to the one who can open it; else ``identity``.
        manifest: The manifest as in the file.
        sealed_for: Public key that opens the sealed object; None where nobody wrote it down.
        expires_at: When it can be fetched no more.
        removed_at: When the sealed object was removed.
        expired: Whether that moment was past, by the clock of our database, when this was read.
    """

    request_id: str
    user_id: str
    total_records: int
    data_types_included: tuple[str, ...]
    export_date: datetime
    file_size_bytes: int
    format: str
    stored_size_bytes: int
    sha256: str
    storage_key: str
    content_encoding: str
    manifest: dict[str, Any]
    sealed_for: str | None = None
    expires_at: datetime | None = None
    removed_at: datetime | None = None
    expired: bool = False


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who acts, for the audit trail. Ids only, never names."""

    id: str
    ip_address: str | None = None
    user_agent: str | None = None


SYSTEM = Actor(id="export-pipeline")
