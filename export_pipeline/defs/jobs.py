"""The job: one partitioned run for each export request."""

import dagster as dg

from export_pipeline.defs.ops import collect_data_type, plan_export, render_and_store, write_metadata
from export_pipeline.defs.partitions import export_requests


@dg.job(
    description="Export one person's data: plan, collect every data type, render and store, write metadata.",
    partitions_def=export_requests,
    # One process for all ops: they share one snapshot of the source, and a run costs one start.
    executor_def=dg.in_process_executor,
)
def export_user_data() -> None:
    """The whole river in one sentence."""
    plan, data_types = plan_export()
    parts = data_types.map(lambda data_type: collect_data_type(plan, data_type))
    write_metadata(render_and_store(plan, parts.collect()))
