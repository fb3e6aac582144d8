"""Whatever is killed in the middle of a load, every request is completed exactly once, and nothing is left behind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from export_pipeline_tests import killing
from export_pipeline_tests.killing import AbsentVictim, Kill, Load, Victim
from export_pipeline_tests.running import PATIENCE_S, Running

#: A run takes Dagster's own launcher some seconds, and two go on at once.
REQUESTS = {"warm": 100, "celery": 100, "default": 10}
#: Against hanging; how long it takes is for the benchmark `faults` to say.
BOUND_S = 120.0
#: What nobody needs in the middle of a run dies in one round; and what `test_killed` kills need not die here again.
SERVERS = [Victim.WEBSERVER, Victim.API]
ALONE = [victim for victim in Victim if victim not in (*SERVERS, Victim.EVERYTHING)]


def third_completed(running: Running, load: Load) -> None:
    """The load is in its middle."""
    url, count = running.stack.services.database_url, killing.ended(load)
    third = len(load.users) // 3
    assert killing.wait_until(url, lambda connection: count(connection) >= third, timeout=PATIENCE_S)


def kill(running: Running, victim: Victim) -> Kill:
    """Kill what lives only as long as a run does when there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return killing.kill(running.stack, victim, random.Random(1))
        except AbsentVictim:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # processes send no word


@pytest.mark.parametrize(
    "victims",
    [SERVERS, *([victim] for victim in ALONE)],
    ids="-and-".join,
)
def test_every_request_is_completed_exactly_once(
    running: Running, victims: list[Victim], record_property: Callable[[str, object], None]
) -> None:
    load = Load(data_types=["user_feedback"])
    killing.ask(running.stack.services.database_url, load, REQUESTS[running.stack.services.settings.launcher])
    third_completed(running, load)
    for death in [kill(running, victim) for victim in victims]:
        seconds = killing.recovered(running.stack, load, death, timeout=BOUND_S)
        record_property(f"{death.victim} serves again after", seconds)
        assert seconds is not None, death.victim
    verdict = killing.judge(running.stack, load, timeout=BOUND_S)
    assert verdict.clean, verdict
    assert verdict.completed == verdict.requests == len(load.users)
