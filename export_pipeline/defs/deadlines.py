"""Deadlines: people are told of requests whose due date is near, while there is time to answer."""

import dagster as dg

from export_pipeline.db.requests import DUE_SOON
from export_pipeline.defs.door import plain_door
from export_pipeline.defs.process import services


@dg.op(
    out=dg.Out(dg.Nothing),
    description="Warn about gdpr requests whose due date is near or over and that have no file yet.",
)
def warn_of_due_dates(context: dg.OpExecutionContext) -> None:
    """How many are due, as metadata; a warning in the log and a row in the trail, once for each due date."""
    with plain_door():
        due = services().requests.warn_due(DUE_SOON)
        state = services().requests.deadlines(DUE_SOON)
    for request in due:
        context.log.warning(f"{request.request_id} is {request.status}, and due on {request.due_at:%Y-%m-%d}.")
    context.add_output_metadata(
        {
            "overdue": state.overdue,
            "due within 7 days": state.soon,
            "warned about now": len(due),
            "requests": [f"{request.request_id}, due on {request.due_at:%Y-%m-%d}" for request in due] or "none",
        }
    )


@dg.job(
    description="Warn about gdpr requests that are due within 7 days, or overdue, and have no file yet.",
    executor_def=dg.in_process_executor,
)
def warn_deadlines() -> None:
    """One step."""
    warn_of_due_dates()


warn_deadlines_hourly = dg.ScheduleDefinition(
    name="warn_deadlines_hourly",
    job=warn_deadlines,
    cron_schedule="7 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour: gdpr requests that are due within 7 days or overdue are warned about, once for each date.",
)
