"""What an op gets: the work of its run, made once for the run and closed with it."""

from collections.abc import Iterator

import dagster as dg

from export_pipeline.defs.own_errors import own_errors
from export_pipeline.defs.partitions import ATTEMPT_TAG, PARTITION_TAG
from export_pipeline.defs.process import services
from export_pipeline.export_run import ExportRun

_PARENT_TAG = "dagster/parent_run_id"


class LazyExportRun:
    """Makes the `ExportRun` inside the first op, where a failure can be reported to the request.

    Args:
        request_id: The partition; None when somebody launched the job without one.
        run_id: The Dagster run.
        reopen: Whether a person asked for this run.
    """

    def __init__(self, request_id: str | None, run_id: str, *, reopen: bool) -> None:
        self._request_id = request_id
        self._run_id = run_id
        self._reopen = reopen
        self._run: ExportRun | None = None

    def get(self) -> ExportRun:
        """The work of this run.

        Raises:
            ExportPipelineError: Settings or database are not usable.
            dagster.Failure: The job was launched without a partition.
        """
        if self._request_id is None:
            raise dg.Failure("Choose a partition: the request to export.", allow_retries=False)
        if self._run is None:
            self._run = services().run(self._request_id, self._run_id, reopen=self._reopen)
        return self._run

    def close(self) -> None:
        """Let go of lease and snapshot."""
        if self._run is not None:
            self._run.close()


@dg.resource(description="The work of this run on its request: lease, snapshot, vault.")
def export_run(context: dg.InitResourceContext) -> Iterator[LazyExportRun]:
    """One for each run; the in-process executor shares it between all ops, so they share one snapshot."""
    run = context.run
    tags = run.tags if run else {}
    lazy = LazyExportRun(
        tags.get(PARTITION_TAG),
        run.run_id if run else "",
        reopen=ATTEMPT_TAG not in tags or _PARENT_TAG in tags,
    )
    try:
        yield lazy
    finally:
        with own_errors():
            lazy.close()
