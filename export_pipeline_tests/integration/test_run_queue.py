"""The queue of the warm workers: which runs will be taken, and which never."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from export_pipeline.db import run_queue as module
from export_pipeline.db.pool import Database
from export_pipeline.db.run_queue import Absence, QueuedRun, RunQueue, Seat


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
        wait_until(lambda: queue.workers() == 1)


def test_where_workers_are_expected_a_run_is_put_anyway(queue: RunQueue) -> None:
    assert not queue.put("run-1")
    assert queue.put("run-1", anyway=True)
    assert queue.find("run-1") == QueuedRun(taken=False, alive=False)


def test_a_worker_is_dead_only_when_it_is_missed_twice(
    queue: RunQueue,
    seat: Seat,
    database: Database,
    wait_until: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Seat(database, lambda _run: None)
    queue.put("run-1")
    assert queue.take(other.worker) == "run-1"
    with database.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [other._connection.info.backend_pid])
    assert queue.take(seat.worker) is None, "missed for the first time"
    assert queue.find("run-1") == QueuedRun(taken=True, alive=True)
    wait_until(lambda: queue.workers() == 2)  # it took its seat again
    assert queue.take(seat.worker) is None
    long_ago(database)
    assert queue.take(seat.worker) is None, "it is there"
    assert queue.holds("run-1", other.worker)
    other.leave()
    wait_until(lambda: queue.workers() == 1)
    assert queue.take(seat.worker) is None, "missed for the first time"
    long_ago(database)
    assert queue.find("run-1") == QueuedRun(taken=True, alive=False)
    assert queue.take(seat.worker) == "run-1"
    assert queue.holds("run-1", seat.worker)
    assert not queue.holds("run-1", other.worker)


def long_ago(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_run_queue SET missed_at = missed_at - interval '1 minute'")


def test_a_run_is_begun_once_by_whoever_has_it(queue: RunQueue, seat: Seat) -> None:
    queue.put("run-1")
    assert queue.take(seat.worker) == "run-1"
    assert not queue.begin("run-1", seat.worker + 1)
    assert queue.begin("run-1", seat.worker)
    assert not queue.begin("run-1", seat.worker)
    assert not queue.begin("run-2", seat.worker)


def test_nobody_is_away_before_the_absence_was_watched(
    queue: RunQueue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    absence = Absence(queue)
    assert absence.seconds() == 0
    now += 15
    assert absence.seconds() == 15
    now += 15
    assert absence.seconds() == 30
    now += 600
    assert absence.seconds() == 0, "who knows what was meanwhile"
    now += 15
    assert absence.seconds() == 15
    monkeypatch.undo()
    seat = Seat(database, lambda _run: None)
    assert absence.seconds() == 0
    seat.leave()
