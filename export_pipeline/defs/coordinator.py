"""The warm coordinator: a run that waits for a warm worker is shown as queued, as one in Dagster's own queue is."""

import dagster as dg

from export_pipeline.db.run_queue import RunQueue
from export_pipeline.defs import absence
from export_pipeline.defs.internals import DefaultRunCoordinator
from export_pipeline.defs.own_errors import own_errors
from export_pipeline.defs.process import services
from export_pipeline.errors import ExportPipelineError


class WarmRunCoordinator(DefaultRunCoordinator):
    """Puts runs into the queue of the warm workers; the worker that takes one says that it is starting.

    Whatever comes after that (to terminate a run, to launch it where no worker is alive) is the launcher's.
    """

    def submit_run(self, context: dg.SubmitRunContext) -> dg.DagsterRun:
        """Queue a run, or have it launched at once when no worker has been alive for long.

        Raises:
            ExportPipelineError: Our database cannot be used; the run has failed.
        """
        run = context.dagster_run
        if run.status is not dg.DagsterRunStatus.NOT_STARTED:
            return super().submit_run(context)
        # Before a worker can have it: what the worker says must come after this.
        self._instance.report_dagster_event(dg.DagsterEvent.job_enqueue(run), run_id=run.run_id)
        if not self._put(run):
            self._instance.launch_run(run.run_id, context.workspace)
        return self._instance.get_run_by_id(run.run_id) or run

    def _put(self, run: dg.DagsterRun) -> bool:
        try:
            with own_errors():
                return RunQueue(services().database).put(run.run_id, anyway=not absence.for_good())
        except ExportPipelineError:
            self._instance.report_run_failed(run, "The run could not be handed to the workers.")
            raise
