"""What our Celery worker relies on in dagster-celery: the task's name, its queue, and what stands in its message."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import dagster as dg
import pytest
from dagster._core.origin import JobPythonOrigin
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import pack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.make_app import make_app

from export_pipeline.defs.internals import run_to_execute


@pytest.fixture
def celery_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("EXPORT_PIPELINE_LAUNCHER", "celery")
    monkeypatch.setenv("EXPORT_PIPELINE_BROKER_URL", "redis://:password@broker.example.org/0")
    sys.modules.pop("export_pipeline.defs.celery_app", None)
    yield importlib.import_module("export_pipeline.defs.celery_app")
    sys.modules.pop("export_pipeline.defs.celery_app", None)


def test_a_message_names_the_run() -> None:
    origin = dg.reconstructable(_named_job).get_python_origin()
    assert isinstance(origin, JobPythonOrigin)
    packed = pack_value(
        ExecuteRunArgs(job_origin=origin, run_id="run-1", instance_ref=None, set_exit_code_on_failure=True)
    )
    assert run_to_execute(packed) == "run-1"


@dg.job
def _named_job() -> None:
    """Does nothing."""


def test_our_task_has_the_name_that_the_launcher_sends(celery_app: ModuleType) -> None:
    assert celery_app.execute_job.name == TASK_EXECUTE_JOB_NAME
    # An app knows tasks of other apps too, unless they were kept apart.
    assert celery_app.app.tasks[TASK_EXECUTE_JOB_NAME].run.__module__ == "export_pipeline.defs.celery_app"
    routes = make_app().conf.task_routes
    assert routes[TASK_EXECUTE_JOB_NAME]["queue"] == "dagster"


def test_the_worker_takes_one_run_at_a_time_and_gives_back_what_it_never_began(celery_app: ModuleType) -> None:
    conf = celery_app.app.conf
    assert [queue.name for queue in conf.task_queues] == ["dagster"]
    assert conf.worker_disable_prefetch
    assert conf.worker_prefetch_multiplier == 1
    assert celery_app.execute_job.acks_late
    assert conf.broker_transport_options["visibility_timeout"] == 60
    assert conf.broker_url == conf.result_backend == "redis://:password@broker.example.org/0"
