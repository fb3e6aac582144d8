"""Whatever dies in the middle, the request ends: completed by a later attempt, or with a reason."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import psutil
import psycopg
import pytest

from export_pipeline.identity import Role
from export_pipeline.postgres import postmaster
from export_pipeline.settings import Settings
from export_pipeline_tests.running import PATIENCE_S, TESTER, Running


@contextmanager
def held_in_the_middle(running: Running, request_id: str) -> Iterator[None]:
    """Inside the block the run of the request waits for a table that we have locked."""
    with psycopg.connect(running.stack.services.source_url) as connection:
        connection.execute("LOCK TABLE user_clicks IN ACCESS EXCLUSIVE MODE")
        assert running.wait(request_id, until=("processing",)).status == "processing"
        wait_until_blocked(running)
        yield


def wait_until_blocked(running: Running) -> None:
    with psycopg.connect(running.stack.services.source_url, autocommit=True) as connection:
        wait_for_row(connection, "SELECT FROM pg_locks WHERE NOT granted AND relation = 'user_clicks'::regclass")


def wait_for_row(connection: psycopg.Connection, statement: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not connection.execute(statement).rowcount:
        assert time.monotonic() < deadline, statement
        time.sleep(0.05)  # PostgreSQL has no event for it


def run_processes(running: Running) -> list[psutil.Process]:
    """The processes that execute runs: the warm workers, or what the code server started."""
    children = {child.name: psutil.Process(child.process.pid) for child in running.stack._children}
    workers = [process for name, process in children.items() if name.startswith("worker")]
    started = children["code-server"].children(recursive=True)
    return workers or [process for process in started if "spawn_main" in " ".join(process.cmdline())]


def kill_run(running: Running) -> None:
    processes = run_processes(running)
    assert processes
    for process in processes:
        process.kill()


def test_a_killed_run_is_done_again(running: Running) -> None:
    request_id = running.insert(user_id="user-0005", data_types=["user_profile", "user_clicks"])
    with held_in_the_middle(running, request_id):
        kill_run(running)
    done = running.wait(request_id, until=("completed", "failed"))
    assert (done.status, done.attempt) == ("completed", 2)
    actions = [entry.action for entry in running.stack.services.requests.trail(request_id)]
    assert actions == [
        "export_requested", "export_claimed", "export_started", "export_requeued",
        "export_claimed", "export_started", "export_completed",
    ]  # fmt: skip
    assert sorted(run["status"] for run in running.finished_runs(request_id)) == ["FAILURE", "SUCCESS"]
    assert len(running.stack.services.vault().keys(request_id)) == 1


def test_a_run_killed_at_its_last_attempt_fails_with_a_reason(running: Running) -> None:
    request_id = running.insert(user_id="user-0005", data_types=["user_clicks"])
    with held_in_the_middle(running, request_id):
        with psycopg.connect(running.stack.services.database_url) as connection:  # no row is inserted with attempts
            connection.execute(
                "UPDATE export_pipeline.export_requests SET attempt = 3 WHERE request_id = %s", [request_id]
            )
        kill_run(running)
    done = running.wait(request_id, until=("completed", "failed"))
    assert (done.status, done.attempt) == ("failed", 3)
    assert "ended unexpectedly 3 times" in done.error_message


def events(running: Running, run_id: str) -> set[str]:
    """Kinds of what Dagster saw happen to a run."""
    query = """query($run: ID!) { runOrError(runId: $run) { ... on Run {
        eventConnection(limit: 1000) { events { __typename } } } } }"""
    found = running.graphql(query, run=run_id)["runOrError"]["eventConnection"]["events"]
    return {event["__typename"] for event in found}


def test_a_run_that_the_daemon_called_queued_and_never_queued_is_done_again(running: Running) -> None:
    """What a daemon leaves that is killed between the two."""
    if running.stack.services.settings.launcher != "warm":
        pytest.skip("only warm workers have this queue")
    with (
        psycopg.connect(running.stack.services.source_url) as lock,
        psycopg.connect(running.stack.services.database_url, autocommit=True) as connection,
    ):
        wait_for_row(connection, "SELECT WHERE export_pipeline.workers_alive() = 2")
        lock.execute("LOCK TABLE user_clicks IN ACCESS EXCLUSIVE MODE")
        busy = [running.insert(user_id="user-0005", data_types=["user_clicks"]) for _ in range(2)]
        for request_id in busy:
            running.wait(request_id, until=("processing",))
        request_id = running.insert(user_id="user-0005", data_types=["user_profile"])
        wait_for_row(connection, "DELETE FROM export_pipeline.export_run_queue WHERE worker IS NULL RETURNING run_id")
    done = running.wait(request_id)
    assert (done.status, done.attempt) == ("completed", 2)
    _, lost = running.finished_runs(request_id)
    assert lost["status"] == "FAILURE"
    assert not {"RunStartingEvent", "RunStartEvent"} & events(running, lost["runId"]), "it need not have been started"
    assert "RunStartEvent" in events(running, done.run_id)
    assert [running.wait(one).status for one in busy] == ["completed", "completed"]


def test_a_terminated_run_cancels_its_request(running: Running) -> None:
    request_id = running.insert(user_id="user-0005", data_types=["user_clicks"])
    with held_in_the_middle(running, request_id):
        run_id = running.stack.services.requests.get(request_id).run_id
        running.graphql("mutation($run: String!) { terminateRun(runId: $run) { __typename } }", run=run_id)
        done = running.wait(request_id, until=("cancelled", "completed", "failed"))
    assert done.status == "cancelled"
    assert [run["status"] for run in running.finished_runs(request_id)] == ["CANCELED"]
    assert not list((running.stack.services.settings.home / "work").rglob("*.part"))
    running.stack.services.requests.retry(request_id, actor=TESTER)
    assert running.wait(request_id).status == "completed"


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/exports/{}/cancel"), ("DELETE", "/api/exports/{}")])
def test_cancelling_or_deleting_a_request_by_the_api_cancels_its_run(running: Running, method: str, path: str) -> None:
    """And not at the end of the step: what it waits for does not come."""
    request_id = running.insert(user_id="user-0005", data_types=["user_clicks"])
    headers = {"Authorization": f"Bearer {running.token(Role.ADMIN)}"}
    with held_in_the_middle(running, request_id):
        url = running.stack.api_url + path.format(request_id)
        urlopen(Request(url, headers=headers, method=method), timeout=PATIENCE_S).close()
        assert [run["status"] for run in running.finished_runs(request_id)] == ["CANCELED"]
    assert running.stack.services.requests.get(request_id).status in {"cancelled", "deleted"}
    work = running.stack.services.settings.home / "work"
    assert not [found for found in work.rglob("*.part") if request_id in str(found)]


def test_a_failed_run_can_be_executed_again_from_the_ui(running: Running) -> None:
    request_id = running.insert(user_id="user-0005", data_types=["user_profile", "repaired"])
    with psycopg.connect(running.stack.services.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO export_pipeline.data_type_configs (data_type, table_name) VALUES ('repaired', 'absent')"
        )
        assert running.wait(request_id).status == "failed"
        parent = running.finished_runs(request_id)[0]["runId"]
        connection.execute(
            "UPDATE export_pipeline.data_type_configs SET table_name = 'users' WHERE data_type = 'repaired'"
        )
        launched = running.graphql(
            """mutation($run: String!) { launchRunReexecution(reexecutionParams: {parentRunId: $run,
                 strategy: FROM_FAILURE}) { __typename ... on LaunchRunSuccess { run { runId } } } }""",
            run=parent,
        )["launchRunReexecution"]
        assert launched["__typename"] == "LaunchRunSuccess"
        done = running.wait(request_id, until=("completed",))
        connection.execute("DELETE FROM export_pipeline.data_type_configs WHERE data_type = 'repaired'")
    assert (done.status, done.run_id, done.attempt) == ("completed", launched["run"]["runId"], 2)


def test_the_database_is_killed_under_a_run(running: Running, settings: Settings) -> None:
    request_id = running.insert(user_id="user-0005", data_types=["user_clicks"])
    with pytest.raises(psycopg.OperationalError), held_in_the_middle(running, request_id):
        os.kill(postmaster.find(settings.home / "postgres" / "data"), signal.SIGKILL)
        raise psycopg.OperationalError
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            done = running.wait(request_id, until=("completed", "failed"))
            break
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.5)  # the server is coming back
    assert done.status == "completed"


def test_everything_stops_under_a_run_and_starts_again(settings: Settings, running: Running) -> None:
    """Last in this file: it ends the installation that the others use."""
    request_id = running.insert(user_id="user-0005", data_types=["user_clicks"])
    with held_in_the_middle(running, request_id):
        for child in running.stack._children:
            child.process.kill()
        for process in run_processes(running):
            process.kill()
    done = running.wait(request_id, until=("completed", "failed"))
    assert (done.status, done.attempt) == ("completed", 2)
