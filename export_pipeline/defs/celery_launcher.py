"""The launcher `celery`: runs go to Celery workers, on this machine and on others, through a broker.

Dagster's own `CeleryRunLauncher` with two differences. Whether a begun run lives, its lease says (the sensor
`reconcile_export_requests` looks), so a broker that forgot a task's state ends no run. And a run that still waits
at the broker can be terminated.
"""

from collections.abc import Mapping
from typing import Any

from dagster import DagsterRun
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from export_pipeline.defs.celery_app import CONFIGURATION
from export_pipeline.defs.internals import (
    CheckRunHealthResult,
    ConfigurableClassData,
    UserConfigSchema,
    WorkerStatus,
)
from export_pipeline.defs.launcher import NOT_BEGUN
from export_pipeline.defs.process import services
from export_pipeline.errors import ConfigurationError


class BrokerRunLauncher(CeleryRunLauncher):
    """Sends runs to the broker that `EXPORT_PIPELINE_BROKER_URL` names."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure: so no password has to stand in `dagster.yaml`."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "BrokerRunLauncher":
        """Called by Dagster for each instance.

        Raises:
            ConfigurationError: No broker is set.
        """
        url = services().settings.broker_url
        if url is None:
            raise ConfigurationError("The launcher `celery` needs a broker.", hint="Set EXPORT_PIPELINE_BROKER_URL.")
        broker = url.get_secret_value()
        return cls(
            default_queue="dagster", broker=broker, backend=broker, config_source=CONFIGURATION, inst_data=inst_data
        )

    def terminate(self, run_id: str) -> bool:
        """Interrupt a run, or withdraw one that no worker has begun."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        super().terminate(run_id)
        if run.status in NOT_BEGUN:
            self._instance.report_run_canceled(run, "Withdrawn before a worker took it.")
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Say whether the worker of a run lives, as far as Celery knows."""
        if DAGSTER_CELERY_TASK_ID_TAG in run.tags:
            found = super().check_run_worker_health(run)
            if found.status is not WorkerStatus.UNKNOWN:
                return found
        return CheckRunHealthResult(WorkerStatus.RUNNING, "its lease tells")
