"""Whatever of ours Dagster calls: when PostgreSQL refuses a statement, Dagster hears no value that it quotes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._utils.error import serializable_error_info_from_exc_info

from export_pipeline.defs import coordinator, deadlines, housekeeping, launcher, retention, sensors, tickets
from export_pipeline.defs.internals import LaunchRunContext
from export_pipeline.errors import ExportPipelineError
from export_pipeline.models import Actor
from export_pipeline.wiring import Services

CANARY = "ada.lovelace@example.org"
TOLD = "Unexpected CheckViolation (SQLSTATE 23514) at "
#: The second is a function of ours, which housekeeping calls.
_REFUSE = """
CREATE OR REPLACE FUNCTION export_pipeline.{} LANGUAGE plpgsql AS $$
BEGIN
    RAISE check_violation USING MESSAGE = 'no {canary}', DETAIL = 'Failing row contains ({canary})';
END $$;
"""
_FUNCTIONS = ("refuse() RETURNS trigger", "chain_late_audit_logs() RETURNS bigint")
_REFUSE_IN = """
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON export_pipeline.export_{}
FOR EACH STATEMENT EXECUTE FUNCTION export_pipeline.refuse()
"""


@dg.op
def nothing() -> None:
    """A step."""


@dg.job
def one_step() -> None:
    """Stands for any job."""
    nothing()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def refusing(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """Our tables, none of which can be changed, with a request that was claimed long ago."""
    services.intake.request(
        actor=Actor(id="admin"), user_id="user-0004", data_types=["user_profile"], kind="custom", format="json"
    )
    services.requests.claim(10)
    for module in (coordinator, deadlines, housekeeping, launcher, retention, sensors, tickets):
        monkeypatch.setattr(module, "services", lambda: services)
    monkeypatch.setattr(sensors, "_SETTLE", timedelta(0))  # the server of the tests may be young
    monkeypatch.setattr(coordinator.absence, "for_good", lambda: False)
    with psycopg.connect(services.database_url) as connection:
        connection.execute("UPDATE export_pipeline.export_requests SET claimed_at = claimed_at - interval '1 hour'")
        for function in _FUNCTIONS:
            connection.execute(_REFUSE.format(function, canary=CANARY))
        for table in ("requests", "audit_logs", "run_queue", "run_tickets"):
            connection.execute(_REFUSE_IN.format(table))
    return services


def new_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    return instance.create_run_for_job(one_step, run_id=str(uuid.uuid4()))


def put_ticket(_instance: dg.DagsterInstance) -> None:
    context = dg.build_output_context(name="result", step_key="step", run_id="run")
    tickets.TicketIOManager().handle_output(context, 1)


def launch(instance: dg.DagsterInstance) -> None:
    made = launcher.WarmRunLauncher()
    made.register_instance(instance)
    try:
        made.launch_run(LaunchRunContext(dagster_run=new_run(instance), workspace=None))
    finally:
        made.dispose()


def submit(instance: dg.DagsterInstance) -> None:
    made = coordinator.WarmRunCoordinator()
    made.register_instance(instance)
    run = new_run(instance)
    try:
        made._put(run)
    finally:
        assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    "call",
    [
        lambda instance: sensors.new_export_requests(dg.build_sensor_context(instance)),
        lambda instance: sensors.reconcile_export_requests(dg.build_sensor_context(instance)),
        put_ticket,
        launch,
        submit,
    ],
    ids=["new_export_requests", "reconcile_export_requests", "ticket", "launcher", "coordinator"],
)
def test_what_is_raised_is_ours(
    refusing: Services, instance: dg.DagsterInstance, call: Callable[[dg.DagsterInstance], object]
) -> None:
    with pytest.raises(ExportPipelineError) as caught:
        call(instance)
    error = caught.value
    assert str(error).startswith(TOLD)
    assert CANARY not in str(serializable_error_info_from_exc_info((type(error), error, error.__traceback__)))


@pytest.mark.parametrize(
    ("job", "steps"),
    [
        (housekeeping.housekeeping, {"prune_runs"}),
        (retention.purge_expired, {"purge_expired_files"}),
        (deadlines.warn_deadlines, {"warn_of_due_dates"}),
    ],
    ids=["housekeeping", "purge_expired", "warn_deadlines"],
)
def test_a_step_fails_in_words_of_ours(
    refusing: Services, instance: dg.DagsterInstance, job: dg.JobDefinition, steps: set[str]
) -> None:
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    failed = {event.step_key: event for event in result.all_events if event.is_step_failure}
    assert failed.keys() == steps
    for event in failed.values():
        assert event.step_failure_data.user_failure_data.description.startswith(TOLD)
    entries: list[Any] = instance.all_logs(result.run_id)
    assert CANARY not in "\n".join(f"{entry}{entry.to_json()}" for entry in entries)
