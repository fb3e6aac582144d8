"""The way from a row to a run, and the way back when a run is lost."""

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg

from export_pipeline.db.requests import QueueState, StalledRequest
from export_pipeline.db.run_queue import RunQueue
from export_pipeline.defs import absence
from export_pipeline.defs.jobs import export_user_data
from export_pipeline.defs.own_errors import own_errors
from export_pipeline.defs.partitions import ATTEMPT_TAG, PARTITION_TAG, export_requests
from export_pipeline.defs.process import services
from export_pipeline.errors import VaultError, WrongStatus
from export_pipeline.models import RequestStatus

_CLAIMS_PER_TICK = 100
#: Claimed requests for each run that can go on at once: enough to keep workers busy until the next round, few enough
#: that a more urgent request does not wait long behind them.
_RUNS_AHEAD = 12
#: A run needs some seconds from the claim to its first step; only after that is a missing run suspicious.
_GRACE = timedelta(seconds=20)
_SETTLE = timedelta(seconds=15)
#: A living run whose connection broke takes its lease again within two seconds; who is away at both looks is dead.
_LOOK_AGAIN_S = 4.0
#: How long a run may take from one sign of life to the next before it counts as lost: from its making to its place in
#: the queue of the warm workers; from its launch, where it is not in that queue, to its beginning; and to its request.
_PATIENCE = {
    dg.DagsterRunStatus.NOT_STARTED: timedelta(seconds=20),
    dg.DagsterRunStatus.QUEUED: timedelta(seconds=20),
    dg.DagsterRunStatus.STARTING: timedelta(seconds=120),
    dg.DagsterRunStatus.STARTED: timedelta(seconds=60),
}
_WITHDRAWN = (RequestStatus.CANCELLED, RequestStatus.DELETED)
#: A run ends a little after its request.
_ENDS_WITHIN = timedelta(seconds=60)


@dg.sensor(
    job=export_user_data,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="New rows in export_requests → one partitioned run each.",
)
@own_errors()
def new_export_requests(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Claim open requests and ask for their runs. Two sensors at once claim different rows.

    The cursor is nothing that is needed: it shows the queue in the UI.
    """
    store = services().requests
    claims = store.claim(_CLAIMS_PER_TICK, in_flight=in_flight(context.instance))
    queue = _in_words(store.queue())
    if not claims:
        return dg.SensorResult(skip_reason=f"Nothing to claim. {queue}", cursor=queue)
    return dg.SensorResult(
        cursor=queue,
        run_requests=[
            dg.RunRequest(
                # A run key counts once for ever, so a retry needs another one.
                run_key=f"{claim.request_id}:{claim.attempt}",
                partition_key=claim.request_id,
                tags={ATTEMPT_TAG: str(claim.attempt)},
            )
            for claim in claims
        ],
        dynamic_partitions_requests=[export_requests.build_add_request([claim.request_id for claim in claims])],
    )


def in_flight(instance: dg.DagsterInstance) -> int:
    """Requests that may be claimed or processing at the same time.

    Where the workers are away for good, each run gets a process of its own at once, so there is nothing to keep busy.
    """
    alone = _by_workers(instance) and absence.for_good()
    return services().settings.max_concurrent_runs * (1 if alone else _RUNS_AHEAD)


def _by_workers(instance: dg.DagsterInstance) -> bool:
    """Whether warm workers execute the runs. Asked of the launcher: to import its class needs private names."""
    return bool(getattr(instance.run_launcher, "by_workers", False))


def _in_words(queue: QueueState) -> str:
    return (
        f"{queue.pending} pending, {queue.claimed} claimed, {queue.processing} processing;"
        f" the oldest waits for {queue.oldest_waiting_seconds:.0f} s."
    )


@dg.sensor(
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests whose run is gone → back into the queue, or failed with a reason.",
)
@own_errors()
def reconcile_export_requests(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Find requests that nobody works on and settle each by what became of its run; and runs that were left behind."""
    settled = [
        f"{stalled.request_id}: {outcome}" for stalled in _stalled() if (outcome := _settle(context.instance, stalled))
    ]
    ended = [f"run {run_id}: asked to end" for run_id in _end_cancelled_runs(context.instance)]
    left = [f"run {run_id}: ended" for run_id in _end_runs_left_behind(context.instance)]
    return dg.SkipReason("; ".join(settled + ended + left) or "Every request that is on its way has a run.")


def _stalled() -> list[StalledRequest]:
    look = partial(services().requests.stalled, grace=_GRACE, settle=_SETTLE)
    found = look()
    if any(stalled.status is RequestStatus.PROCESSING for stalled in found):
        time.sleep(_LOOK_AGAIN_S)
        still = look()
        return [stalled for stalled in found if stalled in still]
    return found


def _end_cancelled_runs(instance: dg.DagsterInstance) -> list[str]:
    """Terminate runs whose request was cancelled or deleted, as a person would in the UI.

    A warm worker was told at once, and has said so; here are all others, which would notice at their next step only.
    """
    filters = dg.RunsFilter(job_name=export_user_data.name, statuses=[dg.DagsterRunStatus.STARTED])
    runs = {run.run_id: run.tags.get(PARTITION_TAG, "") for run in instance.get_runs(filters, limit=_CLAIMS_PER_TICK)}
    withdrawn = services().requests.withdrawn_runs(runs) if runs else set()
    for run_id in withdrawn:
        with suppress(Exception):  # its process can't be reached: what has been said of the run counts after a while
            instance.run_coordinator.cancel_run(run_id)
    return sorted(withdrawn)


def _end_runs_left_behind(instance: dg.DagsterInstance) -> list[str]:
    """Tell Dagster of runs that died after their request had ended: nothing else would ever end them."""
    filters = dg.RunsFilter(
        job_name=export_user_data.name,
        statuses=[dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED],
        updated_before=datetime.now(UTC) - _ENDS_WITHIN,
    )
    records = instance.get_run_records(filters, limit=_CLAIMS_PER_TICK, ascending=True)
    runs = [record.dagster_run for record in records]
    left = services().requests.left([run.tags.get(PARTITION_TAG, "") for run in runs], settle=_SETTLE) if runs else {}
    ended = [run for run in runs if run.tags.get(PARTITION_TAG, "") in left]
    for run in ended:
        status = left[run.tags.get(PARTITION_TAG, "")]
        report = instance.report_run_canceled if status in _WITHDRAWN else instance.report_run_failed
        report(run, f"The run's process is gone. Nothing is lost: its request is {status}.")
    return [run.run_id for run in ended]


def _settle(instance: dg.DagsterInstance, stalled: StalledRequest) -> str:
    """Return what was done, or an empty text when the run may still come."""
    run = _run_of(instance, stalled)
    claimed_only = stalled.status is RequestStatus.PENDING
    if run is not None and not run.is_finished:
        if claimed_only and not _lost(instance, run):
            return ""
        why = "it never came to its request." if claimed_only else "it no longer holds the lease on its request."
        instance.report_run_failed(run, f"The run's process is gone: {why}")
    try:
        if run is not None and run.status is dg.DagsterRunStatus.CANCELED:
            services().requests.cancel_stalled(stalled, detail=f"run {run.run_id} was terminated")
            return "cancelled, because its run was"
        reason = f"run {run.run_id} ended as {run.status.value.lower()}" if run else "its run was never launched"
        moved = services().requests.requeue(stalled, max_attempts=services().settings.max_attempts, detail=reason)
    except WrongStatus:
        return ""  # it moved on while we looked
    if moved.status is RequestStatus.FAILED:
        _clear(stalled.request_id)
    return f"{moved.status.value}, because {reason}"


def _clear(request_id: str) -> None:
    """Remove what the dead runs left, unless a person has put the request back and a run works on it already."""
    with suppress(VaultError), services().files.hold(request_id) as held:  # sealed, and the purge finds it too
        if held is not None and held.state is not None and not held.state.is_open:
            services().clear(request_id)


def _lost(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run whose request still waits for it will never come.

    How long a launched run may take, Dagster's run monitoring decides by time alone. Runs for warm workers may wait
    long behind others, so their queue is asked.
    """
    record = instance.get_run_record_by_id(run.run_id)
    if record is None or datetime.now(UTC) - record.update_timestamp < _PATIENCE.get(run.status, timedelta.max):
        return False
    if run.status in {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED}:
        return True
    if not _by_workers(instance):
        return False
    queue = RunQueue(services().database)
    if queue.find(run.run_id) is not None:
        return absence.for_good() and queue.abandoned(run.run_id)
    # Asked after the queue: who takes a run out of it has called it something else before.
    now = instance.get_run_by_id(run.run_id)
    return now is not None and now.status is run.status


def _run_of(instance: dg.DagsterInstance, stalled: StalledRequest) -> dg.DagsterRun | None:
    if stalled.status is RequestStatus.PROCESSING:
        return instance.get_run_by_id(stalled.run_id or "")
    tags = {PARTITION_TAG: stalled.request_id, ATTEMPT_TAG: str(stalled.attempt)}
    return next(iter(instance.get_runs(filters=dg.RunsFilter(tags=tags), limit=1)), None)
