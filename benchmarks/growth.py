"""Growth: what a long past costs the next request, and what pruning gives back to Dagster's UI.

Three installations run side by side and get one request each in turn, so that whatever else the machine does meets all
of them: an empty one; one with 100,000 past requests with their metadata and audit rows; one with 5,000 live
partitions, each with a finished run, which is a copy of a real run's rows in Dagster's tables.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psycopg

from benchmarks import report
from export_pipeline import demo, supervisor
from export_pipeline.db.watch import follow
from export_pipeline.defs.partitions import PARTITIONS
from export_pipeline.defs.pruning import Pruned, Pruning
from export_pipeline.identity import Principal, Role
from export_pipeline.models import ExportRequest
from export_pipeline.settings import Settings
from export_pipeline.supervisor import Stack
from export_pipeline_tests import past

#: What is measured → the requests and partitions of its past.
_LIVE = 5_000
_PASTS = {"empty": (0, 0), "100k_requests": (100_000, 0), "5k_partitions": (_LIVE, _LIVE)}
_KEPT = 2_000
#: Longer than the sensor's minimum interval, and a whole round of it apart: a request that comes a moment after a round
#: waits for the interval to pass, so pauses in any step with the rounds would measure that.
_PAUSE_S = (1.2, 6.2)
_PATIENCE_S = 300.0
_INSERT = (
    "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, format)"
    " VALUES (%s, 'benchmark', 'gdpr', 'json') RETURNING request_id"
)
#: What the UI sends for the partition page of a job.
_PAGE = """
query PartitionsStatusQuery($partitionSetName: String!, $repositorySelector: RepositorySelector!) {
  partitionSetOrError(repositorySelector: $repositorySelector, partitionSetName: $partitionSetName) {
    ... on PartitionSet {
      id name pipelineName hasLaunchBackfillPermission
      partitionsOrError { ... on Partitions { results { name } } }
      partitionStatusesOrError { ... on PartitionStatuses { results { id partitionName runStatus runDuration } } }
    }
  }
}
"""


def run(*, requests: int, home: Path) -> dict[str, Any]:
    """Measure, print the tables, and return the figures of the contract.

    Args:
        requests: Requests that each installation gets.
        home: Where the installations' folders are made, and removed at the end: each begins without a past.
    """
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="growth-") as folder, ExitStack() as held:
        stacks = {name: held.enter_context(supervisor.start(_settings(Path(folder) / name))) for name in _PASTS}
        for name, stack in stacks.items():
            _prepare(stack, *_PASTS[name])
        seconds = _in_turns(stacks, requests)
        page = _pages(stacks["5k_partitions"])
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratios = {name: median / medians["empty"] for name, median in medians.items()}
    report.table(
        f"growth: from INSERT to completed, {requests} requests each, in turns",
        ["past", "p50 s", "fastest s", "slowest s", "÷ empty"],
        [[name, medians[name], min(found), max(found), ratios[name]] for name, found in seconds.items()],
    )
    return {f"p50_ratio_{name}": round(ratio, 3) for name, ratio in ratios.items() if name != "empty"} | page


def _settings(home: Path) -> Settings:
    """Nothing of the past is pruned while it is measured."""
    return Settings(  # type: ignore[call-arg]
        _env_file=None, home=home, ui_port=0, api_port=0, max_concurrent_runs=1, keep_partitions=2 * _LIVE
    )


def _prepare(stack: Stack, requests: int, partitions: int) -> None:
    report.console.print(f"{stack.services.settings.home.name}: making its past", markup=False)
    demo.install_sample(stack.services)
    last = _finished_run(stack, _one(stack, 0))
    with psycopg.connect(stack.services.database_url, autocommit=True) as connection:
        if requests:
            past.add_requests(connection, range(1, requests + 1), ended="now() - i * interval '1 s'")
        if partitions:
            past.add_runs(connection, last, range(1, partitions + 1), ended="now()")
        past.analyze(connection)
        connection.execute("CHECKPOINT")


def _in_turns(stacks: dict[str, Stack], requests: int) -> dict[str, list[float]]:
    for number in range(3):  # the first ones warm caches everywhere
        for stack in stacks.values():
            _one(stack, number)
    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    chance = random.Random(1)  # the same pauses each time
    for number in range(requests):
        for name, stack in stacks.items():
            time.sleep(chance.uniform(*_PAUSE_S))
            done = _one(stack, number)
            assert done.completed_at is not None
            seconds[name].append((done.completed_at - done.requested_at).total_seconds())
    return seconds


def _one(stack: Stack, number: int) -> ExportRequest:
    """One small user; by the database's clock."""
    with psycopg.connect(stack.services.database_url) as connection:
        row = connection.execute(_INSERT, [f"user-{10 + number % 200:04d}"]).fetchone()
    *_, last = follow(stack.services.database, [row[0] if row else ""], timeout=_PATIENCE_S)
    if last.status != "completed":
        raise RuntimeError(f"A request ended as {last.status}: {last.error_message}")
    return last


def _finished_run(stack: Stack, request: ExportRequest) -> str:
    """The run ends a little after its request."""
    deadline = time.monotonic() + _PATIENCE_S
    with psycopg.connect(stack.services.database_url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute("SELECT status FROM dagster.runs WHERE run_id = %s", [request.run_id]).fetchone()
            if row == ("SUCCESS",):
                return request.run_id or ""
            time.sleep(0.1)
    raise RuntimeError("The run of a completed request did not end.")


def _pages(stack: Stack) -> dict[str, Any]:
    """The partition page with all partitions and with those that pruning keeps, and what pruning takes."""
    before, before_s = _page(stack)
    pruned, prune_s = _timed(lambda: _prune(stack))
    after, after_s = _page(stack)
    report.table(
        f"partition page of the web server, and pruning to {_KEPT:,}",
        ["what", "partitions", "seconds"],
        [["page before", before, before_s], ["pruning", pruned.partitions, prune_s], ["page after", after, after_s]],
    )
    return {
        "partition_page_s": round(after_s, 3),
        "partition_page_unpruned_s": round(before_s, 3),
        "prune_s": round(prune_s, 2),
        "pruned_partitions": pruned.partitions,
        "pruned_events": pruned.events,
    }


def _page(stack: Stack) -> tuple[int, float]:
    """Partitions on the page, and the median of five answers in seconds."""
    variables = {
        "partitionSetName": "export_user_data_partition_set",
        "repositorySelector": {"repositoryLocationName": "export_pipeline", "repositoryName": "__repository__"},
    }
    body = json.dumps({"query": _PAGE, "variables": variables}).encode()
    auditor = Principal(id="benchmark", roles=frozenset({Role.AUDITOR}))
    token = stack.services.gatekeeper.issue(auditor, timedelta(hours=1))
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    ask = Request(f"{stack.ui_url}/graphql", body, headers)
    taken = []
    for _ in range(5):
        began = time.monotonic()
        with urlopen(ask, timeout=120) as response:
            answer = json.load(response)
        taken.append(time.monotonic() - began)
    statuses = answer["data"]["partitionSetOrError"]["partitionStatusesOrError"]["results"]
    return len(statuses), statistics.median(taken)


def _prune(stack: Stack) -> Pruned:
    pruning = Pruning(database=stack.services.database, partitions_def=PARTITIONS, keep=_KEPT, age=timedelta(days=14))
    return pruning.run()


def _timed(work: Callable[[], Pruned]) -> tuple[Pruned, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began
