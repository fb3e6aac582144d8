"""One `Services` for each process that Dagster starts: code server, daemon, web server, run."""

from __future__ import annotations

import atexit
from functools import lru_cache

from export_pipeline import settings, wiring


@lru_cache(maxsize=1)
def services() -> wiring.Services:
    """Made at first use, so that loading the definitions touches nothing, and given back when the process ends.

    Raises:
        ExportPipelineError: Settings, key or database are not usable; the message says what to do.
    """
    made = wiring.connect(settings.load())
    atexit.register(made.close)
    return made
