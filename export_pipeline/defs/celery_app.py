"""Celery's side of a run: its workers load this app, and execute what `celery_launcher` sent.

Started by `export-pipeline up` and `export-pipeline worker` as ``celery -A export_pipeline.defs.celery_app worker``. An
app has to exist when its module is imported, so this is the one module outside `settings` that reads the environment at
that moment.
"""

import os
import signal
import threading
from functools import lru_cache
from typing import Any

import dagster as dg
from celery import Celery
from celery.signals import worker_init, worker_process_init
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.make_app import make_app

from export_pipeline import settings
from export_pipeline.defs.internals import capture_interrupts, execute_run, run_to_execute
from export_pipeline.defs.launcher import NOT_BEGUN
from export_pipeline.defs.warm import begin_buffering, end_run, load_definitions, make_way, patiently
from export_pipeline.parent import end_with_parent

#: A task is given to another worker when its own has not finished it for so long. It may well be working: whoever gets
#: a run that was begun lets go of it. What counts is the run that a worker took and never began.
_REDELIVER_S = 60
_RETRY_S = 5
#: For the app; the launcher uses them too.
CONFIGURATION: dict[str, Any] = {
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {"visibility_timeout": _REDELIVER_S},
    "task_acks_late": True,
    # A run may take longer than any answer should be kept by default.
    "result_expires": 7 * 24 * 3600,
    # A broker that is away for some minutes delays the launch; it fails no run.
    "task_publish_retry_policy": {"max_retries": 300, "interval_start": 0.2, "interval_step": 0.2, "interval_max": 1.0},
    "worker_prefetch_multiplier": 1,
    # A run waits at the broker, for whoever is free first, and never behind another in a worker.
    "worker_disable_prefetch": True,
    "worker_send_task_events": False,
}


def _make() -> Celery:
    url = settings.load().broker_url
    broker = url.get_secret_value() if url else None
    return make_app({"broker": broker, "backend": broker, "config_source": CONFIGURATION})  # type: ignore[no-untyped-call]


app = _make()
#: The worker's own process; the others are forked from it.
_forks_from: list[int] = []


@app.task(  # type: ignore[untyped-decorator]
    name=TASK_EXECUTE_JOB_NAME,
    track_started=True,
    # The launcher has an app of its own, with Dagster's task of the same name.
    shared=False,
    # Our database is away: the run was not begun, and is tried again.
    autoretry_for=(Exception,),
    default_retry_delay=_RETRY_S,
    max_retries=None,
)
def execute_job(execute_job_args_packed: dict[str, Any]) -> None:
    """Execute a run here, unless it was begun already: a broker may deliver a task twice."""
    run_id = run_to_execute(execute_job_args_packed)
    run = _instance().get_run_by_id(run_id)
    if run is not None and run.status in NOT_BEGUN:
        with capture_interrupts():
            execute_run(_instance(), run_id)
        patiently(lambda: end_run(_instance(), run_id), threading.Event())


@lru_cache(maxsize=1)
def _instance() -> dg.DagsterInstance:
    """One for the life of the process."""
    instance = dg.DagsterInstance.get()
    begin_buffering(instance)
    return instance


@worker_init.connect  # type: ignore[untyped-decorator]
def _import_everything(**_: object) -> None:
    """Before the processes that execute runs are forked, so that none of them has to."""
    make_way()
    load_definitions()
    _forks_from.append(os.getpid())


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _end_with_worker(**_: object) -> None:
    """A killed worker takes its processes with it, and their leases end: nobody works unseen."""
    end_with_parent(_forks_from[-1], signal.SIGKILL)
