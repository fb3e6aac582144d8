"""Faults: random parts of the system die at random moments of a steady load; what became of every request is counted.

The load, the victims and the judgement are those of the tests (`export_pipeline_tests.killing`). After each death the
system gets as long as it needs until the victim's kind serves again, and then a pause of up to some seconds.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import ContestantFailed
from export_pipeline import demo, supervisor
from export_pipeline.settings import Settings
from export_pipeline.supervisor import Stack
from export_pipeline_tests import killing
from export_pipeline_tests.killing import AbsentVictim, Kill, Load, Verdict, Victim

#: Nothing takes so long; whatever does is stuck.
_BOUND_S = 180.0
_PAUSE_S = 5.0
_DATABASE = (Victim.DATABASE, Victim.RESTART, Victim.BACKEND)


def run(*, kills: int, seed: int, rate: float, only: Sequence[str], launcher: str, home: Path) -> dict[str, Any]:
    """Kill, judge, print the table, and return the figures of the contract.

    Args:
        kills: Deaths.
        seed: Decides who dies and when.
        rate: Requests a second.
        only: Victims; empty means all.
        launcher: The setting of that name.
        home: Where the installation's folder is made, and removed at the end.

    Raises:
        ContestantFailed: `only` names nobody.
    """
    dice, load = random.Random(seed), Load()
    victims = [victim for victim in Victim if not only or victim.value in only]
    if not victims:
        raise ContestantFailed(f"There is no such victim; there are {', '.join(Victim)}.")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="faults-") as folder:
        told = {"ui_port": 0, "api_port": 0, "recycle_after": 0, "launcher": launcher}
        with supervisor.start(Settings(_env_file=None, home=Path(folder), **told)) as stack:  # type: ignore[arg-type]
            demo.install_sample(stack.services)
            with _steady(stack, load, rate):
                deaths = [_death(stack, load, dice.choice(victims), dice) for _ in range(kills)]
            verdict = killing.judge(stack, load, timeout=_BOUND_S, sample=50)
            waited = killing.redone(stack.services.database_url, load, [death for death, _ in deaths])
            restarts = sum(child.starts - 1 for child in stack._children)
    _print(deaths, waited)
    _tell(verdict)
    return _figures(deaths, waited, verdict, restarts)


@contextmanager
def _steady(stack: Stack, load: Load, rate: float) -> Iterator[None]:
    """Insert requests at a steady pace in a thread; those that wait for a database that is away come afterwards."""
    over = threading.Event()

    def insert() -> None:
        began, made = time.monotonic(), 0
        while not over.wait(max(0.0, began + made / rate - time.monotonic())):
            killing.ask(stack.services.database_url, load, 1)
            made += 1

    thread = threading.Thread(target=insert, name="load", daemon=True)
    thread.start()
    killing.wait_until(stack.services.database_url, killing.ended(load), timeout=_BOUND_S)
    try:
        yield
    finally:
        over.set()
        thread.join(_BOUND_S)


def _death(stack: Stack, load: Load, victim: Victim, dice: random.Random) -> tuple[Kill, float | None]:
    time.sleep(dice.uniform(0, _PAUSE_S))  # a random moment is what is wanted
    deadline = time.monotonic() + _BOUND_S
    while True:
        try:
            death = killing.kill(stack, victim, dice)
            break
        except AbsentVictim:
            if time.monotonic() > deadline:
                raise ContestantFailed(f"The {victim.value} does not come back.") from None
            time.sleep(0.05)
    seconds = killing.recovered(stack, load, death, timeout=_BOUND_S)
    report.console.print(f"{victim.value}: {'never' if seconds is None else f'{seconds:.1f} s'}", markup=False)
    return death, seconds


def _print(deaths: Sequence[tuple[Kill, float | None]], waited: Sequence[float | None]) -> None:
    rows = []
    for victim in Victim:
        found = [seconds for death, seconds in deaths if death.victim is victim]
        known = [seconds for seconds in found if seconds is not None]
        longest = [s for (death, _), s in zip(deaths, waited, strict=True) if death.victim is victim and s is not None]
        if found:
            most = max(known) if len(known) == len(found) else None
            half = statistics.median(known) if known else None
            rows.append([victim.value, len(found), half, most, len(longest), max(longest, default=None)])
    columns = ["victim", "kills", "median s", "longest s", "of them cut off a request", "which ended after s"]
    report.table("faults: from the death until its kind serves again", columns, rows)


def _tell(verdict: Verdict) -> None:
    """What should not be there, by name."""
    for name in ("lost", "doubled", "stuck", "orphans"):
        for line in getattr(verdict, name):
            report.console.print(f"{name}: {line}", markup=False)


def _figures(
    deaths: Sequence[tuple[Kill, float | None]], waited: Sequence[float | None], verdict: Verdict, restarts: int
) -> dict[str, Any]:
    """A recovery that was waited for in vain counts as stuck, and as long as it was waited for."""
    never = sum(seconds is None for _, seconds in deaths)
    recoveries = [_BOUND_S if seconds is None else seconds for _, seconds in deaths]
    return {
        "kills": len(deaths),
        "restarts": restarts + sum(death.victim in _DATABASE for death, _ in deaths),
        "requests": verdict.requests,
        "lost": len(verdict.lost),
        "doubled": len(verdict.doubled),
        "stuck": len(verdict.stuck) + never,
        "orphans": len(verdict.orphans),
        "max_recovery_s": round(max(recoveries), 2),
        "median_recovery_s": round(statistics.median(recoveries), 2),
        "max_redone_s": round(max((seconds for seconds in waited if seconds is not None), default=0.0), 2),
        "repeated": verdict.repeated,
        "spent": verdict.spent,
    }
