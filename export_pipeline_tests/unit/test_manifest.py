"""The manifest: counts, hashes, the moment, and what is missing and why; nothing of anybody's data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from export_pipeline import manifest
from export_pipeline.collect.source import SnapshotInfo
from export_pipeline.collect.statements import Extract
from export_pipeline.models import ExportFormat, ExportRequest, RequestStatus
from export_pipeline.plan import ExportPlan, PlannedType

REQUEST = ExportRequest(
    request_id="request-1",
    user_id="canary-user",
    requested_by="canary-requester",
    request_type="gdpr",
    data_types=("clicks", "profile"),
    format="csv",
    status=RequestStatus.PROCESSING,
    requested_at=datetime(2026, 11, 24, 6, 0, tzinfo=timezone(timedelta(hours=1))),
    completed_at=None,
    file_url=None,
    error_message=None,
    attempt=1,
    run_id="run-1",
    anonymize=None,
)
SNAPSHOT = SnapshotInfo(id="10:12:11", taken_at=datetime(2026, 11, 24, 5, 1, tzinfo=UTC), lsn="0/1A2B")
MADE = datetime(2026, 11, 24, 5, 2, tzinfo=UTC)


def planned(data_type: str, **extract: Any) -> PlannedType:
    fields = {"schema": "app", "table": data_type, "columns": ("id", "at"), "user_id_column": "user_id", **extract}
    return PlannedType(
        data_type=data_type, title=data_type.capitalize(), extract=Extract(**fields), types=("bigint", "date")
    )


PLAN = ExportPlan(
    format=ExportFormat.CSV,
    types=(planned("profile", order_by=("id",)), planned("clicks", by_address=True), planned("notes")),
)


@pytest.fixture
def built(collected: Callable[..., Any]) -> dict[str, Any]:
    parts = collected({"clicks": (b"id\n1\n2\n", 2), "profile": (b"id\n", 0)}).parts
    return manifest.build(REQUEST, PLAN, parts, {"notes": "permission denied"}, SNAPSHOT, MADE)


def test_it_says_what_it_answers_and_which_moment_it_shows(built: dict[str, Any]) -> None:
    assert built["format_version"] == manifest.FORMAT_VERSION == 1
    assert (built["request_id"], built["request_type"], built["format"]) == ("request-1", "gdpr", "csv")
    assert built["requested_at"] == "2026-11-24T06:00:00+01:00"
    assert built["export_date"] == "2026-11-24T05:02:00+00:00"
    assert built["snapshot"] == {"id": "10:12:11", "taken_at": "2026-11-24T05:01:00+00:00", "lsn": "0/1A2B"}


def test_it_counts(built: dict[str, Any], collected: Callable[..., Any]) -> None:
    assert built["total_records"] == 2
    assert built["data_types"] == ["clicks", "profile"]
    assert [(part["data_type"], part["rows"], part["rows_in_snapshot"]) for part in built["parts"]] == [
        ("clicks", 2, 2),
        ("profile", 0, 0),
    ]


def test_each_part_can_be_checked_and_understood(built: dict[str, Any]) -> None:
    assert (
        built["parts"][1].items()
        >= {
            "data_type": "profile",
            "title": "Profile",
            "table": "app.profile",
            "columns": ["id", "at"],
            "column_types": ["bigint", "date"],
            "order_by": ["id"],
            "rows_in_snapshot": 0,
            "rows": 0,
            "bytes": 3,
            "sha256": hashlib.sha256(b"id\n").hexdigest(),
        }.items()
    )


def test_what_is_missing_is_named_with_its_reason(built: dict[str, Any]) -> None:
    assert built["not_exported"] == [{"data_type": "notes", "reason": "permission denied"}]


def test_it_is_json_and_names_nobody(built: dict[str, Any]) -> None:
    text = json.dumps(built)
    assert json.loads(text) == built
    assert "canary" not in text


def test_an_export_of_nothing() -> None:
    built = manifest.build(REQUEST, PLAN, [], {}, SNAPSHOT, MADE)
    assert (built["total_records"], built["parts"], built["data_types"], built["not_exported"]) == (0, [], [], [])


def test_a_source_that_hides_its_log_position() -> None:
    hidden = SnapshotInfo(id="1:1:", taken_at=MADE, lsn=None)
    assert manifest.build(REQUEST, PLAN, [], {}, hidden, MADE)["snapshot"]["lsn"] is None
