"""Approval, limits, sameness, due dates and deletion: each rule is held by the database, whoever comes and how many."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg
import pytest

from export_pipeline.api.metrics import Metrics
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.defs import deadlines
from export_pipeline.errors import (
    InvalidRequest,
    NotAllowed,
    RateLimited,
    RequestNotFound,
    RunNotEntitled,
    TooManyRetries,
    WrongStatus,
)
from export_pipeline.intake import Intake, Limits
from export_pipeline.models import Actor, ExportRequest, RequestStatus

ANN, BOB, OPERATOR = Actor(id="ann"), Actor(id="bob"), Actor(id="operator", ip_address="192.0.2.7", user_agent="x/1")


@pytest.fixture
def intake(database: Database) -> Intake:
    return Intake(database, limits=Limits(for_oneself=5, for_others=7))


@pytest.fixture
def store(database: Database) -> RequestStore:
    return RequestStore(database)


@pytest.fixture
def ask(intake: Intake) -> Callable[..., ExportRequest]:
    def make(**asked: Any) -> ExportRequest:
        return intake.request(**{"user_id": "ann", "actor": ANN, "data_types": ["user_clicks"], **asked})

    return make


@pytest.fixture
def guarded(admin: psycopg.Connection) -> None:
    admin.execute(
        "UPDATE export_pipeline.data_type_configs SET requires_approval = true WHERE data_type = 'user_errors'"
    )


def actions(store: RequestStore, request: ExportRequest) -> list[str]:
    return [entry.action for entry in store.trail(request.request_id)]


def test_what_needs_approval_waits_for_it(
    guarded: None, ask: Callable[..., ExportRequest], intake: Intake, store: RequestStore
) -> None:
    waiting = ask(data_types=["user_clicks", "user_errors"])
    assert waiting.status is RequestStatus.AWAITING_APPROVAL
    assert store.claim(10) == []
    for decider in (ANN, Actor(id="ann")):
        with pytest.raises(NotAllowed):
            intake.approve(waiting.request_id, decider)
    approved = intake.approve(waiting.request_id, BOB, "asked by phone")
    assert (approved.status, approved.decided_by, approved.decision_reason) == ("pending", "bob", "asked by phone")
    assert [claim.request_id for claim in store.claim(10)] == [waiting.request_id]
    assert actions(store, waiting) == ["export_requested", "export_approved", "export_claimed"]
    with pytest.raises(WrongStatus):
        intake.reject(waiting.request_id, BOB, "too late")


def test_a_gdpr_request_and_a_plain_insert_wait_too(
    guarded: None, admin: psycopg.Connection, ask: Callable[..., ExportRequest], store: RequestStore
) -> None:
    assert ask(kind="gdpr", data_types=[]).status is RequestStatus.AWAITING_APPROVAL
    row = admin.execute(
        "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, data_types, format)"
        " VALUES ('u', 'u', 'custom', '{user_errors}', 'json') RETURNING status"
    ).fetchone()
    assert row == ("awaiting_approval",)
    assert ask(user_id="bob").status is RequestStatus.PENDING


def test_to_cancel_and_retry_is_no_way_past_the_approver(
    guarded: None, ask: Callable[..., ExportRequest], intake: Intake, store: RequestStore
) -> None:
    waiting = ask(data_types=["user_errors"])
    intake.cancel(waiting.request_id, ANN)
    with pytest.raises(RunNotEntitled):
        store.start(waiting.request_id, "by-hand", reopen=True)
    assert intake.retry(waiting.request_id, ANN).status is RequestStatus.AWAITING_APPROVAL
    assert store.claim(10) == []
    assert intake.approve(waiting.request_id, BOB).status is RequestStatus.PENDING
    intake.cancel(waiting.request_id, ANN)
    assert intake.retry(waiting.request_id, ANN).status is RequestStatus.PENDING
    assert ask().status is RequestStatus.PENDING


@pytest.mark.parametrize("status", ["pending", "processing", "awaiting_approval"])
def test_what_a_plain_insert_says_is_no_way_past_the_approver(
    guarded: None, admin: psycopg.Connection, intake: Intake, store: RequestStore, status: str
) -> None:
    [(request_id, found)] = admin.execute(
        "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, data_types, format, status,"
        " decided_by) VALUES ('u', 'u', 'custom', '{user_errors}', 'json', %s, 'nobody') RETURNING request_id, status",
        [status],
    ).fetchall()
    assert found == "awaiting_approval"
    assert store.stalled(grace=timedelta(0)) == []
    intake.cancel(request_id, OPERATOR)
    assert intake.retry(request_id, OPERATOR).status is RequestStatus.AWAITING_APPROVAL
    assert store.claim(10) == []


@pytest.mark.parametrize("attempts", [5, 1])
def test_a_lost_run_is_no_way_past_the_approver(
    guarded: None,
    ask: Callable[..., ExportRequest],
    intake: Intake,
    store: RequestStore,
    admin: psycopg.Connection,
    attempts: int,
) -> None:
    waiting = ask(data_types=["user_errors"])
    admin.execute("UPDATE export_pipeline.export_requests SET status = 'processing', attempt = 1, run_id = 'none'")
    [stalled] = store.stalled(grace=timedelta(0))
    moved = store.requeue(stalled, max_attempts=attempts, detail="gone")
    assert moved.status == ("awaiting_approval" if attempts > 1 else "failed")
    assert store.claim(10) == []
    if attempts > 1:
        intake.approve(waiting.request_id, BOB)
        [claim] = store.claim(10)
        store.start(claim.request_id, "run", reopen=False)
        # It was decided on: the next one that is lost comes back.
        [stalled] = store.stalled(grace=timedelta(0))
        assert store.requeue(stalled, max_attempts=attempts, detail="gone").status is RequestStatus.PENDING


def test_a_rejected_request_ends_with_its_reason(
    guarded: None, ask: Callable[..., ExportRequest], intake: Intake, store: RequestStore
) -> None:
    waiting = ask(data_types=["user_errors"])
    with pytest.raises(InvalidRequest, match="reason"):
        intake.reject(waiting.request_id, BOB, "  ")
    rejected = intake.reject(waiting.request_id, BOB, "not identified")
    assert (rejected.status, rejected.decision_reason) == ("rejected", "not identified")
    assert rejected.completed_at is not None
    assert store.trail(waiting.request_id)[-1].detail == "not identified"


def test_the_limit_holds_against_fifty_at_once(intake: Intake, admin: psycopg.Connection) -> None:
    def one(number: int) -> str:
        try:
            # Different requests, so that sameness does not answer for the limit.
            data_types = [name for bit, name in enumerate(NAMES) if number >> bit & 1]
            return intake.request(user_id="ann", actor=ANN, data_types=data_types).request_id
        except RateLimited as error:
            assert 0 < error.retry_after_s <= 86_400
            return ""

    with ThreadPoolExecutor(50) as pool:
        made = {request_id for request_id in pool.map(one, range(1, 51)) if request_id}
    assert len(made) == 5
    assert admin.execute("SELECT count(*) FROM export_pipeline.export_requests").fetchone() == (5,)


NAMES = ["user_clicks", "user_errors", "user_feedback", "user_profile", "user_sessions", "user_workflows"]


def test_the_limit_forgets_after_a_day_and_counts_each_requester(
    ask: Callable[..., ExportRequest], admin: psycopg.Connection
) -> None:
    for name in NAMES[:5]:
        ask(data_types=[name])
    with pytest.raises(RateLimited, match="limit of 5"):
        ask(data_types=NAMES[5:])
    assert ask(actor=BOB, user_id="bob").status is RequestStatus.PENDING
    assert ask(actor=OPERATOR, data_types=NAMES[5:]).requested_by == "operator"
    admin.execute("UPDATE export_pipeline.export_requests SET requested_at = requested_at - interval '25 hours'")
    assert ask(data_types=NAMES[:2]).status is RequestStatus.PENDING


def test_what_was_asked_about_others_does_not_count_about_oneself(
    ask: Callable[..., ExportRequest], admin: psycopg.Connection
) -> None:
    for number in range(7):
        ask(user_id=f"user-{number}")
    with pytest.raises(RateLimited, match="limit of 7"):
        ask(user_id="user-7")
    for name in NAMES[:5]:
        ask(data_types=[name])
    with pytest.raises(RateLimited, match="limit of 5"):
        ask(data_types=NAMES[5:])


def test_the_wait_ends_when_fewer_than_the_limit_are_left(
    database: Database, ask: Callable[..., ExportRequest], admin: psycopg.Connection
) -> None:
    for hours, name in enumerate(NAMES[:5]):
        made = ask(data_types=[name])
        admin.execute(
            "UPDATE export_pipeline.export_requests SET requested_at = requested_at - make_interval(hours => %s)"
            " WHERE request_id = %s",
            [hours, made.request_id],
        )
    # The limit was lowered meanwhile: the four oldest must go first.
    with pytest.raises(RateLimited) as limited:
        Intake(database, limits=Limits(for_oneself=2)).request(user_id="ann", actor=ANN, data_types=NAMES[5:])
    assert limited.value.retry_after_s == pytest.approx(23 * 3600, abs=60)


def test_requests_of_the_far_future_limit_like_any_other(
    ask: Callable[..., ExportRequest], admin: psycopg.Connection
) -> None:
    admin.execute(
        "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, format, requested_at)"
        " SELECT 'ann', 'ann', 'custom', 'json', '9000-01-01' FROM generate_series(1, 5)"
    )
    with pytest.raises(RateLimited, match="limit of 5"):
        ask()


def test_fifty_identical_ones_are_one(intake: Intake, admin: psycopg.Connection) -> None:
    with ThreadPoolExecutor(50) as pool:
        made = set(
            pool.map(
                lambda _: intake.request(user_id="ann", actor=ANN, data_types=["user_clicks"]).request_id, range(50)
            )
        )
    assert len(made) == 1
    assert admin.execute("SELECT count(*) FROM export_pipeline.export_audit_logs").fetchone() == (1,)


def test_an_ended_request_is_no_longer_the_same(ask: Callable[..., ExportRequest], intake: Intake) -> None:
    first = ask()
    assert ask(format="csv").request_id != first.request_id
    intake.cancel(first.request_id, ANN)
    assert ask().request_id != first.request_id


def test_what_ended_is_not_opened_again_beside_an_identical_one(
    ask: Callable[..., ExportRequest], intake: Intake, store: RequestStore
) -> None:
    first = ask()
    intake.cancel(first.request_id, ANN)
    second = ask()
    with pytest.raises(WrongStatus, match="identical request is open"):
        intake.retry(first.request_id, ANN)
    with pytest.raises(RunNotEntitled, match="identical request is open"):
        store.start(first.request_id, "by-hand", reopen=True)
    assert actions(store, first) == ["export_requested", "export_cancelled"]
    intake.cancel(second.request_id, ANN)
    assert intake.retry(first.request_id, ANN).status is RequestStatus.PENDING


def test_an_idempotency_key_makes_one_request_for_ever(ask: Callable[..., ExportRequest], intake: Intake) -> None:
    first = ask(idempotency_key="k-1")
    intake.cancel(first.request_id, ANN)
    assert ask(idempotency_key="k-1").request_id == first.request_id
    assert ask(idempotency_key="k-2").request_id != first.request_id
    assert ask(idempotency_key="k-1", actor=BOB, user_id="bob").request_id != first.request_id


def test_a_key_that_found_an_identical_request_stands_for_it(ask: Callable[..., ExportRequest], intake: Intake) -> None:
    first = ask()
    assert ask(idempotency_key="k-1").request_id == first.request_id
    assert ask(idempotency_key="k-2").request_id == first.request_id  # it has one, and is identical
    intake.cancel(first.request_id, ANN)
    assert ask(idempotency_key="k-1").request_id == first.request_id


def test_what_a_key_was_used_for_comes_before_what_is_identical(ask: Callable[..., ExportRequest]) -> None:
    identical = ask(format="csv")
    used = ask(idempotency_key="k-1")
    # The order in which the rows lie must not decide.
    assert ask(idempotency_key="k-1", format="csv").request_id == used.request_id
    again = ask(idempotency_key="k-2", format="ndjson")
    assert ask(idempotency_key="k-2", format="csv").request_id == again.request_id != identical.request_id


def test_to_cancel_and_retry_is_no_way_past_the_limit(
    ask: Callable[..., ExportRequest], intake: Intake, admin: psycopg.Connection
) -> None:
    mine = ask()
    for _ in range(5):
        intake.cancel(mine.request_id, ANN)
        intake.retry(mine.request_id, ANN)
    with pytest.raises(WrongStatus):
        intake.retry(mine.request_id, ANN)  # it is open
    intake.cancel(mine.request_id, ANN)
    with pytest.raises(TooManyRetries) as limited:
        intake.retry(mine.request_id, ANN)
    assert limited.value.limit == 5
    assert limited.value.retry_after_s == pytest.approx(24 * 3600, abs=60)
    assert intake.retry(mine.request_id, OPERATOR).status is RequestStatus.PENDING
    intake.cancel(mine.request_id, ANN)
    admin.execute("UPDATE export_pipeline.export_audit_logs SET timestamp = timestamp - interval '25 hours'")
    assert intake.retry(mine.request_id, ANN).status is RequestStatus.PENDING


def test_a_gdpr_request_has_a_month_and_one_extension(
    ask: Callable[..., ExportRequest], intake: Intake, store: RequestStore, admin: psycopg.Connection
) -> None:
    asked = ask(kind="gdpr")
    one_month = "SELECT requested_at + interval '1 month' = due_at FROM export_pipeline.export_requests"
    assert admin.execute(one_month).fetchone() == (True,)
    extended = intake.extend(asked.request_id, BOB, "complex request")
    assert extended.due_at > asked.due_at
    assert store.trail(asked.request_id)[-1].action == "deadline_extended"
    with pytest.raises(WrongStatus):
        intake.extend(asked.request_id, BOB, "again")
    with pytest.raises(WrongStatus):
        intake.extend(ask().request_id, BOB, "no due date")


def test_delete_leaves_a_tombstone_and_is_harmless_twice(
    database: Database, ask: Callable[..., ExportRequest], store: RequestStore
) -> None:
    cleared: list[str] = []
    intake = Intake(database, clear=cleared.append)
    asked = ask()
    assert intake.delete(asked.request_id, BOB).status is RequestStatus.DELETED
    assert intake.delete(asked.request_id, BOB).status is RequestStatus.DELETED
    assert cleared == [asked.request_id] * 2
    assert actions(store, asked) == ["export_requested", "export_deleted"]
    assert store.claim(10) == []
    with pytest.raises(RequestNotFound):
        intake.delete("nobody", BOB)


def test_a_due_date_is_warned_about_once_and_again_after_an_extension(
    ask: Callable[..., ExportRequest], intake: Intake, store: RequestStore, admin: psycopg.Connection
) -> None:
    near, far, done = (ask(kind="gdpr", user_id=name, actor=OPERATOR) for name in ("near", "far", "done"))
    admin.execute(
        "UPDATE export_pipeline.export_requests SET due_at = now() + interval '3 days' WHERE request_id = ANY(%s)",
        [[near.request_id, done.request_id]],
    )
    intake.cancel(done.request_id, OPERATOR)
    warned = store.warn_due(timedelta(days=7))
    assert [due.request_id for due in warned] == [near.request_id]
    assert store.warn_due(timedelta(days=7)) == []
    assert store.trail(near.request_id)[-1].action == "deadline_warned"
    intake.extend(near.request_id, BOB, "complex")
    assert store.warn_due(timedelta(days=7)) == []
    assert {due.request_id for due in store.warn_due(timedelta(days=100))} == {near.request_id, far.request_id}


def test_deadlines_are_counted_and_told_in_dagster(
    ask: Callable[..., ExportRequest],
    intake: Intake,
    store: RequestStore,
    database: Database,
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    days = {"over": -1, "soon": 3, "failed": 6, "far": 20, "done": 3}
    asked = {name: ask(kind="gdpr", user_id=name, actor=OPERATOR).request_id for name in days}
    for name, request_id in asked.items():
        admin.execute(
            "UPDATE export_pipeline.export_requests SET due_at = now() + %s * interval '1 day', status = %s"
            " WHERE request_id = %s",
            [days[name], {"failed": "failed", "done": "completed"}.get(name, "pending"), request_id],
        )
    monkeypatch.setattr(deadlines, "services", lambda: SimpleNamespace(requests=store))
    told = [_warn(), _warn()]
    assert [one["overdue"] for one in told] == [1, 1]
    assert [one["due within 7 days"] for one in told] == [2, 2]
    assert [one["warned about now"] for one in told] == [3, 0]
    assert [line.split(",")[0] for line in told[0]["requests"]] == [asked[name] for name in ("over", "soon", "failed")]
    assert [len(one["log"]) for one in told] == [3, 0]
    assert asked["over"] in told[0]["log"][0]
    figures = Metrics(database).exposition().decode()
    assert 'export_pipeline_requests_due{when="overdue"} 1.0' in figures
    assert 'export_pipeline_requests_due{when="within_7_days"} 2.0' in figures


def _warn() -> dict[str, Any]:
    """What the job shows in the UI."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = deadlines.warn_deadlines.execute_in_process(instance=instance)
        logs = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == logging.WARNING]
    [output] = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_OUTPUT]
    return {name: value.value for name, value in output.event_specific_data.metadata.items()} | {"log": logs}
