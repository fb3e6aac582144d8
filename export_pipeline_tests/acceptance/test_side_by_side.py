"""In Dagster's UI a run that a worker executed can't be told from one that Dagster launched as a process of its own.

The same requests go to the installation under test and to one with Dagster's own launcher, and what GraphQL, from which
all pages of the UI are made, says of their runs is compared: every event with its words, labels and marks for the
timeline, steps, tags, partitions, what may be done with a run. What differs all the same is listed here, with a reason.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from websockets.sync.client import connect

from export_pipeline import supervisor, wiring
from export_pipeline.identity import Role
from export_pipeline.settings import Settings
from export_pipeline_tests.conftest import database_url
from export_pipeline_tests.running import FINISHED, PATIENCE_S, Running

USER = "user-0006"
#: "again" is the failed one, executed again from its failure; "withdrawn" was terminated before it began.
KINDS = ("success", "failure", "again", "terminated", "withdrawn")
#: Launcher → tags that only its runs have. Celery finds the task of a run by its tag.
OWN_TAGS = {"default": set(), "warm": set(), "celery": {"dagster-celery/task_id"}}
#: Launcher → how the events begin that only its runs have. Dagster's Celery launcher says when it made the task.
OWN_EVENTS = {"default": (), "warm": (), "celery": ("[BrokerRunLauncher] ",)}
#: Values that differ because two runs differ: ids, moments, durations, processes.
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PROCESS = re.compile(r"\bpid: \d+")
_DURATION = re.compile(r"\b\d+(\.\d+)?(ms|s|min)\b|\b\d+m?\d*\.?\d+s\b")
_TICK = "dagster/tick"

_RUN = """
query($run: ID!) { runOrError(runId: $run) { ... on Run {
  runId status jobName mode runConfigYaml solidSelection stepKeysToExecute pipelineSnapshotId
  parentRunId rootRunId creationTime startTime endTime updateTime
  canTerminate hasReExecutePermission hasTerminatePermission hasDeletePermission hasConcurrencyKeySlots
  hasUnconstrainedRootNodes hasRunMetricsEnabled allPools
  tags { key value }
  repositoryOrigin { repositoryName repositoryLocationName repositoryLocationMetadata { key } }
  executionPlan { artifactsPersisted steps { key kind inputs { name } } }
  stats { ... on RunStatsSnapshot {
    stepsSucceeded stepsFailed materializations enqueuedTime launchTime startTime endTime } }
  stepStats { stepKey status startTime endTime attempts { startTime endTime } markers { startTime endTime } }
  capturedLogs(fileKey: "none") { stdout stderr }
  eventConnection(limit: 1000) { hasMore events { __typename
    ... on MessageEvent { eventType message level stepKey solidHandleID }
    ... on MarkerEvent { markerStart markerEnd }
    ... on LogsCapturedEvent { stepKeys externalUrl }
    ... on ErrorEvent { error { message className } }
    ... on DisplayableEvent { label description metadataEntries { __typename label } } } }
} } }
"""
_PARTITIONS = """
{ partitionSetOrError(partitionSetName: "export_user_data_partition_set", repositorySelector: {
    repositoryName: "__repository__", repositoryLocationName: "export_pipeline"}) { ... on PartitionSet {
  partitionStatusesOrError { ... on PartitionStatuses { results { partitionName runStatus runDuration } } } } } }
"""
_AGAIN = """
mutation($run: String!) { launchRunReexecution(reexecutionParams: {parentRunId: $run, strategy: FROM_FAILURE}) {
  __typename ... on LaunchRunSuccess { run { runId } } } }
"""
_TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"
_LIVE = """
subscription($run: ID!) { pipelineRunLogs(runId: $run) {
  ... on PipelineRunLogsSubscriptionSuccess { messages { ... on MessageEvent { eventType stepKey message } } } } }
"""


class Seen:
    """What one installation's UI shows of its runs, one of each kind.

    Args:
        running: The installation.
    """

    def __init__(self, running: Running) -> None:
        self.running = running
        self.launcher = running.stack.services.settings.launcher
        self.runs: dict[str, dict[str, Any]] = {}
        self.partitions: dict[str, dict[str, Any]] = {}
        #: Runs that had not ended.
        self.held: dict[str, dict[str, Any]] = {}
        self.live: list[tuple[str, str | None]] = []

    def look(self) -> None:
        """Make the requests, and keep what is shown."""
        with self._data_type("absent"):
            requests = {
                "success": self.running.insert(user_id=USER, data_types=["user_profile", "user_clicks"]),
                "failure": self.running.insert(user_id=USER, data_types=["user_profile", "mended"]),
            }
            statuses = [self.running.wait(request_id).status for request_id in requests.values()]
            assert statuses == ["completed", "failed"]
            for kind, request_id in requests.items():
                self._keep(kind, request_id, self.running.finished_runs(request_id)[0]["runId"])
        with self._data_type("users"):
            self._again(requests["failure"])
        self._hold()

    @contextmanager
    def _data_type(self, table: str) -> Iterator[None]:
        """Whose table is there, or is not."""
        with psycopg.connect(self.running.stack.services.database_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO export_pipeline.data_type_configs (data_type, table_name) VALUES ('mended', %s)", [table]
            )
            yield
            connection.execute("DELETE FROM export_pipeline.data_type_configs WHERE data_type = 'mended'")

    def _again(self, request_id: str) -> None:
        launched = self.running.graphql(_AGAIN, run=self.runs["failure"]["runId"])["launchRunReexecution"]
        assert launched["__typename"] == "LaunchRunSuccess"
        assert self.running.wait(request_id, until=("completed",)).status == "completed"
        self._keep("again", request_id, launched["run"]["runId"])

    def _hold(self) -> None:
        """Two runs wait for a table that we have locked, as many as may go on, and a third for one of them to end."""
        with psycopg.connect(self.running.stack.services.source_url) as connection:
            connection.execute("LOCK TABLE user_clicks IN ACCESS EXCLUSIVE MODE")
            working = [self.running.insert(user_id=USER, data_types=["user_clicks"]) for _ in range(2)]
            run_id, _ = [self.running.wait(one, until=("processing",)).run_id for one in working]
            waiting = self.running.insert(user_id=USER, data_types=["user_clicks"])
            waiting_run = self._run_of(waiting)
            self.held["waiting"] = self._until(waiting_run, lambda run: run["status"] == "QUEUED")
            self.running.graphql(_TERMINATE, run=waiting_run)
            self.held["working"] = self._until(run_id, lambda run: run["stepStats"])
            with self._log_of(run_id) as messages:
                self.running.graphql(_TERMINATE, run=run_id)
                self.live = messages(until="RUN_CANCELED")
        self._keep("terminated", working[0], run_id)
        self._keep("withdrawn", waiting, waiting_run, ended=lambda run: run["status"] == "CANCELED")
        assert [self.running.wait(one).status for one in working] == ["cancelled", "completed"]

    def _run_of(self, request_id: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not (runs := self.running.runs(request_id)):
            assert time.monotonic() < deadline
            time.sleep(0.1)  # Dagster has nothing that could be waited for from outside
        return runs[0]["runId"]

    @contextmanager
    def _log_of(self, run_id: str) -> Iterator[Callable[..., list[tuple[str, str | None]]]]:
        """The log of a run as its page gets it while the run goes on."""
        address = self.running.stack.ui_url.replace("http", "ws") + "/graphql"
        headers = {"Authorization": f"Bearer {self.running.token(Role.ADMIN)}"}
        with connect(address, additional_headers=headers, subprotocols=["graphql-ws"], open_timeout=30) as opened:
            subscription = {"query": _LIVE, "variables": {"run": run_id}}
            opened.send(json.dumps({"type": "connection_init"}))
            opened.send(json.dumps({"type": "start", "id": "1", "payload": subscription}))

            def messages(*, until: str) -> list[tuple[str, str | None]]:
                found: list[tuple[str, str | None]] = []
                while until not in [kind for kind, _ in found]:
                    answer = json.loads(opened.recv(PATIENCE_S))
                    if answer["type"] == "data":
                        told = answer["payload"]["data"]["pipelineRunLogs"]["messages"]
                        found += [(one["eventType"], one["stepKey"]) for one in told if not self._own(one)]
                return found

            yield messages

    def _own(self, event: dict[str, Any]) -> bool:
        return event["message"].startswith(OWN_EVENTS[self.launcher])

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a run, but for those that are listed."""
        return comparable([one for one in self.runs[kind]["eventConnection"]["events"] if not self._own(one)])

    def page(self, run: dict[str, Any]) -> dict[str, Any]:
        """Everything else about a run."""
        tags = [tag for tag in run["tags"] if tag["key"] not in OWN_TAGS[self.launcher]]
        return comparable({key: value for key, value in run.items() if key != "eventConnection"} | {"tags": tags})

    def _keep(
        self, kind: str, request_id: str, run_id: str, ended: Callable[[dict[str, Any]], object] | None = None
    ) -> None:
        self.runs[kind] = self._until(run_id, ended or _exited)
        shown = self.running.graphql(_PARTITIONS)["partitionSetOrError"]["partitionStatusesOrError"]["results"]
        [self.partitions[kind]] = [partition for partition in shown if partition["partitionName"] == request_id]

    def _until(self, run_id: str, ready: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """A run as soon as it is shown with everything that is waited for."""
        deadline = time.monotonic() + PATIENCE_S
        while not ready(run := self.running.graphql(_RUN, run=run_id)["runOrError"]):
            assert time.monotonic() < deadline, run
            time.sleep(0.1)  # Dagster has nothing that could be waited for from outside
        return run


def _exited(run: dict[str, Any]) -> bool:
    """The last thing that is written about a run; its status was read before its events."""
    return run["status"] in FINISHED and any(
        "Process for run exited" in event["message"] for event in run["eventConnection"]["events"]
    )


@pytest.fixture(scope="module")
def stock(server_url: str, sample_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The same with Dagster's own launcher and queue."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE side_by_side TEMPLATE {sample_template}")
    settings = Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("stock"),
        database_url=SecretStr(database_url(server_url, "side_by_side")),
        local_tokens=True,
        ui_port=0,
        api_port=0,
        launcher="default",
    )
    wiring.make_keys(settings)
    with supervisor.start(settings) as stack:
        yield Running(stack=stack)


@pytest.fixture(scope="module")
def both(running: Running, request: pytest.FixtureRequest) -> tuple[Seen, Seen]:
    """Ours, and stock."""
    if running.stack.services.settings.launcher == "default":
        pytest.skip("compares other launchers with this one")
    seen = (Seen(running), Seen(request.getfixturevalue("stock")))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Seen.look, seen))
    return seen


def comparable(shown: Any, name: str = "") -> Any:
    """What is left when all that belongs to one run only has been replaced by its kind."""
    match shown:
        case dict() if shown.get("key") == _TICK:
            return {"key": _TICK}
        case dict():
            return {key: comparable(value, key) for key, value in shown.items()}
        case list():
            # The steps of a plan come in any order.
            return sorted((comparable(one) for one in shown), key=str) if name == "steps" else [*map(comparable, shown)]
        case float() if name.endswith(("Time", "Duration")):
            return "number"
        case str():
            return _DURATION.sub("duration", _PROCESS.sub("pid", _ID.sub("id", shown)))
    return shown


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_reads_the_same(both: tuple[Seen, Seen], kind: str) -> None:
    ours, stock = both
    assert ours.events(kind) == stock.events(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pages_say_the_same_of_a_run(both: tuple[Seen, Seen], kind: str) -> None:
    ours, stock = both
    assert ours.page(ours.runs[kind]) == stock.page(stock.runs[kind])
    assert comparable(ours.partitions[kind]) == comparable(stock.partitions[kind])


@pytest.mark.parametrize("kind", ["waiting", "working"])
def test_pages_say_the_same_of_a_run_that_has_not_ended(both: tuple[Seen, Seen], kind: str) -> None:
    ours, stock = both
    assert ours.page(ours.held[kind]) == stock.page(stock.held[kind])
    assert ours.held[kind]["canTerminate"]


def test_the_log_comes_while_the_run_goes_on(both: tuple[Seen, Seen]) -> None:
    ours, stock = both
    assert ours.live == stock.live
    assert ("STEP_START", "plan_export") in ours.live


def test_what_is_compared_is_there(both: tuple[Seen, Seen]) -> None:
    """Two runs of which nothing is shown would be equal too."""
    ours, _ = both
    assert [ours.runs[kind]["status"] for kind in KINDS] == ["SUCCESS", "FAILURE", "SUCCESS", "CANCELED", "CANCELED"]
    success, again = ours.runs["success"], ours.runs["again"]
    steps = [step["stepKey"] for step in success["stepStats"]]
    assert steps[1:3] == ["collect_data_type[user_profile]", "collect_data_type[user_clicks]"]
    moments = [success["stats"][name] for name in ("enqueuedTime", "launchTime", "startTime", "endTime")]
    assert moments == sorted(moments)
    for step in success["stepStats"]:
        assert success["startTime"] <= step["startTime"] <= step["endTime"] <= success["endTime"]
    assert (again["parentRunId"], again["rootRunId"]) == (ours.runs["failure"]["runId"],) * 2
    assert ours.partitions["again"]["runDuration"] > 0
    said = [event["message"] for event in ours.events("success")]
    assert "Started process for run (pid)." in said
    assert {"rows", "bytes", "seconds"} <= {
        entry["label"] for event in ours.events("success") for entry in event.get("metadataEntries", [])
    }
