"""Contestants side by side: each run in a fresh process, in turns (A B C, A B C), judged by medians."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import scene


class ContestantFailed(Exception):
    """A contestant's process ended with an error."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one contestant took in one round. Seconds and MiB.

    Attributes:
        cpu_s: Of its process and their children; not of the server.
        server_cpu_s: Of the server's processes that served it; None where /proc does not say.
        idle_mb: Resident memory with everything imported and connected.
        peak_mb: Highest resident memory of the work.
        children_peak_mb: The same of the largest process that it started.
        facts: What the contestant says about its work, such as bytes written.
    """

    wall_s: float
    cpu_s: float
    server_cpu_s: float | None
    idle_mb: float
    peak_mb: float
    children_peak_mb: float
    facts: dict[str, Any]


@dataclass(kw_only=True)
class Results:
    """All rounds of all contestants."""

    runs: dict[str, list[Run]] = field(default_factory=dict)

    def median(self, name: str, value: Callable[[Run], float | None]) -> float | None:
        """Median of one value of a contestant; None when there is none."""
        values = [found for run in self.runs.get(name, []) if (found := value(run)) is not None]
        return median(values) if values else None

    def speed(self, name: str, other: str) -> float | None:
        """How many times as fast as `other` a contestant is: the median of the rounds, whose runs were neighbours."""
        pairs = zip(self.runs.get(name, []), self.runs.get(other, []), strict=False)
        ratios = [theirs.wall_s / ours.wall_s for ours, theirs in pairs]
        return round(median(ratios), 3) if ratios else None


def in_turns(
    names: Sequence[str], *, home: Path, rows: int, rounds: int, said: Callable[[str], None] = lambda _: None
) -> Results:
    """Let the contestants run, one at a time.

    Args:
        names: Of `contestants.CONTESTANTS`.
        home: The scene.
        rows: Rows of the heavy user.
        rounds: How often each runs.
        said: Told of every run, for people who wait.

    Raises:
        ContestantFailed: One of them did; names it.
    """
    results = Results(runs={name: [] for name in names})
    for number in range(1, rounds + 1):
        for name in names:
            run = _run(name, home, rows)
            results.runs[name].append(run)
            said(f"round {number}/{rounds}  {name}: {run.wall_s:.2f} s, {run.cpu_s:.2f} CPU s")
    return results


def _run(name: str, home: Path, rows: int) -> Run:
    server = _Server(scene.postmaster(home))
    command = [sys.executable, "-m", "benchmarks.child", name, str(home), str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ContestantFailed(f"{name} failed; what it said stands above.")
    return Run(server_cpu_s=server.cpu_s(), **json.loads(done.stdout.splitlines()[-1]))


class _Server:
    """The processor time of the server's processes that end from now on: backends end with their clients."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._others = self._children()
        self._before = self._ended_cpu_s()

    def cpu_s(self) -> float | None:
        """Seconds; None where /proc does not say."""
        deadline = time.monotonic() + 2
        while self._children() - self._others and time.monotonic() < deadline:
            time.sleep(0.01)
        now = self._ended_cpu_s()
        return None if now is None or self._before is None else now - self._before

    def _children(self) -> set[str]:
        try:
            return set(Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split())
        except OSError:
            return set()

    def _ended_cpu_s(self) -> float | None:
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
