"""Runs that died at a moment when nobody could tell: what the sensor finds, and what Dagster is told of it."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg
import psycopg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from export_pipeline import dagster_home
from export_pipeline.db.lease import RequestLease
from export_pipeline.db.requests import StalledRequest
from export_pipeline.db.run_queue import RunQueue, Seat
from export_pipeline.definitions import defs
from export_pipeline.defs import absence, process, sensors, warm, worker
from export_pipeline.defs.partitions import ATTEMPT_TAG, PARTITION_TAG, PARTITIONS
from export_pipeline.defs.worker import Worker
from export_pipeline.models import Actor, ExportRequest, RequestStatus
from export_pipeline.settings import Settings
from export_pipeline.wiring import Services

ADMIN = Actor(id="admin")
#: Dagster wants to know of queued runs whence they come.
_ORIGIN = RemoteJobOrigin(
    repository_origin=RemoteRepositoryOrigin(
        code_location_origin=GrpcServerCodeLocationOrigin(host="localhost", socket="/nowhere", location_name="nowhere"),
        repository_name="nothing",
    ),
    job_name="export_user_data",
)
Status = dg.DagsterRunStatus
_AGE = """
UPDATE export_pipeline.export_requests
SET claimed_at = claimed_at - interval '1 hour', started_at = started_at - interval '1 hour'
"""


@dg.op
def nothing() -> None:
    """A step."""


@dg.job(name="export_user_data", executor_def=dg.in_process_executor)
def same_name() -> None:
    """Stands in for our job, whose name is all that the sensor looks at."""
    nothing()


@pytest.fixture
def instance(
    settings: Settings, services: Services, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dg.DagsterInstance]:
    """Dagster as the installation has it, with the launcher that the test asks for."""
    launcher = getattr(request, "param", "warm")
    settings = settings.model_copy(update={"launcher": launcher})
    dagster_home.write(settings)
    for name, value in dagster_home.environment(settings).items():
        if name != "PYTHONWARNINGS":
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(sensors, "_SETTLE", timedelta(0))  # the server of the tests may be young
    monkeypatch.setattr(sensors, "_LOOK_AGAIN_S", 0.0)
    process.services.cache_clear()
    absence._absence.cache_clear()
    with dg.DagsterInstance.from_config(str(dagster_home.folder(settings))) as made:
        yield made
    process.services().close()
    process.services.cache_clear()
    absence._absence.cache_clear()


@pytest.fixture
def asked(services: Services) -> ExportRequest:
    """A request that was claimed long ago."""
    made = services.intake.request(actor=ADMIN, user_id="user-0004", data_types=["user_profile"], kind="custom")
    services.requests.claim(10)
    execute(services, _AGE)
    return made


@pytest.fixture
def seat(services: Services) -> Iterator[Seat]:
    taken = Seat(services.database, lambda _run: None)
    yield taken
    taken.leave()


def test_what_was_left_is_not_cleared_from_under_a_run_that_a_person_asked_for_meanwhile(
    instance: dg.DagsterInstance,
    services: Services,
    asked: ExportRequest,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    services.requests.start(asked.request_id, run_id := str(uuid.uuid4()), reopen=False)
    left = services.vault().store(f"{asked.request_id}/run/export.age", [b"new"])
    attempts = services.settings.max_attempts
    execute(services, "UPDATE export_pipeline.export_requests SET attempt = %s", attempts)
    seen = StalledRequest(request_id=asked.request_id, status=RequestStatus.PROCESSING, attempt=attempts, run_id=run_id)
    lease = RequestLease(services.database, asked.request_id)
    lease.acquire()  # a new run works on it since it was put back
    assert sensors._settle(instance, seen).startswith("failed")
    assert services.vault().keys() == [left.key]
    lease.release()

    def free() -> bool:
        with services.files.hold(asked.request_id) as held:
            return held is not None

    wait_until(free)
    execute(services, "UPDATE export_pipeline.export_requests SET status = 'processing'")
    assert sensors._settle(instance, seen).startswith("failed")
    assert services.vault().keys() == []


def execute(services: Services, statement: str, *values: object) -> None:
    with psycopg.connect(services.database_url) as connection:
        connection.execute(statement.encode(), values)


def add_run(instance: dg.DagsterInstance, request: ExportRequest, status: Status, *, attempt: int = 1) -> str:
    made = instance.create_run_for_job(
        same_name,
        run_id=str(uuid.uuid4()),
        tags={PARTITION_TAG: request.request_id, ATTEMPT_TAG: str(attempt)},
        status=status,
        remote_job_origin=_ORIGIN,
    )
    return made.run_id


def silent(services: Services, run_id: str, seconds: int) -> None:
    """Nothing has been heard of the run for so long."""
    execute(
        services,
        "UPDATE dagster.runs SET update_timestamp = update_timestamp - %s * interval '1 s' WHERE run_id = %s",
        seconds,
        run_id,
    )


def reconcile(instance: dg.DagsterInstance) -> str:
    said = sensors.reconcile_export_requests(dg.build_sensor_context(instance=instance))
    assert isinstance(said, dg.SkipReason)
    return said.skip_message or ""


def status(instance: dg.DagsterInstance, run_id: str) -> Status:
    run = instance.get_run_by_id(run_id)
    assert run
    return run.status


# --- the request waits for its run


@pytest.mark.parametrize(
    ("instance", "begun", "seconds"),
    [
        ("warm", Status.NOT_STARTED, 20),
        ("warm", Status.QUEUED, 20),
        ("warm", Status.STARTING, 120),
        ("warm", Status.STARTED, 60),
        ("default", Status.NOT_STARTED, 20),
        ("default", Status.STARTED, 60),
    ],
    indirect=["instance"],
)
def test_a_run_that_never_came_to_its_request_is_ended_and_the_request_done_again(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, seat: Seat, begun: Status, seconds: int
) -> None:
    run_id = add_run(instance, asked, begun)
    silent(services, run_id, seconds - 10)
    assert "has a run" in reconcile(instance)
    silent(services, run_id, 11)
    assert "pending, because run" in reconcile(instance)
    assert status(instance, run_id) is Status.FAILURE
    assert [claim.attempt for claim in services.requests.claim(10)] == [2]


@pytest.mark.parametrize(
    ("instance", "begun"), [("default", Status.QUEUED), ("default", Status.STARTING)], indirect=["instance"]
)
def test_what_waits_in_dagsters_own_queue_is_left_to_dagster(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, begun: Status
) -> None:
    silent(services, add_run(instance, asked, begun), 10_000)
    assert "has a run" in reconcile(instance)


@pytest.mark.parametrize("begun", [Status.QUEUED, Status.STARTING])
def test_a_run_that_waits_for_the_workers_may_wait_for_as_long_as_it_takes(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, seat: Seat, begun: Status
) -> None:
    run_id = add_run(instance, asked, begun)
    silent(services, run_id, 100_000)
    assert RunQueue(services.database).put(run_id)
    assert "has a run" in reconcile(instance)


def test_workers_that_died_together_are_waited_for_before_a_run_is_taken_back(
    instance: dg.DagsterInstance,
    services: Services,
    asked: ExportRequest,
    seat: Seat,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    queue = RunQueue(services.database)
    run_id = add_run(instance, asked, Status.QUEUED)
    silent(services, run_id, 100_000)
    assert queue.put(run_id)
    seat.leave()
    wait_until(lambda: queue.workers() == 0)
    assert "has a run" in reconcile(instance)
    monkeypatch.setattr(absence, "_FOR_GOOD_S", -1.0)
    assert "pending, because run" in reconcile(instance)


# --- the request has ended


@pytest.mark.parametrize(
    ("instance", "begun", "ended"),
    [
        ("warm", Status.STARTED, "completed"),
        ("default", Status.STARTED, "completed"),
        ("warm", Status.NOT_STARTED, "failed"),
        ("default", Status.STARTED, "failed"),
    ],
    indirect=["instance"],
)
def test_a_run_that_died_after_its_request_had_ended_is_ended_too(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, begun: Status, ended: str
) -> None:
    run_id = add_run(instance, asked, begun)
    execute(services, "UPDATE export_pipeline.export_requests SET status = %s, run_id = %s", ended, run_id)
    assert "has a run" in reconcile(instance), "it ends a little after its request"
    silent(services, run_id, 61)
    assert run_id in reconcile(instance)
    assert status(instance, run_id) is Status.FAILURE
    assert services.requests.get(asked.request_id).status == ended
    [told] = [event.message for event in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)]
    assert f"its request is {ended}" in told


def test_a_run_that_still_holds_the_lease_is_alive(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest
) -> None:
    """Its request has ended a moment ago."""
    run_id = add_run(instance, asked, Status.STARTED)
    run = services.run(asked.request_id, run_id, reopen=False)
    run.plan()
    execute(services, "UPDATE export_pipeline.export_requests SET status = 'completed'")
    silent(services, run_id, 10_000)
    assert "has a run" in reconcile(instance)
    run.close()
    assert run_id in reconcile(instance)


def test_a_run_whose_connection_breaks_for_a_moment_is_alive(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add_run(instance, asked, Status.STARTED)
    run = services.run(asked.request_id, run_id, reopen=False)
    run.plan()
    execute(services, _AGE)
    run._lease._drop()
    # As the thread does that keeps the lease, between the two looks.
    monkeypatch.setattr(sensors.time, "sleep", lambda _seconds: run._lease.acquire())
    assert "has a run" in reconcile(instance)
    monkeypatch.undo()
    monkeypatch.setattr(sensors, "_SETTLE", timedelta(0))
    monkeypatch.setattr(sensors, "_LOOK_AGAIN_S", 0.0)
    run.close()
    assert "pending, because run" in reconcile(instance)


# --- somebody cancelled the request


@pytest.mark.parametrize("instance", ["warm", "default"], indirect=True)
@pytest.mark.parametrize("withdraw", ["cancel", "delete"])
def test_a_run_that_nobody_could_interrupt_is_asked_to_end(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, withdraw: str
) -> None:
    """Only a warm worker hears at once that its request was cancelled."""
    run_id, other = add_run(instance, asked, Status.STARTED), add_run(instance, asked, Status.STARTED)
    services.requests.start(asked.request_id, run_id, reopen=False)
    assert "has a run" in reconcile(instance)
    getattr(services.intake, withdraw)(asked.request_id, ADMIN)
    assert reconcile(instance) == f"run {run_id}: asked to end"
    assert (status(instance, run_id), status(instance, other)) == (Status.CANCELING, Status.STARTED)
    assert "has a run" in reconcile(instance), "once is enough"


@pytest.mark.parametrize("withdrawn", ["cancelled", "deleted"])
def test_a_run_that_died_is_no_failure_when_its_request_was_cancelled(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, withdrawn: str
) -> None:
    run_id = add_run(instance, asked, Status.NOT_STARTED)
    execute(services, "UPDATE export_pipeline.export_requests SET status = %s", withdrawn)
    silent(services, run_id, 61)
    assert reconcile(instance) == f"run {run_id}: ended"
    assert status(instance, run_id) is Status.CANCELED


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
@pytest.mark.parametrize(("withdraw", "expected"), [("cancel", Status.CANCELED), (None, Status.FAILURE)])
def test_a_run_that_finds_its_request_cancelled_ends_as_canceled(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, withdraw: str | None, expected: Status
) -> None:
    """As a run of Dagster's own launcher does at its next step. One that was never entitled has failed."""
    if withdraw:
        services.intake.cancel(asked.request_id, ADMIN)
    else:
        services.requests.start(asked.request_id, "another", reopen=False)
    instance.add_dynamic_partitions(PARTITIONS, [asked.request_id])
    result = defs.get_job_def("export_user_data").execute_in_process(
        instance=instance, partition_key=asked.request_id, tags={ATTEMPT_TAG: "1"}, raise_on_error=False
    )
    assert status(instance, result.run_id) is expected


def test_a_run_is_canceling_before_its_worker_interrupts_it(
    instance: dg.DagsterInstance, services: Services, asked: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster takes an interruption for a failure otherwise."""
    run_id, other, done = (
        add_run(instance, asked, status) for status in (Status.STARTED, Status.STARTED, Status.SUCCESS)
    )
    interrupted: list[tuple[int, Status]] = []
    monkeypatch.setattr(worker.os, "kill", lambda _pid, sent: interrupted.append((sent, status(instance, run_id))))
    with made_worker(instance) as served:
        served._current = run_id
        served._interrupt(other)
        assert interrupted == []
        served._interrupt(run_id)
        served._current = done
        served._interrupt(done)
    assert interrupted == [(signal.SIGINT, Status.CANCELING)] * 2
    assert (status(instance, other), status(instance, done)) == (Status.STARTED, Status.SUCCESS)


def test_a_worker_interrupts_also_when_it_cannot_say_so(
    instance: dg.DagsterInstance, asked: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever raised there would take the seat with it."""

    def away(_instance: dg.DagsterInstance, _run_id: str) -> None:
        raise warm.UNAVAILABLE[0]("too many retries")

    interrupted: list[int] = []
    monkeypatch.setattr(worker, "begin_canceling", away)
    monkeypatch.setattr(worker.os, "kill", lambda _pid, sent: interrupted.append(sent))
    with made_worker(instance) as served:
        served._current = "run"
        served._interrupt("run")
    assert interrupted == [signal.SIGINT]


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (Status.CANCELING, Status.CANCELED),
        (Status.STARTED, Status.FAILURE),
        (Status.SUCCESS, Status.SUCCESS),
    ],
)
def test_a_run_that_was_canceling_when_its_process_was_done_is_canceled(
    instance: dg.DagsterInstance, asked: ExportRequest, begun: Status, expected: Status
) -> None:
    warm.end_run(instance, run_id := add_run(instance, asked, begun))
    assert status(instance, run_id) is expected


# --- the worker


@pytest.fixture
def served(instance: dg.DagsterInstance) -> Iterator[Worker]:
    with made_worker(instance) as made:
        yield made


@contextmanager
def made_worker(instance: dg.DagsterInstance) -> Iterator[Worker]:
    made = Worker(instance, recycle_after=1)
    try:
        yield made
    finally:
        made._seat.leave()


def test_a_run_whose_end_could_not_be_written_is_ended_by_its_worker(
    instance: dg.DagsterInstance,
    services: Services,
    asked: ExportRequest,
    served: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dagster passes over an end that it cannot write."""
    run_id = add_run(instance, asked, Status.QUEUED)
    assert RunQueue(services.database).put(run_id)

    def begin(_instance: dg.DagsterInstance, run_id: str) -> None:
        execute(services, "UPDATE dagster.runs SET status = 'STARTED' WHERE run_id = %s", run_id)

    monkeypatch.setattr(worker, "execute_run", begin)
    served.serve()
    assert status(instance, run_id) is Status.FAILURE
    assert RunQueue(services.database).find(run_id) is None


def test_the_worker_outlives_a_database_that_is_away(
    instance: dg.DagsterInstance,
    services: Services,
    asked: ExportRequest,
    served: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = add_run(instance, asked, Status.QUEUED)
    assert RunQueue(services.database).put(run_id)
    away = [warm.UNAVAILABLE[0]("too many retries"), warm.DatabaseUnavailable("It is away.")]
    executed = []

    def end(instance: dg.DagsterInstance, run_id: str) -> None:
        if away:
            raise away.pop()
        warm.end_run(instance, run_id)

    monkeypatch.setattr(warm, "_RETRY_S", 0.01)
    monkeypatch.setattr(worker, "execute_run", lambda _instance, run_id: executed.append(run_id))
    monkeypatch.setattr(worker, "end_run", end)
    served.serve()
    assert (executed, away) == ([run_id], [])
    assert status(instance, run_id).value in {"FAILURE"}


def test_a_run_that_was_begun_is_never_begun_again(
    instance: dg.DagsterInstance,
    services: Services,
    asked: ExportRequest,
    served: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker died after it had begun, and before Dagster knew."""
    run_id = add_run(instance, asked, Status.QUEUED)
    queue = RunQueue(services.database)
    queue.put(run_id)
    execute(services, "UPDATE export_pipeline.export_run_queue SET worker = %s, begun = true", served._seat.worker)
    executed = []
    monkeypatch.setattr(worker, "execute_run", lambda _instance, run_id: executed.append(run_id))
    served._execute(run_id)
    assert executed == []
    assert status(instance, run_id) is Status.FAILURE
