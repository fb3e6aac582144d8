"""Housekeeping: Dagster forgets the runs of old requests, so that its UI stays quick; the requests stay."""

from datetime import timedelta

import dagster as dg

from export_pipeline import audit
from export_pipeline.defs.door import plain_door
from export_pipeline.defs.partitions import PARTITIONS
from export_pipeline.defs.process import services
from export_pipeline.defs.pruning import Pruning


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


prune_finished_requests = dg.ScheduleDefinition(
    name="prune_finished_requests",
    job=housekeeping,
    cron_schedule="17 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour: old runs go.",
)
