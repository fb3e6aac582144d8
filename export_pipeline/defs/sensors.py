"""The way from a row to a run, and the way back when a run is lost."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import dagster as dg

from export_pipeline.db.requests import QueueState, StalledRequest
from export_pipeline.db.run_queue import RunQueue
from export_pipeline.defs.jobs import export_user_data
from export_pipeline.defs.launcher import NOT_BEGUN, WarmRunLauncher
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
#: A run that no warm worker has and that did not begin for so long was launched the stock way, and died at once.
_START_LIMIT = timedelta(seconds=120)


@dg.sensor(
    job=export_user_data,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="New rows in export_requests → one partitioned run each.",
)
def new_export_requests(_context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Claim open requests and ask for their runs. Two sensors at once claim different rows.

    The cursor is nothing that is needed: it shows the queue in the UI.
    """
    store = services().requests
    claims = store.claim(_CLAIMS_PER_TICK, in_flight=in_flight())
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


def in_flight() -> int:
    """Requests that may be claimed or processing at the same time."""
    return _RUNS_AHEAD * services().settings.max_concurrent_runs


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
def reconcile_export_requests(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Find requests that nobody works on and settle each by what became of its run."""
    settled = [
        f"{stalled.request_id}: {outcome}"
        for stalled in services().requests.stalled(grace=_GRACE, settle=_SETTLE)
        if (outcome := _settle(context.instance, stalled))
    ]
    return dg.SkipReason("; ".join(settled) or "Every request that is on its way has a run.")


def _settle(instance: dg.DagsterInstance, stalled: StalledRequest) -> str:
    """Return what was done, or an empty text when the run may still come."""
    run = _run_of(instance, stalled)
    claimed_only = stalled.status is RequestStatus.PENDING
    if run is not None and not run.is_finished:
        if claimed_only and not _lost(instance, run):
            return ""
        why = "no worker took it." if claimed_only else "it no longer holds the lease on its request."
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
        with suppress(VaultError):  # sealed, and found by whoever looks after the store
            services().clear(stalled.request_id)
    return f"{moved.status.value}, because {reason}"


def _lost(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run that has not begun never will.

    Dagster's run monitoring decides it by time alone. Runs for warm workers may wait long behind others, so their queue
    is asked.
    """
    if not isinstance(instance.run_launcher, WarmRunLauncher) or run.status not in NOT_BEGUN:
        return False
    record = instance.get_run_record_by_id(run.run_id)
    if record is None or datetime.now(UTC) - record.create_timestamp < _START_LIMIT:
        return False
    return RunQueue(services().database).abandoned(run.run_id)


def _run_of(instance: dg.DagsterInstance, stalled: StalledRequest) -> dg.DagsterRun | None:
    if stalled.status is RequestStatus.PROCESSING:
        return instance.get_run_by_id(stalled.run_id or "")
    tags = {PARTITION_TAG: stalled.request_id, ATTEMPT_TAG: str(stalled.attempt)}
    return next(iter(instance.get_runs(filters=dg.RunsFilter(tags=tags), limit=1)), None)
