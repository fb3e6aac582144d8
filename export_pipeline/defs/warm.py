"""What a process that executes one run after the other does once: import everything, hold Dagster's instance."""

import contextlib
import os
from pathlib import Path

import dagster as dg

from export_pipeline.defs.storage import BufferedEventLogStorage

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
