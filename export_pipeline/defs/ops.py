"""The steps of an export. Each opens the door, calls one method of `ExportRun`, and says what people should see."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from export_pipeline.collect.parts import Part
from export_pipeline.defs.door import MAX_RETRIES, door
from export_pipeline.defs.resources import LazyExportRun
from export_pipeline.errors import SourceError
from export_pipeline.export_run import StoredFile
from export_pipeline.plan import ExportPlan

Ticket = dict[str, Any]


@dg.op(
    out={"plan": dg.Out(Ticket), "data_types": dg.DynamicOut(str)},
    description="Decide which data types, tables and columns the request means; refuse what is wrong.",
)
def plan_export(
    context: dg.OpExecutionContext, export_run: dg.ResourceParam[LazyExportRun]
) -> Iterator[dg.Output[Ticket] | dg.DynamicOutput[str]]:
    """Request and configuration → plan, and one output for each data type."""
    with door(context, export_run) as run:
        plan = run.plan()
    for planned in plan.types:
        if planned.note:
            context.log.warning(f"{planned.data_type}: {planned.note}")
    yield dg.Output(
        plan.ticket(),
        output_name="plan",
        metadata={"format": plan.format.value, "data_types": [planned.data_type for planned in plan.types]},
    )
    for number, planned in enumerate(plan.types):
        yield _step(number, planned.data_type)


def _step(number: int, data_type: str) -> dg.DynamicOutput[str]:
    """A step that is named after its data type, or by its number where Dagster takes no such name: it has a smaller
    alphabet and reserves words. Every name of ours begins with a letter, so the two never meet."""
    try:
        return dg.DynamicOutput(data_type, mapping_key=data_type, output_name="data_types")
    except dg.DagsterInvalidDefinitionError:
        return dg.DynamicOutput(data_type, mapping_key=f"_{number}", output_name="data_types")


@dg.op(out=dg.Out(Ticket), description="Stream one data type from the source into a sealed part.")
def collect_data_type(
    context: dg.OpExecutionContext, plan: Ticket, data_type: str, export_run: dg.ResourceParam[LazyExportRun]
) -> Iterator[dg.Output[Ticket]]:
    """One data type → part. What the source refuses is named in the file instead of ending the whole export."""
    with door(context, export_run) as run:
        try:
            ticket = run.collect(ExportPlan.from_ticket(plan), data_type).ticket()
        except SourceError as error:
            if error.retryable and context.retry_number < MAX_RETRIES:
                raise
            ticket = {"data_type": data_type, "reason": str(error)}
    if "reason" in ticket:
        context.log.error(f"{data_type} is not exported: {ticket['reason']}")
        yield dg.Output(ticket, metadata={"data_type": data_type, "not exported": ticket["reason"]})
        return
    yield dg.Output(
        ticket,
        metadata={
            "data_type": data_type,
            "rows": ticket["rows"],
            "bytes": ticket["size"],
            "compressed bytes": ticket["packed_size"],
            "seconds": ticket["seconds"],
            "format": plan["format"],
        },
    )


@dg.op(out=dg.Out(Ticket), description="Make the file out of the parts, store it sealed, read it back, compare.")
def render_and_store(
    context: dg.OpExecutionContext,
    plan: Ticket,
    parts: list[Ticket],
    export_run: dg.ResourceParam[LazyExportRun],
) -> Iterator[dg.Output[Ticket]]:
    """Parts → sealed file."""
    collected = [Part(**part) for part in parts if "reason" not in part]
    missing = {part["data_type"]: part["reason"] for part in parts if "reason" in part}
    with door(context, export_run) as run:
        stored = run.render_and_store(ExportPlan.from_ticket(plan), collected, missing)
    yield dg.Output(
        stored.ticket(),
        metadata={
            "format": plan["format"],
            "records": stored.manifest["total_records"],
            "file bytes": stored.size,
            "stored bytes": stored.stored_size,
            "sha256": stored.sha256,
            "not exported": sorted(missing) or "nothing",
        },
    )


@dg.op(out=dg.Out(str), description="Publish the file: metadata, status and audit row in one transaction.")
def write_metadata(
    context: dg.OpExecutionContext, stored: Ticket, export_run: dg.ResourceParam[LazyExportRun]
) -> Iterator[dg.Output[str]]:
    """Sealed file → completed (or partial) request."""
    with door(context, export_run) as run:
        finished = run.write_metadata(StoredFile(**stored))
    yield dg.Output(finished.status.value, metadata={"status": finished.status.value, "attempt": finished.attempt})
