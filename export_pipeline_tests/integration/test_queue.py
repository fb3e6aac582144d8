"""The queue under a flood and on top of a long past: quick, fair, and never more in flight than may be."""

from __future__ import annotations

import time
from collections import Counter

import psycopg
import pytest

from export_pipeline.db.pool import Database
from export_pipeline.db.requests import _CLAIM, _QUEUE, RequestStore
from export_pipeline.models import Actor
from export_pipeline_tests import past

FLOOD = 10_000
IN_FLIGHT = 24
#: Seconds. On a quiet machine 10,000 waiting requests take some 10 ms; here others work beside us.
LIMIT = 0.5


@pytest.fixture
def store(database: Database) -> RequestStore:
    return RequestStore(database)


def flood(connection: psycopg.Connection, number: int = FLOOD, *, user: str = "'flood'") -> None:
    """One INSERT, a fifth of it gdpr."""
    connection.execute(
        f"""INSERT INTO export_pipeline.export_requests
                (request_id, user_id, requested_by, request_type, data_types, format)
            SELECT 'new-' || i, {user}, 'tester', CASE i % 5 WHEN 0 THEN 'gdpr' ELSE 'backup' END, '{{user_clicks}}',
                   'json'
            FROM generate_series(1, {number}) AS i""".encode()
    )


def one(connection: psycopg.Connection, request_id: str, user: str, kind: str = "custom") -> None:
    connection.execute(
        "INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, format)"
        " VALUES (%s, %s, 'tester', %s, 'json')",
        [request_id, user, kind],
    )


def finish(connection: psycopg.Connection, request_ids: list[str]) -> None:
    connection.execute(
        "UPDATE export_pipeline.export_requests SET status = 'completed', claimed_at = NULL, completed_at = now()"
        " WHERE request_id = ANY (%s)",
        [request_ids],
    )


def fastest(call: object, times: int = 5) -> float:
    """What it takes when nobody else wants the processor. Seconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()  # type: ignore[operator]
        taken.append(time.perf_counter() - began)
    return min(taken)


def plan(connection: psycopg.Connection, statement: str) -> str:
    values = {"limit": 100, "in_flight": IN_FLIGHT, "action": "a", "actor": "b"}
    cursor = psycopg.ClientCursor(connection)
    cursor.execute("EXPLAIN " + statement, values)
    return "\n".join(line for (line,) in cursor)


def test_a_flood_drains_steadily_and_in_order(store: RequestStore, admin: psycopg.Connection) -> None:
    flood(admin)
    claimed: list[str] = []
    taken = []
    working: list[str] = []
    while len(claimed) < 1200:
        began = time.perf_counter()
        claims = store.claim(100, in_flight=IN_FLIGHT)
        taken.append(time.perf_counter() - began)
        assert len(claims) == IN_FLIGHT - len(working), "as many as may begin, no more, no fewer"
        claimed += (now := [claim.request_id for claim in claims])
        working += now
        queue = store.queue()
        assert (queue.claimed, queue.pending) == (IN_FLIGHT, FLOOD - len(claimed))
        assert store.claim(100, in_flight=IN_FLIGHT) == []
        finish(admin, working[:20])
        del working[:20]
    assert sorted(taken)[len(taken) // 2] < LIMIT
    assert len(set(claimed)) == len(claimed)
    kinds = Counter(int(request_id.removeprefix("new-")) % 5 == 0 for request_id in claimed)
    assert kinds == {True: len(claimed)}, "gdpr before backup"


def test_after_gdpr_comes_the_rest(store: RequestStore, admin: psycopg.Connection) -> None:
    flood(admin, 50)
    claims = [int(claim.request_id.removeprefix("new-")) for claim in store.claim(12)]
    assert {number % 5 for number in claims[:10]} == {0}
    assert all(number % 5 for number in claims[10:])


@pytest.mark.parametrize("kind", ["gdpr", "backup"])
def test_nobody_waits_for_another_users_flood(store: RequestStore, admin: psycopg.Connection, kind: str) -> None:
    flood(admin)
    first = store.claim(100, in_flight=IN_FLIGHT)
    one(admin, "single", "somebody else", kind)
    assert store.claim(100, in_flight=IN_FLIGHT) == []
    finish(admin, [first[0].request_id])
    assert [claim.request_id for claim in store.claim(100, in_flight=IN_FLIGHT)] == ["single"]


@pytest.mark.parametrize("user", ["'flood'", "'u' || i % 100", "'u' || i"], ids=["one", "hundred", "each its own"])
def test_a_claim_is_quick_whoever_floods(store: RequestStore, admin: psycopg.Connection, user: str) -> None:
    flood(admin, user=user)

    def claim() -> None:
        finish(admin, [claim.request_id for claim in store.claim(100, in_flight=IN_FLIGHT)])

    assert fastest(claim) < LIMIT


def test_a_long_past_slows_nothing(store: RequestStore, admin: psycopg.Connection) -> None:
    # It would look in the middle of the insert, and plans would go by rows that nobody sees yet.
    admin.execute("ALTER TABLE export_pipeline.export_requests SET (autovacuum_enabled = false)")
    past.add_requests(admin, range(1, 100_001), ended="now() - i * interval '1 s'", trail=False)
    # Before and after the server has learned how the table looks.
    for number in range(2):
        one(admin, f"now-{number}", "somebody")
        for statement in (_CLAIM, _QUEUE):
            assert "Seq Scan on export_requests" not in plan(admin, statement), statement
        assert [claim.request_id for claim in store.claim(100)] == [f"now-{number}"]
        assert store.queue().claimed == number + 1
        admin.execute("ANALYZE export_pipeline.export_requests")
    assert fastest(store.queue) < 0.2
    assert fastest(lambda: store.claim(100)) < 0.2


def test_the_queue_is_known(store: RequestStore, admin: psycopg.Connection) -> None:
    empty = store.queue()
    assert (empty.pending, empty.claimed, empty.processing, empty.oldest_waiting_seconds) == (0, 0, 0, 0)
    for number, request_id in enumerate("abcd"):
        one(admin, request_id, request_id)
        admin.execute(
            "UPDATE export_pipeline.export_requests SET requested_at = now() - %s * interval '1 min'"
            " WHERE request_id = %s",
            [100 - number, request_id],
        )
    store.claim(2)
    store.start("a", "run", reopen=False)
    one(admin, "later", "e")
    store.cancel("d", Actor(id="admin"))
    queue = store.queue()
    assert (queue.pending, queue.claimed, queue.processing) == (2, 1, 1)
    assert queue.oldest_waiting_seconds == pytest.approx(99 * 60, abs=30), "b: a is being worked on"


def test_a_request_from_the_future_has_not_waited(store: RequestStore, admin: psycopg.Connection) -> None:
    one(admin, "a", "a")
    admin.execute("UPDATE export_pipeline.export_requests SET requested_at = now() + interval '1 day'")
    assert store.queue().oldest_waiting_seconds == 0
