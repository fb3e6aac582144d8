"""The housekeeping job in a running installation: old runs leave the UI, their requests and files stay."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from export_pipeline_tests.running import FINISHED, PATIENCE_S, Running

_SELECTOR = {"repositoryLocationName": "export_pipeline", "repositoryName": "__repository__"}


def test_an_old_run_goes_and_its_request_stays(running: Running) -> None:
    old, new = (running.insert(data_types=["user_clicks"]) for _ in range(2))
    for request_id in (old, new):
        assert running.wait(request_id).status == "completed"
        assert len(running.finished_runs(request_id)) == 1
    with psycopg.connect(running.stack.services.database_url) as connection:
        connection.execute(
            "UPDATE export_pipeline.export_requests SET completed_at = now() - interval '15 days'"
            " WHERE request_id = %s",
            [old],
        )
    shown = run_housekeeping(running)
    assert shown["partitions"] >= 1
    assert shown["runs"] >= 1
    assert shown["events"] >= 20
    assert shown["tickets"] >= 3
    assert running.runs(old) == []
    assert len(running.runs(new)) == 1
    assert old not in partitions(running)
    assert new in partitions(running)
    assert running.file(old)
    assert "export_completed" in [entry.action for entry in running.stack.services.requests.trail(old)]


@pytest.mark.parametrize("name", ["prune_finished_requests", "purge_expired_hourly", "warn_deadlines_hourly"])
def test_it_runs_by_itself(running: Running, name: str) -> None:
    found = running.graphql(
        """query($selector: ScheduleSelector!) { scheduleOrError(scheduleSelector: $selector) { ... on Schedule {
             cronSchedule scheduleState { status } } } }""",
        selector={**_SELECTOR, "scheduleName": name},
    )["scheduleOrError"]
    assert found["scheduleState"]["status"] == "RUNNING"
    assert found["cronSchedule"].split()[1:] == ["*"] * 4, "every hour"


def test_the_sensor_shows_the_queue(running: Running) -> None:
    running.wait(running.insert(data_types=["user_clicks"]))
    found = running.graphql(
        """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) { ... on Sensor {
             sensorState { typeSpecificData { ... on SensorData { lastCursor } } ticks(limit: 1) { cursor } } } } }""",
        selector={**_SELECTOR, "sensorName": "new_export_requests"},
    )["sensorOrError"]["sensorState"]
    assert "pending," in found["typeSpecificData"]["lastCursor"]


def run_housekeeping(running: Running) -> dict[str, int]:
    """Launch the job as the UI does; gives the op's metadata."""
    launched = running.graphql(
        """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
             __typename ... on LaunchRunSuccess { run { runId } } } }""",
        params={"selector": {**_SELECTOR, "pipelineName": "housekeeping"}, "runConfigData": {}},
    )["launchPipelineExecution"]
    run_id = launched["run"]["runId"]
    deadline = time.monotonic() + PATIENCE_S
    while (run := run_of(running, run_id))["status"] not in FINISHED:
        assert time.monotonic() < deadline, run
        time.sleep(0.2)  # Dagster has nothing that could be waited for from outside
    assert run["status"] == "SUCCESS"
    entries = [entry for event in run["eventConnection"]["events"] for entry in event.get("metadataEntries", [])]
    return {entry["label"]: entry["intValue"] for entry in entries if "intValue" in entry}


def run_of(running: Running, run_id: str) -> dict[str, Any]:
    return running.graphql(
        """query($run: ID!) { runOrError(runId: $run) { ... on Run { status eventConnection(limit: 1000) { events {
             ... on ExecutionStepOutputEvent { metadataEntries { label ... on IntMetadataEntry { intValue }}}}}}}}""",
        run=run_id,
    )["runOrError"]


def partitions(running: Running) -> set[str]:
    """What the UI's partition page asks for."""
    found = running.graphql(
        """query($selector: RepositorySelector!) { partitionSetOrError(repositorySelector: $selector,
             partitionSetName: "export_user_data_partition_set") { ... on PartitionSet { partitionsOrError {
             ... on Partitions { results { name } } } } } }""",
        selector=_SELECTOR,
    )
    return {result["name"] for result in found["partitionSetOrError"]["partitionsOrError"]["results"]}
