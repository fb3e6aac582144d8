"""`staging`: what it costs that each data type is first a sealed part, beside one straight stream into the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import report, scene
from benchmarks.contestants import CONTESTANTS
from benchmarks.measure import in_turns

_NAMES = ("csv", "straight")


def run(*, rows: int, rounds: int, home: Path) -> dict[str, Any]:
    """Measure, print the table, and return the figures.

    Args:
        rows: Rows of the heavy user.
        rounds: Runs of each contestant.
        home: State folder of the scene.
    """
    with scene.prepared(home, rows):
        results = in_turns(_NAMES, home=home, rows=rows, rounds=rounds, said=report.console.print)
    cpu = {name: results.median(name, lambda run: run.cpu_s) or 0.0 for name in _NAMES}
    report.table(
        f"staging: {rows:,} rows, medians of {rounds} interleaved rounds",
        ["way", "wall s", "CPU s", "peak MiB"],
        [
            [
                CONTESTANTS[name].title,
                results.median(name, lambda run: run.wall_s),
                cpu[name],
                results.median(name, lambda run: run.peak_mb),
            ]
            for name in _NAMES
        ],
    )
    return {
        "staged_vs_straight": results.speed("csv", "straight"),
        "extra_cpu_s": round(cpu["csv"] - cpu["straight"], 3),
        "rows": rows,
    }
