"""A fresh process that does one contestant's work and says what it took: ``python -m benchmarks.child NAME HOME ROWS``.

The clock runs from the moment when everything is imported and connected; the memory at that moment is the idle value.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS


def main(name: str, home: str, rows: str) -> None:
    """Print one JSON object on the last line."""
    with CONTESTANTS[name].prepare(Path(home), int(rows)) as work:
        gc.collect()
        _forget_peak()
        idle, cpu, began = _memory_mb("VmRSS"), _cpu_s(), time.monotonic()
        tell = work()
        taken: dict[str, Any] = {
            "wall_s": time.monotonic() - began,
            "cpu_s": _cpu_s() - cpu,
            "idle_mb": idle,
            "peak_mb": _memory_mb("VmHWM"),
            "children_peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        }
        facts = tell()
    sys.stdout.write("\n" + json.dumps({**taken, "facts": facts}) + "\n")


def _cpu_s() -> float:
    """Of this process and of those that it has started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _memory_mb(field: str) -> float:
    """Resident memory now (VmRSS) or at its peak (VmHWM); elsewhere than on Linux only the peak is known."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def _forget_peak() -> None:
    """Imports have a peak of their own, which is none of the export's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak includes it


if __name__ == "__main__":
    main(*sys.argv[1:])
