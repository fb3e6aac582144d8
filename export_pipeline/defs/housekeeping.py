"""Housekeeping: Dagster forgets the runs of old requests, so that its UI stays quick; the requests stay."""

from datetime import timedelta

import dagster as dg

from export_pipeline import audit
from export_pipeline.defs.door import plain_door
from export_pipeline.defs.own_errors import own_errors
from export_pipeline.defs.partitions import PARTITIONS
from export_pipeline.defs.process import services
from export_pipeline.defs.pruning import Pruning

#: The minute of the tick that always asks for the job.
_HOURLY = 18


@dg.op(
    out=dg.Out(dg.Nothing),
    description="Forget partitions, runs, events and tickets of requests that ended long ago, or are too many.",
)
def prune_runs(context: dg.OpExecutionContext) -> None:
    """Settings → rows deleted, as metadata."""
    with plain_door():
        settings = services().settings
        pruning = Pruning(
            database=services().database,
            partitions_def=PARTITIONS,
            keep=settings.keep_partitions,
            age=timedelta(days=settings.keep_runs_days),
        )
        head = audit.head(services().database)  # takes along what waits to be chained
        pruned = pruning.run()
    context.add_output_metadata(
        {
            "partitions": pruned.partitions,
            "runs": pruned.runs,
            "events": pruned.events,
            "tickets": pruned.tickets,
            "schedule ticks": pruned.ticks,
            "partitions still due": pruned.left,
            "audit rows": head.rows,
            "audit head": head.hash,
        }
    )


@dg.job(
    description="Keep Dagster's UI quick: requests, metadata and the audit trail stay, old runs go.",
    executor_def=dg.in_process_executor,
)
def housekeeping() -> None:
    """One step."""
    prune_runs()


@dg.schedule(
    job=housekeeping,
    cron_schedule="3-58/5 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour, and within five minutes where too many have come: old runs go.",
)
@own_errors()
def prune_finished_requests(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for the job once an hour, and whenever there are a quarter more partitions than stay.

    Under load thousands come in an hour, and Dagster's partition page would become slow until the next one.
    """
    there = len(context.instance.get_dynamic_partitions(PARTITIONS))
    keep = services().settings.keep_partitions
    if context.scheduled_execution_time.minute != _HOURLY and there <= keep * 5 // 4:
        return dg.SkipReason(f"There are {there:,} partitions, and {keep:,} stay: time enough at {_HOURLY} past.")
    return dg.RunRequest()
