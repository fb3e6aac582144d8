"""Whether the warm workers are away for good: for a moment without them, runs wait in their queue."""

from __future__ import annotations

from functools import lru_cache

from export_pipeline.db.run_queue import Absence, RunQueue
from export_pipeline.defs.process import services

#: Several times what the supervisor and a worker need to start again.
_FOR_GOOD_S = 30.0


def for_good() -> bool:
    """Whether this process, which looks every few seconds, has seen no worker for long.

    Raises:
        DatabaseUnavailable: The server does not answer.
    """
    return _absence().seconds() > _FOR_GOOD_S


@lru_cache(maxsize=1)
def _absence() -> Absence:
    return Absence(RunQueue(services().database))
