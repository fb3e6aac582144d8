"""`pdf`: the report and its data files, for a user with many rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import report, scene
from benchmarks.measure import Run, in_turns


def run(*, rows: int, rounds: int, home: Path) -> dict[str, Any]:
    """Measure, print the table, and return the figures of the contract.

    The memory is the run's own peak and that of its largest compiler process, added: both live at the same time.

    Args:
        rows: Rows of the heavy user.
        rounds: Runs; medians count.
        home: State folder of the scene.
    """
    with scene.prepared(home, rows):
        results = in_turns(["pdf"], home=home, rows=rows, rounds=rounds, said=report.console.print)
    figures = {
        "cpu_s": results.median("pdf", lambda run: run.cpu_s),
        "rss_mb": results.median("pdf", _memory),
        "pages": int(results.median("pdf", lambda run: run.facts["pages"]) or 0),
        "wall_s": results.median("pdf", lambda run: run.wall_s),
        "rows": rows,
    }
    report.table(f"pdf: {rows:,} rows, medians of {rounds} rounds", list(figures), [list(figures.values())])
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}


def _memory(run: Run) -> float:
    return run.peak_mb + run.children_peak_mb
