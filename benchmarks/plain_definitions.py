"""Our definitions as plain Dagster would run them: the default executor starts a process for every step."""

import dagster as dg

from export_pipeline.defs.ops import collect_data_type, plan_export, render_and_store, write_metadata
from export_pipeline.defs.partitions import export_requests
from export_pipeline.defs.resources import export_run
from export_pipeline.defs.sensors import new_export_requests
from export_pipeline.defs.tickets import TicketIOManager


@dg.job(partitions_def=export_requests, executor_def=dg.multiprocess_executor.configured({"max_concurrent": 1}))
def export_user_data() -> None:
    """The same river, one process for each step."""
    plan, data_types = plan_export()
    parts = data_types.map(lambda data_type: collect_data_type(plan, data_type))
    write_metadata(render_and_store(plan, parts.collect()))


defs = dg.Definitions(
    jobs=[export_user_data],
    sensors=[new_export_requests.with_updated_jobs([export_user_data])],
    resources={"export_run": export_run, "io_manager": TicketIOManager()},
)
