"""The life of a request: every move from every status, with its audit row, against writers at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from export_pipeline.db.lease import RequestLease
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore, StalledRequest
from export_pipeline.errors import InvalidRequest, RequestNotFound, RunNotEntitled, WrongStatus
from export_pipeline.models import (
    Actor,
    ExportFormat,
    ExportMetadata,
    ExportRequest,
    NewRequest,
    RequestStatus,
    RequestType,
)

#: Stands wherever a person's id may stand, and nowhere else.
CANARY = "canary-person@example.org"
ADMIN = Actor(id="admin", ip_address="192.0.2.7", user_agent="tests/1.0")
RUN = "run-1"
HOUR = timedelta(hours=1)
STATUSES = list(RequestStatus)

ALL = set(STATUSES)
ENDED_EARLY = {RequestStatus.FAILED, RequestStatus.CANCELLED}
WAITING = {RequestStatus.PENDING}
WORKING = {RequestStatus.PROCESSING}


@pytest.fixture
def store(database: Database) -> RequestStore:
    return RequestStore(database)


_STATE = ("status", "attempt", "claimed_at", "started_at", "run_id", "completed_at")


@pytest.fixture
def put(admin: psycopg.Connection) -> Callable[..., str]:
    """Write a request as it would stand after many moves."""

    def insert(request_id: str = "r", **columns: Any) -> str:
        values = {
            "request_id": request_id,
            "user_id": CANARY,
            "requested_by": "operator",
            "request_type": "custom",
            "data_types": ["user_clicks"],
            "format": "json",
            **columns,
        }
        # Nobody inserts a request that is on its way; it gets there.
        state = {name: values.pop(name) for name in _STATE if name in values}
        with admin.transaction():
            admin.execute(
                f"INSERT INTO export_pipeline.export_requests ({', '.join(values)})"
                f" VALUES ({', '.join(['%s'] * len(values))})",
                list(values.values()),
            )
            if state:
                admin.execute(
                    f"UPDATE export_pipeline.export_requests SET {', '.join(f'{name} = %s' for name in state)}"
                    " WHERE request_id = %s",
                    [*state.values(), request_id],
                )
        return request_id

    return insert


def row(connection: psycopg.Connection, request_id: str = "r") -> tuple[Any, ...]:
    found = connection.execute(
        "SELECT * FROM export_pipeline.export_requests WHERE request_id = %s", [request_id]
    ).fetchone()
    assert found is not None
    return found


def audit(connection: psycopg.Connection, request_id: str = "r") -> list[tuple[str, str]]:
    """Actions and actors, without the row of the insertion."""
    return connection.execute(
        "SELECT action, actor FROM export_pipeline.export_audit_logs WHERE request_id = %s ORDER BY log_id OFFSET 1",
        [request_id],
    ).fetchall()


def what_was_made(request_id: str = "r", **other: Any) -> ExportMetadata:
    values: dict[str, Any] = {
        "request_id": request_id,
        "user_id": CANARY,
        "total_records": 12,
        "data_types_included": ("user_clicks",),
        "export_date": datetime(2026, 11, 3, 4, 5, tzinfo=UTC),
        "file_size_bytes": 2**33,
        "format": "json",
        "stored_size_bytes": 512,
        "sha256": "ab" * 32,
        "storage_key": f"{request_id}/{RUN}/export.age",
        "content_encoding": "gzip",
        "manifest": {
            "data_types": ["user_clicks"],
            "not_exported": [{"data_type": "user_errors", "reason": "locked"}],
        },
        **other,
    }
    return ExportMetadata(**values)


def complete(store: RequestStore, request_id: str = "r", *, run_id: str = RUN, partial: str = "") -> ExportRequest:
    return store.complete(what_was_made(request_id), run_id=run_id, file_url="file:///x", partial=partial)


def fail_visibly(store: RequestStore) -> ExportRequest:
    """`fail` is silent when it does nothing, so the table of moves looks at the status."""
    before = store.get("r")
    store.fail("r", run_id=RUN, message="It broke.")
    after = store.get("r")
    if before == after:
        raise WrongStatus("nothing happened")
    return after


def claim_visibly(store: RequestStore) -> ExportRequest:
    if not store.claim(10):
        raise WrongStatus("nothing happened")
    return store.get("r")


def requeue(store: RequestStore, seen: RequestStatus, max_attempts: int) -> ExportRequest:
    stalled = StalledRequest(request_id="r", status=seen, attempt=2, run_id=RUN)
    return store.requeue(stalled, max_attempts=max_attempts, detail="run run-1 ended as failure")


def cancel_stalled(store: RequestStore) -> ExportRequest:
    stalled = StalledRequest(request_id="r", status=RequestStatus.PROCESSING, attempt=2, run_id=RUN)
    return store.cancel_stalled(stalled, detail="run run-1 was terminated")


#: Move → what calls it, the statuses that allow it, where it leads, its audit action and its actor.
MOVES: dict[str, tuple[Callable[[RequestStore], object], set[RequestStatus], str, str, str]] = {
    "claim": (claim_visibly, WAITING, "pending", "export_claimed", "export-pipeline"),
    "retry": (lambda s: s.retry("r", ADMIN), ENDED_EARLY, "pending", "export_retried", "admin"),
    "cancel": (
        lambda s: s.cancel("r", ADMIN),
        {RequestStatus.AWAITING_APPROVAL, RequestStatus.PENDING, RequestStatus.PROCESSING},
        "cancelled",
        "export_cancelled",
        "admin",
    ),
    "cancel of the run": (
        lambda s: s.cancel("r", ADMIN, run_id=RUN, detail="terminated"),
        {RequestStatus.AWAITING_APPROVAL, RequestStatus.PENDING, RequestStatus.PROCESSING},
        "cancelled",
        "export_cancelled",
        "admin",
    ),
    "start": (
        lambda s: s.start("r", "run-2", reopen=False),
        WAITING,
        "processing",
        "export_started",
        "export-pipeline",
    ),
    "start of a re-execution": (
        lambda s: s.start("r", "run-2", reopen=True),
        WAITING | ENDED_EARLY,
        "processing",
        "export_started",
        "export-pipeline",
    ),
    "complete": (complete, WORKING, "completed", "export_completed", "export-pipeline"),
    "complete in part": (
        lambda s: complete(s, partial="Not exported: user_errors (locked)."),
        WORKING,
        "partial",
        "export_partial",
        "export-pipeline",
    ),
    "fail": (fail_visibly, WORKING, "failed", "export_failed", "export-pipeline"),
    "requeue of a lost run": (
        lambda s: requeue(s, RequestStatus.PROCESSING, 3),
        WORKING,
        "pending",
        "export_requeued",
        "export-pipeline",
    ),
    "requeue of a run that never came": (
        lambda s: requeue(s, RequestStatus.PENDING, 3),
        WAITING,
        "pending",
        "export_requeued",
        "export-pipeline",
    ),
    "cancel of a lost run": (cancel_stalled, WORKING, "cancelled", "export_cancelled", "export-pipeline"),
    "requeue with no attempt left": (
        lambda s: requeue(s, RequestStatus.PROCESSING, 2),
        WORKING,
        "failed",
        "export_failed",
        "export-pipeline",
    ),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_move_is_made_from_the_statuses_that_allow_it_and_no_other(
    move: str, store: RequestStore, put: Callable[..., str], admin: psycopg.Connection
) -> None:
    call, allowed, leads_to, action, actor = MOVES[move]
    for status in STATUSES:
        put(status=status.value, attempt=2, run_id=RUN)
        before = row(admin)
        if status in allowed:
            call(store)
            assert (store.get("r").status, audit(admin)) == (leads_to, [(action, actor)]), status
        else:
            with pytest.raises((WrongStatus, RunNotEntitled)):
                call(store)
            assert (row(admin), audit(admin)) == (before, []), status
        admin.execute(
            "TRUNCATE export_pipeline.export_requests, export_pipeline.export_metadata,"
            " export_pipeline.export_audit_logs CASCADE"
        )


@pytest.mark.parametrize("move", ["retry", "cancel"])
def test_status_and_audit_row_are_one_transaction(
    move: str, store: RequestStore, put: Callable[..., str], admin: psycopg.Connection
) -> None:
    put(status={"retry": "failed", "cancel": "pending"}[move])
    before = row(admin)
    with pytest.raises(psycopg.errors.StringDataRightTruncation):
        getattr(store, move)("r", Actor(id="too long" * 100))
    assert (row(admin), audit(admin)) == (before, [])


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.get("none"),
        lambda s: s.retry("none", ADMIN),
        lambda s: s.cancel("none", ADMIN),
        lambda s: s.start("none", RUN, reopen=True),
    ],
)
def test_an_unknown_request_is_not_found(call: Callable[[RequestStore], object], store: RequestStore) -> None:
    with pytest.raises(RequestNotFound, match="no export request with this id"):
        call(store)


def test_the_refusal_names_the_status(store: RequestStore, put: Callable[..., str]) -> None:
    put(status="awaiting_approval")
    with pytest.raises(WrongStatus, match="The request is awaiting approval"):
        store.retry("r", ADMIN)


def test_details_hold_no_personal_data(store: RequestStore, put: Callable[..., str], admin: psycopg.Connection) -> None:
    for number, (call, allowed, *_) in enumerate(MOVES.values()):
        put(status=sorted(allowed)[0].value, attempt=2, run_id=RUN)
        call(store)
        for table in ("export_audit_logs", "export_metadata", "export_requests"):
            if table != "export_audit_logs":
                admin.execute(f"DELETE FROM export_pipeline.{table}")
            else:
                admin.execute(
                    "UPDATE export_pipeline.export_audit_logs SET request_id = NULL, user_agent = %s"
                    " WHERE request_id = 'r'",
                    [str(number)],
                )
    rows = admin.execute("SELECT detail, user_id FROM export_pipeline.export_audit_logs").fetchall()
    assert len(rows) == 2 * len(MOVES)
    assert {user for _, user in rows} == {CANARY}
    assert not [detail for detail, _ in rows if "canary" in detail or "@" in detail]


# --- the way in


def new(**other: Any) -> NewRequest:
    values: dict[str, Any] = {
        "user_id": CANARY,
        "requested_by": "operator",
        "request_type": RequestType.GDPR,
        "data_types": ("user_clicks", "user_errors"),
        "format": ExportFormat.CSV,
        **other,
    }
    return NewRequest(**values)


def test_a_new_request_waits_and_leaves_its_trail(store: RequestStore) -> None:
    made = store.insert(new(), ADMIN)
    assert made == store.get(made.request_id)
    assert (made.status, made.attempt, made.run_id, made.data_types) == (
        RequestStatus.PENDING, 0, None, ("user_clicks", "user_errors"),
    )  # fmt: skip
    assert made.requested_at.utcoffset() is not None
    [entry] = store.trail(made.request_id)
    assert (entry.action, entry.user_id, entry.actor, entry.ip_address, entry.user_agent, entry.detail) == (
        "export_requested", CANARY, "operator", "192.0.2.7", "tests/1.0", "",
    )  # fmt: skip


def test_where_one_came_from_does_not_stick_to_the_next(store: RequestStore) -> None:
    store.insert(new(request_id="first"), ADMIN)
    store.insert(new(request_id="second"), Actor(id="operator"))
    [entry] = store.trail("second")
    assert (entry.ip_address, entry.user_agent) == (None, None)


def test_a_taken_id_is_refused_and_nothing_is_written(store: RequestStore, admin: psycopg.Connection) -> None:
    store.insert(new(request_id="r"), ADMIN)
    before = row(admin)
    with pytest.raises(InvalidRequest, match="this id exists already"):
        store.insert(new(request_id="r", user_id="somebody else"), ADMIN)
    assert (row(admin), len(store.trail("r"))) == (before, 1)


def test_of_two_that_want_one_id_at_once_one_gets_it(store: RequestStore) -> None:
    def ask(_: int) -> bool:
        try:
            store.insert(new(request_id="r"), ADMIN)
        except InvalidRequest:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(ask, range(6))) == [False] * 5 + [True]
    assert len(store.trail("r")) == 1


def test_a_plain_insert_with_the_specified_columns_does(store: RequestStore, admin: psycopg.Connection) -> None:
    admin.execute(
        "INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, data_types,"
        " format) VALUES ('plain', 'u-1', 'operator', 'gdpr', ARRAY['user_profile'], 'json')"
    )
    found = store.get("plain")
    assert (found.status, found.attempt, found.completed_at) == (RequestStatus.PENDING, 0, None)
    [entry] = store.trail("plain")
    assert (entry.action, entry.user_id, entry.actor) == ("export_requested", "u-1", "operator")
    assert [claim.request_id for claim in store.claim(10)] == ["plain"]


def test_a_plain_insert_that_is_rolled_back_leaves_no_trail(admin: psycopg.Connection) -> None:
    with admin.transaction(force_rollback=True):
        admin.execute(
            "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, format)"
            " VALUES ('u', 'o', 'gdpr', 'json')"
        )
    left = admin.execute("SELECT count(*) FROM export_pipeline.export_audit_logs").fetchone()
    assert left == (0,)


def test_a_plain_insert_needs_no_id_and_no_types(store: RequestStore, admin: psycopg.Connection) -> None:
    found = admin.execute(
        "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, format)"
        " VALUES ('u', 'o', 'gdpr', 'json') RETURNING request_id"
    ).fetchone()
    assert found is not None
    assert store.get(found[0]).data_types == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_id": "../outside"},
        {"request_id": ""},
        {"request_id": "-begins-with-a-dash"},
        {"request_id": "two\nlines"},
        {"request_id": "ends with newline\n"},
        {"request_id": "ok\n"},
        {"request_id": "Ünïcode"},
        {"user_id": ""},
        {"user_id": None},
        {"status": "done"},
        {"status": None},
        {"requested_by": None},
        {"format": None},
        {"request_type": None},
    ],
)
def test_what_no_request_may_be_is_refused_by_the_table(
    wrong: dict[str, Any], put: Callable[..., str], admin: psycopg.Connection
) -> None:
    with pytest.raises(psycopg.IntegrityError):
        put(**{"request_id": "r", **wrong})
    assert admin.execute("SELECT count(*) FROM export_pipeline.export_audit_logs").fetchone() == (0,)


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_of_the_models_is_one_of_the_table(status: RequestStatus, put: Callable[..., str]) -> None:
    put(status=status.value)


# --- reading


def test_search_shows_the_newest_first_and_filters(store: RequestStore, put: Callable[..., str]) -> None:
    for number in range(4):
        put(f"r{number}", requested_at=datetime(2026, 1, 1 + number, tzinfo=UTC), user_id=f"u{number % 2}")
    put("done", requested_at=datetime(2025, 1, 1, tzinfo=UTC), status="completed")
    assert ids(store.search()) == ["r3", "r2", "r1", "r0", "done"]
    assert ids(store.search(limit=2)) == ["r3", "r2"]
    assert ids(store.search(user_id="u1")) == ["r3", "r1"]
    assert ids(store.search(status="completed")) == ["done"]
    assert ids(store.search(status="completed", user_id="u1")) == []


def ids(requests: Sequence[ExportRequest]) -> list[str]:
    return [request.request_id for request in requests]


# --- the sensor


def test_eight_at_once_claim_every_row_once(store: RequestStore, admin: psycopg.Connection) -> None:
    admin.execute(
        "INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, format)"
        " SELECT 'r' || n, 'u', 'o', 'gdpr', 'json' FROM generate_series(1, 200) AS n"
    )
    together = threading.Barrier(8)

    def claim(_: int) -> list[str]:
        together.wait(10)
        taken: list[str] = []
        while claims := store.claim(7):
            assert len(claims) <= 7
            taken += [claim.request_id for claim in claims]
        return taken

    with ThreadPoolExecutor(8) as threads:
        taken = [request_id for ids in threads.map(claim, range(8)) for request_id in ids]
    assert sorted(taken) == sorted(f"r{n}" for n in range(1, 201))
    logged = admin.execute(
        "SELECT count(*), count(DISTINCT request_id) FROM export_pipeline.export_audit_logs"
        " WHERE action = 'export_claimed'"
    ).fetchone()
    assert logged == (200, 200)


def test_the_oldest_are_claimed_first_and_in_their_order(store: RequestStore, put: Callable[..., str]) -> None:
    for number in range(5):
        put(f"r{number}", requested_at=datetime(2026, 1, 9 - number, tzinfo=UTC))
    assert [claim.request_id for claim in store.claim(3)] == ["r4", "r3", "r2"]
    assert [claim.request_id for claim in store.claim(3)] == ["r1", "r0"]
    assert store.claim(3) == []


@pytest.mark.timeout(30)
def test_a_claim_steps_over_a_row_that_another_holds(
    store: RequestStore, put: Callable[..., str], tables_url: str
) -> None:
    put("held", requested_at=datetime(2026, 1, 1, tzinfo=UTC))
    put("free", requested_at=datetime(2026, 1, 2, tzinfo=UTC))
    with psycopg.connect(tables_url) as other:
        other.execute("SELECT 1 FROM export_pipeline.export_requests WHERE request_id = 'held' FOR UPDATE")
        assert [claim.request_id for claim in store.claim(10)] == ["free"]


def test_each_claim_is_a_new_attempt(store: RequestStore, put: Callable[..., str]) -> None:
    put()
    attempts = []
    for _ in range(3):
        [claim] = store.claim(1)
        attempts.append(claim.attempt)
        store.start("r", f"run-{claim.attempt}", reopen=False)
        store.fail("r", run_id=f"run-{claim.attempt}", message="It broke.")
        assert store.retry("r", ADMIN).error_message is None
    assert attempts == [1, 2, 3]


def listed(store: RequestStore, grace: timedelta = HOUR) -> list[str]:
    return [stalled.request_id for stalled in store.stalled(grace=grace)]


def test_what_is_old_and_unheld_is_stalled(
    store: RequestStore, put: Callable[..., str], database: Database, admin: psycopg.Connection
) -> None:
    old, young = datetime.now(UTC) - 2 * HOUR, datetime.now(UTC)
    put("claimed-long-ago", claimed_at=old, attempt=1)
    put("claimed-now", claimed_at=young, attempt=1)
    put("never-claimed", requested_at=old)
    put("working-long-ago", status="processing", started_at=old, run_id=RUN)
    put("working-now", status="processing", started_at=young, run_id=RUN)
    put("ended", status="completed", started_at=old, claimed_at=old, run_id=RUN)
    assert listed(store) == ["claimed-long-ago", "working-long-ago"]
    assert listed(store, grace=timedelta(0)) == [
        "claimed-long-ago", "claimed-now", "working-long-ago", "working-now",
    ]  # fmt: skip
    # Looking takes the lock only for a moment: the run that comes late still gets it at once.
    held = admin.execute(
        "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE locktype = 'advisory' AND datname = current_database()"
    ).fetchone()
    assert held == (0,)


def test_what_a_run_holds_is_not_stalled(
    store: RequestStore,
    put: Callable[..., str],
    database: Database,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    put("held", status="processing", started_at=datetime.now(UTC) - 2 * HOUR, run_id=RUN)
    lease = RequestLease(database, "held")
    lease.acquire()
    assert listed(store) == []
    lease.release()
    wait_until(lambda: listed(store) == ["held"])


def test_a_stalled_request_returns_until_its_attempts_are_spent(store: RequestStore, put: Callable[..., str]) -> None:
    put()
    for attempt in (1, 2, 3):
        [claim] = store.claim(1)
        assert claim.attempt == attempt
        store.start("r", f"run-{attempt}", reopen=False)
        [stalled] = store.stalled(grace=timedelta(0))
        moved = store.requeue(stalled, max_attempts=3, detail="gone")
        assert moved.status is (RequestStatus.FAILED if attempt == 3 else RequestStatus.PENDING)
    assert moved.completed_at is not None
    assert "ended unexpectedly 3 times" in (moved.error_message or "")
    assert store.claim(1) == []


@pytest.mark.parametrize(
    "changed", [{"attempt": 1}, {"run_id": "run-0"}, {"run_id": None}, {"status": RequestStatus.PENDING}]
)
def test_what_moved_on_is_neither_requeued_nor_cancelled(
    changed: dict[str, Any], store: RequestStore, put: Callable[..., str], admin: psycopg.Connection
) -> None:
    put(status="processing", attempt=2, run_id=RUN)
    before = row(admin)
    seen = StalledRequest(request_id="r", status=RequestStatus.PROCESSING, attempt=2, run_id=RUN)
    with pytest.raises(WrongStatus):
        store.requeue(replace(seen, **changed), max_attempts=3, detail="gone")
    with pytest.raises(WrongStatus):
        store.cancel_stalled(replace(seen, **changed), detail="terminated")
    assert (row(admin), audit(admin)) == (before, [])


# --- the run


def test_starting_again_is_harmless_for_the_same_run(
    store: RequestStore, put: Callable[..., str], admin: psycopg.Connection
) -> None:
    put()
    store.claim(1)
    first = store.start("r", RUN, reopen=False)
    before = row(admin)
    assert store.start("r", RUN, reopen=False) == store.start("r", RUN, reopen=True) == first
    assert (row(admin), len(audit(admin))) == (before, 2)
    assert (first.attempt, first.run_id, first.status) == (1, RUN, RequestStatus.PROCESSING)


@pytest.mark.parametrize("reopen", [False, True])
def test_another_run_gets_nothing(
    reopen: bool, store: RequestStore, put: Callable[..., str], admin: psycopg.Connection
) -> None:
    put(status="processing", attempt=1, run_id=RUN)
    before = row(admin)
    with pytest.raises(RunNotEntitled, match="is processing"):
        store.start("r", "run-2", reopen=reopen)
    assert row(admin) == before


def test_of_many_runs_at_once_one_starts(
    store: RequestStore, put: Callable[..., str], admin: psycopg.Connection
) -> None:
    put()

    def start(number: int) -> bool:
        try:
            store.start("r", f"run-{number}", reopen=True)
        except RunNotEntitled:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(start, range(6))) == [False] * 5 + [True]
    assert audit(admin) == [("export_started", "export-pipeline")]


def test_a_re_execution_is_a_new_attempt_and_clears_the_end(store: RequestStore, put: Callable[..., str]) -> None:
    put(status="failed", attempt=2, run_id=RUN, error_message="It broke.", completed_at=datetime.now(UTC))
    started = store.start("r", "run-2", reopen=True)
    assert (started.attempt, started.run_id, started.error_message, started.completed_at) == (3, "run-2", None, None)


def test_a_run_that_nobody_claimed_is_the_first_attempt(store: RequestStore, put: Callable[..., str]) -> None:
    put()
    assert store.start("r", RUN, reopen=False).attempt == 1


def test_completing_writes_metadata_and_status(store: RequestStore, put: Callable[..., str]) -> None:
    put(status="processing", run_id=RUN, data_types=["user_errors", "user_clicks"])
    made = store.complete(what_was_made(), run_id=RUN, file_url="file:///x", partial="Not exported: user_errors.")
    assert made.completed_at is not None
    assert store.metadata("r") == what_was_made(expires_at=made.completed_at + timedelta(days=7))
    assert (made.status, made.file_url, made.error_message, made.data_types) == (
        RequestStatus.PARTIAL, "file:///x", "Not exported: user_errors.", ("user_clicks", "user_errors"),
    )  # fmt: skip


def test_completing_whole_leaves_no_message(store: RequestStore, put: Callable[..., str]) -> None:
    put(status="processing", run_id=RUN)
    assert complete(store).error_message is None


@pytest.mark.parametrize(
    "broken", [{"sha256": None}, {"format": "far too long a format"}, {"total_records": 2**70}, {"manifest": {}}]
)
def test_completing_is_all_or_nothing(
    broken: dict[str, Any], store: RequestStore, put: Callable[..., str], admin: psycopg.Connection
) -> None:
    put(status="processing", run_id=RUN)
    before = row(admin)
    with pytest.raises((psycopg.Error, KeyError)):
        store.complete(what_was_made(**broken), run_id=RUN, file_url="file:///x", partial="")
    assert (row(admin), audit(admin), store.metadata("r")) == (before, [], None)


def test_only_the_owner_completes(store: RequestStore, put: Callable[..., str], admin: psycopg.Connection) -> None:
    put(status="processing", run_id="run-2")
    before = row(admin)
    with pytest.raises(RunNotEntitled, match="Another run owns the request"):
        complete(store)
    assert (row(admin), audit(admin), store.metadata("r")) == (before, [], None)


def test_a_later_file_replaces_the_metadata(store: RequestStore, put: Callable[..., str]) -> None:
    put(status="processing", run_id=RUN)
    complete(store)
    with store._database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_requests SET status = 'processing', run_id = 'run-2'")
    later = what_was_made(total_records=13, storage_key="r/run-2/export.age")
    made = store.complete(later, run_id="run-2", file_url="file:///y", partial="", retention=timedelta(days=2))
    assert made.completed_at is not None
    assert store.metadata("r") == replace(later, expires_at=made.completed_at + timedelta(days=2))


def test_the_database_tells_when_a_file_has_expired(store: RequestStore, put: Callable[..., str]) -> None:
    put(status="processing", run_id=RUN)
    complete(store)
    assert not store.metadata("r").expired
    with store._database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_metadata SET expires_at = now()")
    assert store.metadata("r").expired


def test_only_the_owner_fails(store: RequestStore, put: Callable[..., str], admin: psycopg.Connection) -> None:
    put(status="processing", run_id="run-2")
    before = row(admin)
    store.fail("r", run_id=RUN, message="It broke.")
    assert (row(admin), audit(admin)) == (before, [])
    store.fail("r", run_id="run-2", message="It broke.")
    failed = store.get("r")
    assert (failed.status, failed.error_message, failed.completed_at is None) == ("failed", "It broke.", False)


def test_only_the_owner_cancels_for_its_run(store: RequestStore, put: Callable[..., str]) -> None:
    put(status="processing", run_id="run-2")
    with pytest.raises(WrongStatus):
        store.cancel("r", ADMIN, run_id=RUN)
    assert store.cancel("r", ADMIN, run_id="run-2").error_message == "Cancelled."


def test_a_cancelled_request_is_not_claimed(store: RequestStore, put: Callable[..., str]) -> None:
    put()
    store.cancel("r", ADMIN)
    assert store.claim(10) == []


@pytest.mark.parametrize("withdraw", ["cancel", "delete"])
def test_a_run_learns_that_its_request_was_withdrawn_also_when_it_was_put_back_since(
    store: RequestStore, put: Callable[..., str], withdraw: str
) -> None:
    put()
    store.start("r", RUN, reopen=False)
    assert not store.withdrawn("r", RUN)
    assert store.withdrawn_runs({RUN: "r"}) == set()
    getattr(store, withdraw)("r", ADMIN)
    assert store.withdrawn("r", RUN)
    assert store.withdrawn("r", "run-2"), "which had not begun it"
    assert store.withdrawn_runs({RUN: "r", "run-2": "r"}) == {RUN}
    if withdraw == "cancel":
        store.retry("r", ADMIN)
        assert store.withdrawn("r", RUN)
        assert not store.withdrawn("r", "run-2")
        store.start("r", "run-2", reopen=False)
        assert not store.withdrawn("r", "run-2")
        assert store.withdrawn_runs({RUN: "r", "run-2": "r"}) == set()


def test_a_run_whose_request_was_given_to_another_learns_of_no_withdrawal(
    store: RequestStore, put: Callable[..., str]
) -> None:
    put()
    store.start("r", RUN, reopen=False)
    seen = StalledRequest(request_id="r", status=RequestStatus.PROCESSING, attempt=1, run_id=RUN)
    store.requeue(seen, max_attempts=3, detail="")
    store.start("r", "run-2", reopen=False)
    assert not store.withdrawn("r", RUN)


# --- those who wait


def heard(listener: psycopg.Connection, number: int) -> list[tuple[str, str]]:
    return [(notice.channel, notice.payload) for notice in listener.notifies(timeout=10, stop_after=number)]


def test_whoever_listens_hears_of_a_new_request(store: RequestStore, tables_url: str) -> None:
    with psycopg.connect(tables_url, autocommit=True) as listener:
        listener.execute("LISTEN export_requests")
        store.insert(new(request_id="r"), ADMIN)
        assert heard(listener, 1) == [("export_requests", "r")]


def test_whoever_listens_hears_of_changes_of_status_only(
    store: RequestStore, put: Callable[..., str], tables_url: str
) -> None:
    put("r")
    put("last")
    with psycopg.connect(tables_url, autocommit=True) as listener:
        listener.execute("LISTEN export_requests")
        store.claim(10)  # no change of status, no notice
        store.start("r", RUN, reopen=False)
        complete(store)
        store.cancel("last", ADMIN)
        assert heard(listener, 3) == [("export_requests", "r"), ("export_requests", "r"), ("export_requests", "last")]


def test_users_take_turns_and_the_law_comes_first(store: RequestStore, admin: psycopg.Connection) -> None:
    asked = [("flood", "backup")] * 5 + [("flood", "gdpr"), ("other", "backup"), ("third", "gdpr")]
    for number, (user, kind) in enumerate(asked):
        admin.execute(
            "INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, format,"
            " requested_at) VALUES (%s, %s, 'x', %s, 'json', '2026-01-01'::timestamptz + %s * interval '1 s')",
            [f"{user}-{number}", user, kind, number],
        )
    assert [claim.request_id for claim in store.claim(3)] == ["flood-5", "third-7", "other-6"]
    assert [claim.request_id for claim in store.claim(10, in_flight=5)] == ["flood-0", "flood-1"]
    assert store.claim(10, in_flight=5) == []
