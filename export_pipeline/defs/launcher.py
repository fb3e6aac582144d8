"""The warm launcher: runs go to worker processes that have imported everything already.

The public base class is all that it needs of Dagster. Where no worker is alive, runs are launched the stock way.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from export_pipeline.db.run_queue import RunQueue
from export_pipeline.defs.internals import (
    CheckRunHealthResult,
    ConfigurableClass,
    ConfigurableClassData,
    LaunchRunContext,
    RunLauncher,
    UserConfigSchema,
    WorkerStatus,
)
from export_pipeline.defs.own_errors import own_errors
from export_pipeline.defs.process import services

#: A run that has another status was begun by somebody, and must not be begun again.
NOT_BEGUN = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)


class WarmRunLauncher(RunLauncher[dg.DagsterInstance], ConfigurableClass):
    """Puts runs into the queue of the warm workers."""

    #: What the sensors ask.
    by_workers = True

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._stock: RunLauncher[dg.DagsterInstance] = dg.DefaultRunLauncher()
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """How Dagster makes another one."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "WarmRunLauncher":
        """Called by Dagster for each instance."""
        return cls(inst_data=inst_data)

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """The stock launcher serves the same instance."""
        super().register_instance(instance)
        self._stock.register_instance(instance)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Hand the run to a warm worker, or launch it the stock way when none is alive."""
        with self._queue() as queue:
            put = queue.put(context.dagster_run.run_id)
        if not put:
            self._stock.launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """Interrupt a run, or withdraw one that no worker has begun."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        with self._queue() as queue:
            withdrawn = queue.withdraw(run_id)
            found = None if withdrawn else queue.find(run_id)
        if withdrawn:
            self._instance.report_run_canceling(run, "Canceling run from the queue.")
            self._instance.report_run_canceled(run)
            return True
        if found is None:
            return self._stock.terminate(run_id)
        self._instance.report_run_canceling(run)
        if not found.alive:
            self._instance.report_run_canceled(run, "Its worker is gone.")
        with self._queue() as queue:
            (queue.cancel if found.alive else queue.done)(run_id)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: a worker's lock shows whether it lives."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Say whether the worker of a run lives. About a run that was launched the stock way nothing is known."""
        with self._queue() as queue:
            found = queue.find(run.run_id)
        if found is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not by a warm worker")
        if found.taken and not found.alive:
            return CheckRunHealthResult(WorkerStatus.FAILED, "the worker's process is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def dispose(self) -> None:
        """Let go of the stock launcher."""
        self._stock.dispose()

    @contextmanager
    def _queue(self) -> Iterator[RunQueue]:
        with own_errors():
            yield RunQueue(services().database)
