"""Everything that Dagster loads, on one screen."""

import dagster as dg

from export_pipeline.defs.deadlines import warn_deadlines, warn_deadlines_hourly
from export_pipeline.defs.housekeeping import housekeeping, prune_finished_requests
from export_pipeline.defs.jobs import export_user_data
from export_pipeline.defs.resources import export_run
from export_pipeline.defs.retention import purge_expired, purge_expired_hourly
from export_pipeline.defs.sensors import new_export_requests, reconcile_export_requests
from export_pipeline.defs.tickets import TicketIOManager

defs = dg.Definitions(
    jobs=[export_user_data, housekeeping, purge_expired, warn_deadlines],
    schedules=[prune_finished_requests, purge_expired_hourly, warn_deadlines_hourly],
    sensors=[new_export_requests, reconcile_export_requests],
    resources={"export_run": export_run, "io_manager": TicketIOManager()},
)
