"""The queue of the warm workers: which runs will be taken, and which never."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from export_pipeline.db import run_queue as module
from export_pipeline.db.pool import Database
from export_pipeline.db.run_queue import RunQueue, Seat


@pytest.fixture
def queue(database: Database) -> RunQueue:
    return RunQueue(database)


@pytest.fixture
def seat(database: Database) -> Iterator[Seat]:
    taken = Seat(database, lambda _: None)
    yield taken
    taken.leave()


def test_a_run_that_waits_for_a_living_worker_is_not_abandoned(queue: RunQueue, seat: Seat) -> None:
    assert queue.put("run-1")
    assert not queue.abandoned("run-1")
    assert queue.take(seat.worker) == "run-1"
    assert not queue.abandoned("run-1")


def test_a_run_that_is_not_in_the_queue_is_abandoned(queue: RunQueue, seat: Seat) -> None:
    queue.put("run-1")
    assert queue.abandoned("run-2")
    assert not queue.abandoned("run-1")


@pytest.mark.parametrize("taken", [False, True])
def test_when_all_workers_are_gone_a_run_is_taken_back(
    queue: RunQueue, seat: Seat, taken: bool, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    queue.put("run-1")
    if taken:
        queue.take(seat.worker)
    seat.leave()
    wait_until(lambda: queue.abandoned("run-1"))
    assert queue.find("run-1") is None
    assert not queue.put("run-1"), "nobody is there: it is launched the stock way"


def test_a_worker_is_back_as_soon_as_its_connection_ended(
    queue: RunQueue,
    seat: Seat,
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    """Meanwhile another one would take its run for a dead one's."""
    monkeypatch.setattr(module, "_RECONNECT_S", 60.0)
    queue.put("run-1")
    queue.take(seat.worker)
    for _ in range(3):
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [seat._connection.info.backend_pid])
        wait_until(lambda: (found := queue.find("run-1")) is not None and found.alive)
