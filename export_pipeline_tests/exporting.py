"""What a run does with its request, from the plan to the published file, without Dagster."""

from __future__ import annotations

from contextlib import closing

from export_pipeline.export_run import ExportRun
from export_pipeline.models import ExportRequest
from export_pipeline.wiring import Services


def execute(services: Services, request_id: str, run_id: str = "run-1") -> ExportRequest:
    """Claim what waits, and take this one through its run."""
    services.requests.claim(100)
    with closing(services.run(request_id, run_id, reopen=False)) as run:
        return all_steps(run)


def all_steps(run: ExportRun) -> ExportRequest:
    """Plan, collect, render, publish."""
    plan = run.plan()
    parts = [run.collect(plan, planned.data_type) for planned in plan.types]
    return run.write_metadata(run.render_and_store(plan, parts, {}))
