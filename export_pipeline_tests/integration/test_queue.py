"""The queue under a flood and on top of a long past: cheap, fair, and never more in flight than may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from export_pipeline.db.pool import Database
from export_pipeline.db.requests import _CLAIM, _QUEUE, RequestStore
from export_pipeline.models import Actor
from export_pipeline_tests import past

FLOOD = 10_000
IN_FLIGHT = 24
#: Rows that a statement may touch for each one that waits, in all nodes of its plan. Five are needed; a bad plan, which
#: joins each with each, touches thousands.
TOUCHED = 10


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


VALUES = {"limit": 100, "in_flight": IN_FLIGHT, "action": "a", "actor": "b"}


def plan(connection: psycopg.Connection, statement: str) -> str:
    cursor = psycopg.ClientCursor(connection)
    cursor.execute("EXPLAIN " + statement, VALUES)
    return "\n".join(line for (line,) in cursor)


def work(connection: psycopg.Connection, statement: str) -> tuple[int, int]:
    """What the server does for a statement, whoever else wants the processor: rows that it touches, blocks it reads."""
    cursor = psycopg.ClientCursor(connection)
    with connection.transaction(force_rollback=True):
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + statement, VALUES)
        top = cursor.fetchone()[0][0]["Plan"]
    return sum(map(touched, nodes(top))), top["Shared Hit Blocks"] + top["Shared Read Blocks"]


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for part in node.get("Plans", ()):
        yield from nodes(part)


def touched(node: dict[str, Any]) -> int:
    """Rows that a node of a plan gives or drops; both are told for one of its loops."""
    dropped = [value for name, value in node.items() if name.startswith("Rows Removed by")]
    return int((node["Actual Rows"] + sum(dropped)) * node["Actual Loops"])


def test_a_flood_drains_steadily_and_in_order(store: RequestStore, admin: psycopg.Connection) -> None:
    flood(admin)
    claimed: list[str] = []
    working: list[str] = []
    while len(claimed) < 1200:
        claims = store.claim(100, in_flight=IN_FLIGHT)
        assert len(claims) == IN_FLIGHT - len(working), "as many as may begin, no more, no fewer"
        claimed += (now := [claim.request_id for claim in claims])
        working += now
        queue = store.queue()
        assert (queue.claimed, queue.pending) == (IN_FLIGHT, FLOOD - len(claimed))
        assert store.claim(100, in_flight=IN_FLIGHT) == []
        finish(admin, working[:20])
        del working[:20]
    assert FLOOD / 2 < work(admin, _CLAIM)[0] < TOUCHED * FLOOD, "as much as in the beginning"
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
def test_a_claim_costs_what_waits_whoever_floods(store: RequestStore, admin: psycopg.Connection, user: str) -> None:
    flood(admin, user=user)
    for _ in range(5):
        assert FLOOD / 2 < work(admin, _CLAIM)[0] < TOUCHED * FLOOD
        assert FLOOD / 2 < work(admin, _QUEUE)[0] < TOUCHED * FLOOD
        finish(admin, [claim.request_id for claim in store.claim(100, in_flight=IN_FLIGHT)])


def test_a_long_past_slows_nothing(store: RequestStore, admin: psycopg.Connection) -> None:
    # It would look in the middle of the insert, and plans would go by rows that nobody sees yet.
    admin.execute("ALTER TABLE export_pipeline.export_requests SET (autovacuum_enabled = false)")
    past.add_requests(admin, range(1, 100_001), ended="now() - i * interval '1 s'", trail=False)
    # Before and after the server has learned how the table looks.
    for number in range(2):
        one(admin, f"now-{number}", "somebody")
        for statement in (_CLAIM, _QUEUE):
            assert "Seq Scan on export_requests" not in plan(admin, statement), statement
            rows, blocks = work(admin, statement)
            assert 0 < rows < 200, statement
            assert 0 < blocks < 500, statement
        assert [claim.request_id for claim in store.claim(100)] == [f"now-{number}"]
        assert store.queue().claimed == number + 1
        admin.execute("ANALYZE export_pipeline.export_requests")


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
