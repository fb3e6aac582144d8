"""`data-path`: from a table in PostgreSQL to an encrypted, stored, re-read file, beside what else one could do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, scene
from benchmarks.contestants import CONTESTANTS
from benchmarks.measure import Results, in_turns
from export_pipeline.render.formats import RENDERERS

#: Key of the result → who is compared with whom.
_RATIOS = {
    "csv_vs_psql_gzip": ("csv", "psql_gzip"),
    "csv_vs_psql_null": ("csv", "psql_null"),
    "json_vs_copy_null": ("json", "copy_json"),
    "json_vs_sketch": ("json", "sketch"),
}


def run(*, rows: int, rounds: int, home: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Measure, print the table, and return the figures of the contract.

    Args:
        rows: Rows of the heavy user.
        rounds: Runs of each contestant.
        home: State folder of the scene.
        only: Contestants that run; empty means all that can.
    """
    names = _competing(rows, only)
    with scene.prepared(home, rows):
        results = in_turns(names, home=home, rows=rows, rounds=rounds, said=report.console.print)
    _print(results, rows, rounds)
    return {
        **{key: results.speed(*pair) for key, pair in _RATIOS.items()},
        **{f"{form.value}_rss_mb": _rounded(results.median(form.value, lambda run: run.peak_mb)) for form in RENDERERS},
        "idle_rss_mb": _rounded(max((_idle(results, form.value) for form in RENDERERS), default=0)),
        "rows": rows,
    }


def _competing(rows: int, only: Sequence[str]) -> list[str]:
    chosen = []
    for name, contestant in CONTESTANTS.items():
        reason = contestant.absent or ("too many rows for it" if rows > contestant.most_rows else "")
        if name == "straight" or (only and name not in only):
            continue
        if reason:
            report.console.print(f"Left out: {contestant.title} ({reason}).")
        else:
            chosen.append(name)
    return chosen


def _print(results: Results, rows: int, rounds: int) -> None:
    report.table(
        f"data-path: {rows:,} rows, medians of {rounds} interleaved rounds; ratio = its time ÷ our time",
        ["way", "wall s", "CPU s", "server CPU s", "idle MiB", "peak MiB", "file MB", "ratio to csv", "to json"],
        [_line(results, name) for name in results.runs],
    )


def _line(results: Results, name: str) -> list[Any]:
    of_psql = name.startswith(("psql", "copy"))
    return [
        CONTESTANTS[name].title,
        results.median(name, lambda run: run.wall_s),
        results.median(name, lambda run: run.cpu_s),
        results.median(name, lambda run: run.server_cpu_s),
        None if of_psql else results.median(name, lambda run: run.idle_mb),
        None if of_psql else results.median(name, lambda run: run.peak_mb),
        results.median(name, lambda run: run.facts["bytes"] / 1e6 if "bytes" in run.facts else None),
        results.speed("csv", name),
        results.speed("json", name),
    ]


def _idle(results: Results, name: str) -> float:
    return results.median(name, lambda run: run.idle_mb) or 0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
