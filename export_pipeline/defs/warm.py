"""What a process that executes one run after the other does once: import everything, hold Dagster's instance."""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import dagster as dg

from export_pipeline.defs.lasting import UNAVAILABLE
from export_pipeline.defs.storage import BufferedEventLogStorage
from export_pipeline.errors import DatabaseUnavailable

_T = TypeVar("_T")
_RETRY_S = 1.0
#: Of 19, the lowest priority there is.
_NICE = 10
#: Where Linux weighs sessions against each other before processes, and ours have sessions of their own.
_SESSION_NICE = Path("/proc/self/autogroup")


def make_way() -> None:
    """Let whoever waits for an answer of the API have the processor first: a run is in no such hurry."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        _SESSION_NICE.write_text(str(_NICE))


def load_definitions() -> None:
    """Import all that a run needs; touches no server."""
    from export_pipeline.definitions import defs

    defs.get_repository_def().get_job("export_user_data")


def begin_buffering(instance: dg.DagsterInstance) -> None:
    """Write the events of a step together from now on."""
    if isinstance(instance.event_log_storage, BufferedEventLogStorage):
        instance.event_log_storage.begin_buffering()


def patiently(act: Callable[[], _T], stopping: threading.Event) -> _T:
    """Do something that our database has to know, again until the database is there.

    Raises:
        Exception: The database is away, and nobody has time to wait any more.
    """
    while True:
        try:
            return act()
        except (*UNAVAILABLE, DatabaseUnavailable):
            if stopping.wait(_RETRY_S):
                raise


def begin_canceling(instance: dg.DagsterInstance, run_id: str) -> None:
    """Say that a run is about to be interrupted because somebody wants that, unless it was said, or it has ended."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished and run.status is not dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceling(run)


def end_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Make sure that Dagster knows of the end of a run that nobody executes any more.

    Dagster passes over an end that it cannot write: the run would count as started for ever.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return
    if run.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, "The run was to end, and its process is gone.")
    else:
        instance.report_run_failed(run, "The run's process is gone, or our database was away when it ended.")
