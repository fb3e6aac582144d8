"""Retention: files whose time is over go, and whatever crashes left."""

import dagster as dg

from export_pipeline.defs.door import plain_door
from export_pipeline.defs.process import services

#: Missing files that Dagster hears of one by one. A store that is another one lacks all of them, each hour anew.
_NAMED = 50


@dg.op(
    out=dg.Out(dg.Nothing),
    description="Expire requests, remove their files and what crashes left; compare stores and tables both ways.",
)
def purge_expired_files(context: dg.OpExecutionContext) -> None:
    """Settings → what was removed, as metadata."""
    with plain_door():
        purged = services().retention.purge()
    for request_id in purged.missing[:_NAMED]:
        context.log.error(f"The file of {request_id} is not in the store, though its request is completed.")
    if len(purged.missing) > _NAMED:
        context.log.error(
            f"{len(purged.missing):,} files are not in the store. Is it the right one?"
            " `export-pipeline purge --dry-run` names all of them."
        )
    context.add_output_metadata(purged.facts() | {"missing files": purged.missing[:_NAMED]})


@dg.job(
    description="Keep no file longer than promised: expire, remove, and report files that are missing.",
    executor_def=dg.in_process_executor,
)
def purge_expired() -> None:
    """One step."""
    purge_expired_files()


purge_expired_hourly = dg.ScheduleDefinition(
    name="purge_expired_hourly",
    job=purge_expired,
    cron_schedule="47 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour: files whose time is over go.",
)
