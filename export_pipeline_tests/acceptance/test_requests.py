"""A plain INSERT becomes a file, or a clear reason."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator

import psycopg
import pytest

from export_pipeline import sample_source
from export_pipeline_tests.running import Running, source_rows

#: Asked for all at once at the beginning, so that runs overlap and each test waits only for its own.
SCENARIOS = {
    "heavy json": {"user_id": sample_source.HEAVY_USER, "request_type": "gdpr"},
    "hostile csv": {"user_id": sample_source.HOSTILE_USER, "request_type": "gdpr", "format": "csv"},
    "empty csv": {
        "user_id": sample_source.EMPTY_USER,
        "data_types": ["user_clicks", "user_profile", "user_clicks"],
        "format": "csv",
    },
    "unknown type": {"data_types": ["user_clicks", "nope"]},
    "no type": {"data_types": []},
    "null types": {"data_types": None},
    "bad format": {"data_types": ["user_clicks"], "format": "xml"},
    "bad request type": {"data_types": ["user_clicks"], "request_type": "party"},
    "unknown user": {"user_id": "nobody-canary-7", "data_types": ["user_clicks"]},
    "no table": {"data_types": ["no_table"]},
    "no column": {"data_types": ["no_column"]},
    "partial": {"data_types": ["user_clicks", "broken"]},
    "nothing works": {"data_types": ["broken"]},
}
#: The data types that cannot be exported are configured after the gdpr requests, which mean every data type, are done.
_LATER = ("no table", "no column", "partial", "nothing works")
_CONFIGS = """
INSERT INTO export_pipeline.data_type_configs (data_type, table_name, columns_to_export) VALUES
    ('no_table', 'not_there', '{user_id}'), ('no_column', 'users', '{user_id,not_there}'), ('broken', 'broken', '{}')
"""


@pytest.fixture(scope="module")
def asked(running: Running) -> Iterator[dict[str, str]]:
    """Scenario → request id."""
    ids = {name: running.insert(**columns) for name, columns in SCENARIOS.items() if name not in _LATER}
    for name in ("heavy json", "hostile csv"):
        running.wait(ids[name])
    with psycopg.connect(running.stack.services.database_url) as connection:
        connection.execute(_CONFIGS)
    ids |= {name: running.insert(**SCENARIOS[name]) for name in _LATER}
    yield ids
    for request_id in ids.values():
        running.wait(request_id)
    with psycopg.connect(running.stack.services.database_url) as connection:
        connection.execute(
            "DELETE FROM export_pipeline.data_type_configs WHERE data_type IN ('no_table', 'no_column', 'broken')"
        )


def test_a_plain_insert_is_completed_with_every_value(running: Running, asked: dict[str, str]) -> None:
    done = running.wait(asked["heavy json"])
    assert (done.status, done.error_message) == ("completed", None)
    document = json.loads(running.file(done.request_id))
    assert list(document) == ["user_id", "request_id", "export_date", "data", "metadata"]
    assert document["user_id"] == sample_source.HEAVY_USER
    assert set(document["data"]) == {
        "user_profile", "user_sessions", "user_clicks", "user_workflows", "user_errors", "user_feedback",
    }  # fmt: skip
    assert len(document["data"]["user_clicks"]) >= 200_000
    for data_type, rows in document["data"].items():
        assert rows == source_rows(running.stack.services, data_type, sample_source.HEAVY_USER), data_type
        part = next(part for part in document["metadata"]["parts"] if part["data_type"] == data_type)
        assert part["rows"] == part["rows_in_snapshot"] == len(rows)


def test_hostile_text_arrives_in_the_archive(running: Running, asked: dict[str, str]) -> None:
    done = running.wait(asked["hostile csv"])
    assert (done.status, done.error_message) == ("completed", None)
    with zipfile.ZipFile(io.BytesIO(running.file(done.request_id))) as archive:
        assert archive.testzip() is None
        with archive.open("user_errors.csv") as member:
            rows = list(csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline="")))
    expected = source_rows(running.stack.services, "user_errors", sample_source.HOSTILE_USER)
    unescaped = [row["error_message"].removeprefix("'") for row in rows]
    assert unescaped == [row["error_message"] or "" for row in expected]


def test_nothing_held_is_said_and_doubles_are_dropped(running: Running, asked: dict[str, str]) -> None:
    done = running.wait(asked["empty csv"])
    assert done.data_types == ("user_clicks", "user_profile")
    with zipfile.ZipFile(io.BytesIO(running.file(done.request_id))) as archive:
        assert archive.namelist() == ["user_clicks.csv", "user_profile.csv", "manifest.json"]
        assert archive.read("user_clicks.csv") == b"user_id,element_id,timestamp\n"


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("unknown type", "Unknown data type: nope"),
        ("no type", "No data type was asked for"),
        ("null types", "No data type was asked for"),
        ("bad format", "The format is unknown"),
        ("bad request type", "The request type is unknown"),
        ("unknown user", "knows this user id"),
        ("no table", "the source has no table not_there"),
        ("no column", "users has no column not_there"),
        ("nothing works", "No data type could be exported"),
    ],
)
def test_what_is_wrong_fails_with_its_reason(
    running: Running, asked: dict[str, str], scenario: str, reason: str
) -> None:
    done = running.wait(asked[scenario])
    assert done.status == "failed"
    assert reason in done.error_message
    services = running.stack.services
    assert [entry.action for entry in services.requests.trail(done.request_id)] == [
        "export_requested", "export_claimed", "export_started", "export_failed",
    ]  # fmt: skip
    assert services.requests.metadata(done.request_id) is None
    assert not services.vault().keys(done.request_id)
    assert not list((services.settings.home / "work").rglob(f"*{done.request_id}*"))
    assert [run["status"] for run in running.finished_runs(done.request_id)] == ["FAILURE"]


def test_what_the_source_refuses_is_named_in_file_and_status(running: Running, asked: dict[str, str]) -> None:
    done = running.wait(asked["partial"])
    assert done.status == "partial"
    assert "broken" in done.error_message
    document = json.loads(running.file(done.request_id))
    assert list(document["data"]) == ["user_clicks"]
    assert [missing["data_type"] for missing in document["metadata"]["not_exported"]] == ["broken"]


def test_one_row_is_one_partitioned_run(running: Running, asked: dict[str, str]) -> None:
    running.wait(asked["heavy json"])
    runs = running.finished_runs(asked["heavy json"])
    assert [run["status"] for run in runs] == ["SUCCESS"]
    partitions = running.graphql(
        """{ partitionSetsOrError(pipelineName: "export_user_data", repositorySelector:
             {repositoryLocationName: "export_pipeline", repositoryName: "__repository__"}) { ... on PartitionSets {
             results { partitionStatusesOrError { ... on PartitionStatuses {
             results { partitionName runStatus }}}}}}}"""
    )
    statuses = partitions["partitionSetsOrError"]["results"][0]["partitionStatusesOrError"]["results"]
    assert {"partitionName": asked["heavy json"], "runStatus": "SUCCESS"} in statuses


def test_ops_show_counts_in_the_ui(running: Running, asked: dict[str, str]) -> None:
    done = running.wait(asked["heavy json"])
    events = running.graphql(
        """query($run: ID!) { runOrError(runId: $run) { ... on Run { eventConnection(limit: 1000) { events {
             __typename ... on ExecutionStepOutputEvent { stepKey metadataEntries { label
             ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text }}}}}}}}""",
        run=done.run_id,
    )["runOrError"]["eventConnection"]["events"]
    shown = {
        event["stepKey"]: {
            entry["label"]: entry.get("intValue", entry.get("text")) for entry in event["metadataEntries"]
        }
        for event in events
        if event["__typename"] == "ExecutionStepOutputEvent"
    }
    clicks = shown["collect_data_type[user_clicks]"]
    assert clicks["rows"] >= 200_000
    assert {"rows", "bytes", "seconds", "format"} <= set(clicks)
