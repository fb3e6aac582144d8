"""Asking, following, fetching, ending: what each route does, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from pyrage import x25519

from export_pipeline.identity import Role
from export_pipeline.models import SYSTEM, AuditAction
from export_pipeline.verification import Verification
from export_pipeline_tests.integration.api.conftest import SUBJECT, Api, problem, token

_NO_JSON = [b"", b"{", b"\xff\xfe", b"[" * 3000, b'{"user_id": ' + b"9" * 5000 + b"}", b"null"]
UNKNOWN = "00000000-0000-0000-0000-000000000000"


def body(**fields: Any) -> dict[str, Any]:
    return {"user_id": SUBJECT, "data_types": ["user_sessions"]} | fields


def test_a_request_is_accepted_and_recorded_as_its_caller(api: Api) -> None:
    headers = {"User-Agent": "a browser"}
    answer = api("POST", "/api/exports/request", json=body(format="csv", request_type="backup"), headers=headers)
    assert answer.status_code == 202
    made = answer.json()
    assert made["status"] == "pending" and made["message"] and made["due_at"] is None
    assert answer.headers["location"] == made["status_url"] == f"/api/exports/status/{made['request_id']}"
    request = api.services.requests.get(made["request_id"])
    assert (request.user_id, request.requested_by, request.format) == (SUBJECT, SUBJECT, "csv")
    [entry] = api.services.requests.trail(made["request_id"])
    assert (entry.action, entry.actor, entry.user_agent) == (AuditAction.REQUESTED, SUBJECT, "a browser")


@pytest.mark.parametrize("public_url", ["https://example.org/privacy", "https://example.org", None])
def test_addresses_in_answers_are_those_at_which_people_reach_the_api(api: Api, public_url: str | None) -> None:
    settings = api.services.settings.model_copy(update={"public_url": public_url})
    api.app.state.services = replace(api.services, settings=settings)
    base = f"{public_url or ''}/api/exports"
    answer = api("POST", "/api/exports/request", json=body())
    request_id = answer.json()["request_id"]
    assert answer.headers["location"] == answer.json()["status_url"] == f"{base}/status/{request_id}"
    api.export(request_id)
    shown = [
        api("GET", f"/api/exports/status/{request_id}").json(),
        *api("GET", "/api/exports").json()["exports"],
        *api("GET", f"/api/exports/user/{SUBJECT}/history").json()["exports"],
    ]
    assert [one["file_url"] for one in shown] == [f"{base}/download/{request_id}"] * 3
    url = api("GET", f"/api/exports/download/{request_id}").json()["download_url"]
    assert url.startswith(f"{base}/files/")
    assert api("GET", url.removeprefix(public_url or ""), by=None).status_code == 200


def test_a_recipients_key_goes_with_the_request_and_a_bad_one_is_refused(api: Api) -> None:
    key = str(x25519.Identity.generate().to_public())
    made = api("POST", "/api/exports/request", json=body(recipient=key))
    assert made.status_code == 202
    shown = api("GET", made.json()["status_url"]).json()
    assert shown["recipient"] == api.services.requests.get(made.json()["request_id"]).recipient == key
    for bad in ("age1nonsense", "ssh-dss AAAA", "AGE-SECRET-KEY-1" + "Q" * 58):
        answer = problem(
            api("POST", "/api/exports/request", json=body(format="csv", recipient=bad)), 400, "invalid-request"
        )
        assert bad not in str(answer)
    assert len(api.services.requests.search()) == 1


def test_an_operator_acts_for_others_and_is_recorded_as_themselves(api: Api) -> None:
    request = api.services.requests.get(api.ask(by="operator"))
    assert (request.user_id, request.requested_by) == (SUBJECT, "olga")


def test_nobody_asks_for_others(api: Api) -> None:
    existing, absent = (
        problem(api("POST", "/api/exports/request", json=body(user_id=who)), 403, "not-allowed")
        for who in ("user-0001", "nobody-at-all")
    )
    assert existing == absent
    problem(api("POST", "/api/exports/gdpr/user-0001"), 403, "not-allowed")
    assert api.services.requests.search() == []


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"format": "xml"}, "#/format"),
        ({"request_type": "x"}, "#/request_type"),
        ({"data_types": "user_sessions"}, "#/data_types"),
        ({"user_id": ""}, "#/user_id"),
        ({"user_id": "a\0b"}, "#/user_id"),
        ({"user_id": "x" * 256}, "#/user_id"),
        ({"user_id": None}, "#/user_id"),
        ({"data_type": []}, "#/data_type"),
        ({"data_types": ["x" * 101]}, "#/data_types/0"),
    ],
)
def test_what_is_wrong_is_pointed_at_and_not_repeated(api: Api, fields: dict[str, Any], pointer: str) -> None:
    found = problem(api("POST", "/api/exports/request", json=body(**fields)), 400, "invalid-request")
    assert [fault["pointer"] for fault in found["errors"]] == [pointer]


@pytest.mark.parametrize("fields", [{"data_types": []}, {"data_types": ["nonsense"]}, {"anonymize": "no-such"}])
def test_the_rules_of_intake_are_problems_too(api: Api, fields: dict[str, Any]) -> None:
    found = problem(api("POST", "/api/exports/request", json=body(**fields)), 400, "invalid-request")
    assert found["hint"]
    assert api.services.requests.search() == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 3000, b'{"user_id": ' + b"9" * 5000 + b"}", b"null"]
)
def test_a_body_that_is_no_json_is_refused(api: Api, content: bytes) -> None:
    answer = api("POST", "/api/exports/request", content=content, headers={"Content-Type": "application/json"})
    problem(answer, 400, "invalid-request")


def test_sensitive_types_of_ones_own_need_a_fresh_sign_in(api: Api) -> None:
    for stale in (token(SUBJECT, Role.SUBJECT, signed_in_ago=901), token(SUBJECT, Role.SUBJECT, signed_in_ago=None)):
        asked = api("POST", "/api/exports/request", by=stale, json=body(data_types=["user_profile"]))
        assert "hint" in problem(asked, 403, "verification-required")
        problem(api("POST", f"/api/exports/gdpr/{SUBJECT}", by=stale), 403, "verification-required")
        assert api("POST", "/api/exports/request", by=stale, json=body()).status_code == 202
    fresh = token(SUBJECT, Role.SUBJECT, signed_in_ago=800)
    assert api("POST", "/api/exports/request", by=fresh, json=body(data_types=["user_profile"])).status_code == 202
    # Operators have proven who they are to their organisation; the trail names them.
    away = token("olga", Role.OPERATOR, signed_in_ago=None)
    assert api("POST", f"/api/exports/gdpr/{SUBJECT}", by=away).status_code == 202


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_gdpr_is_everything_as_json_with_a_due_date(api: Api, method: str) -> None:
    answer = api(method, f"/api/exports/gdpr/{SUBJECT}")
    assert answer.status_code == 202
    assert datetime.fromisoformat(answer.json()["due_at"]).tzinfo is not None
    request = api.services.requests.get(answer.json()["request_id"])
    everything = {config.data_type for config in api.services.data_types.all()}
    assert (request.request_type, request.format, set(request.data_types)) == ("gdpr", "json", everything)


def test_the_same_key_makes_one_request_and_no_other(api: Api) -> None:
    key = {"Idempotency-Key": "once"}
    first, again = (api("POST", "/api/exports/request", json=body(), headers=key).json() for _ in range(2))
    assert first["request_id"] == again["request_id"]
    other = api("POST", "/api/exports/request", json=body(format="csv"), headers=key)
    problem(other, 409, "wrong-status")
    other = api("POST", "/api/exports/request", json=body(data_types=["user_clicks"]), headers=key)
    problem(other, 409, "wrong-status")
    bad = api("POST", "/api/exports/request", json=body(), headers={"Idempotency-Key": "a b"})
    assert problem(bad, 400, "invalid-request")["errors"][0]["pointer"] == "header/Idempotency-Key"


def test_a_call_that_is_repeated_needs_no_new_code(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer got lost, and the code was used up by the first one."""
    codes = ["12345678"]
    monkeypatch.setattr(Verification, "require_verified", lambda _self, _principal, code, _actor: codes.remove(code))
    headers = {"Idempotency-Key": "once", "Verification-Code": "12345678"}
    sensitive = body(data_types=["user_profile"])
    first, again = (api("POST", "/api/exports/request", json=sensitive, headers=headers) for _ in range(2))
    assert (again.status_code, again.json()["request_id"]) == (202, first.json()["request_id"])
    # Nothing new is made that way.
    other = api("POST", "/api/exports/request", json=sensitive | {"format": "csv"}, headers=headers)
    problem(other, 409, "wrong-status")
    assert len(api.services.requests.search()) == 1


def test_a_key_of_another_recipient_is_a_conflict_too(api: Api) -> None:
    key, made = {"Idempotency-Key": "once"}, str(x25519.Identity.generate().to_public())
    api("POST", "/api/exports/request", json=body(), headers=key)
    problem(api("POST", "/api/exports/request", json=body(recipient=made), headers=key), 409, "wrong-status")


def test_ones_own_request_is_put_back_as_often_as_one_may_ask(api: Api) -> None:
    path = f"/api/exports/{api.ask()}"
    for _ in range(5):
        assert api("POST", f"{path}/cancel").status_code == api("POST", f"{path}/retry").status_code == 200
    api("POST", f"{path}/cancel")
    answer = api("POST", f"{path}/retry")
    found = problem(answer, 429, "rate-limited")
    assert (found["limit"], found["remaining"]) == (5, 0)
    assert int(answer.headers["retry-after"]) == found["retry_after"] > 86000


def test_one_too_many_is_told_when_to_come_back(api: Api) -> None:
    kinds = ["backup", "audit", "custom"]
    for number in range(5):
        api.ask("user_sessions", request_type=kinds[number % 3], format=["json", "csv"][number // 3])
    answer = api("POST", "/api/exports/request", json=body(format="pdf"))
    found = problem(answer, 429, "rate-limited")
    assert (found["limit"], found["remaining"]) == (5, 0)
    assert int(answer.headers["retry-after"]) == found["retry_after"] > 86_000


def together(api: Api, bodies: list[dict[str, Any]]) -> list[int]:
    def post(one: dict[str, Any]) -> int:
        return api("POST", "/api/exports/request", json=one).status_code

    with ThreadPoolExecutor(len(bodies)) as pool:
        return sorted(pool.map(post, bodies))


def test_fifty_different_requests_at_once_are_five(api: Api) -> None:
    names = sorted(config.data_type for config in api.services.data_types.all() if not config.is_sensitive)
    chosen = [[name for bit, name in enumerate(names) if number >> bit & 1] for number in range(1, 32)]
    bodies = [body(data_types=types, format=format) for types in chosen for format in ("json", "csv")][:50]
    assert together(api, bodies) == [202] * 5 + [429] * 45
    assert len(api.services.requests.search(limit=100)) == 5


def test_fifty_identical_requests_at_once_are_one(api: Api) -> None:
    assert together(api, [body()] * 50) == [202] * 50
    assert len(api.services.requests.search(limit=100)) == 1


def test_a_completed_request_is_shown_fetched_and_deleted(api: Api) -> None:
    request_id = api.ask("user_sessions", "user_clicks")
    pending = api("GET", f"/api/exports/status/{request_id}").json()
    assert (pending["status"], pending["file_url"], pending["total_records"]) == ("pending", None, None)
    problem(api("GET", f"/api/exports/download/{request_id}"), 409, "wrong-status")
    problem(api("GET", f"/api/exports/{request_id}/file"), 409, "wrong-status")
    problem(api("GET", f"/api/exports/{request_id}/manifest"), 409, "wrong-status")

    api.export(request_id)
    shown = api("GET", f"/api/exports/status/{request_id}").json()
    assert (shown["status"], shown["file_url"]) == ("completed", f"/api/exports/download/{request_id}")
    assert shown["completed_at"] and shown["error_message"] is None
    link = api("GET", f"/api/exports/download/{request_id}").json()
    assert 3590 <= link["expires_in"] <= 3600
    by_link = api("GET", link["download_url"], by=None)
    assert by_link.status_code == 200
    content = api("GET", f"/api/exports/{request_id}/file")
    assert content.headers["content-disposition"] == f'attachment; filename="export-{request_id}.json"'
    assert by_link.content == content.content
    assert len(content.content) == shown["file_size_bytes"] == int(content.headers["content-length"])
    manifest = api("GET", f"/api/exports/{request_id}/manifest").json()
    assert manifest["total_records"] == shown["total_records"] > 0
    metadata = api.services.requests.metadata(request_id)
    assert metadata is not None and hashlib.sha256(content.content).hexdigest() == metadata.sha256
    assert json.loads(content.content)["data"].keys() == {"user_sessions", "user_clicks"}
    assert AuditAction.DOWNLOADED in [entry.action for entry in api.services.requests.trail(request_id)]

    for _ in range(2):
        answer = api("DELETE", f"/api/exports/{request_id}").json()
        assert (answer["request_id"], answer["status"]) == (request_id, "deleted")
    problem(api("GET", link["download_url"], by=None), 410, "link-ended")
    problem(api("GET", f"/api/exports/download/{request_id}"), 410, "gone")
    problem(api("GET", f"/api/exports/{request_id}/file"), 410, "gone")
    problem(api("GET", f"/api/exports/{request_id}/manifest"), 410, "gone")
    assert api("GET", f"/api/exports/status/{request_id}").json()["file_url"] is None
    assert api.services.vault().keys() == []


def test_a_file_whose_time_is_over_is_gone_before_the_purge_was_there(api: Api) -> None:
    request_id = api.ask()
    api.export(request_id)
    with api.services.database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_metadata SET expires_at = now()")
    assert api("GET", f"/api/exports/status/{request_id}").json()["file_url"] is None
    assert api("GET", "/api/exports").json()["exports"][0]["file_url"] is None
    for path in (f"download/{request_id}", f"{request_id}/file", f"{request_id}/manifest"):
        problem(api("GET", f"/api/exports/{path}"), 410, "gone")


def test_cancel_and_retry(api: Api) -> None:
    request_id = api.ask()
    problem(api("POST", f"/api/exports/{request_id}/retry"), 409, "wrong-status")
    assert api("POST", f"/api/exports/{request_id}/cancel").json()["status"] == "cancelled"
    problem(api("POST", f"/api/exports/{request_id}/cancel"), 409, "wrong-status")
    assert api("POST", f"/api/exports/{request_id}/retry").json()["status"] == "pending"


def test_a_damaged_file_is_cut_off_and_not_passed_for_whole(api: Api) -> None:
    request_id = api.ask()
    api.export(request_id)
    with api.services.database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_metadata SET sha256 = repeat('0', 64)")
    answer = api("GET", f"/api/exports/{request_id}/file")
    # A real server cuts the connection there.
    assert len(answer.content) < int(answer.headers["content-length"])


@pytest.fixture
def guarded(api: Api) -> str:
    """A request that waits for approval, of a person about themselves."""
    with api.services.database.connect() as connection:
        connection.execute(
            "UPDATE export_pipeline.data_type_configs SET requires_approval = true WHERE data_type = 'user_clicks'"
        )
    return api.ask("user_clicks", request_type="gdpr")


def test_an_approver_decides_once_and_with_a_reason(api: Api, guarded: str) -> None:
    assert api("GET", f"/api/exports/status/{guarded}").json()["status"] == "awaiting_approval"
    path = f"/api/exports/{guarded}"
    fault = problem(api("POST", f"{path}/reject", by="approver", json={"reason": ""}), 400, "invalid-request")
    assert fault["errors"][0]["pointer"] == "#/reason"
    problem(api("POST", f"{path}/reject", by="approver"), 400, "invalid-request")
    approved = api("POST", f"{path}/approve", by="approver").json()
    assert (approved["status"], approved["decided_by"]) == ("pending", "pia")
    problem(api("POST", f"{path}/reject", by="approver", json={"reason": "late"}), 409, "wrong-status")
    problem(api("POST", f"{path}/approve", by="approver", json={"reason": "again"}), 409, "wrong-status")


def test_rejecting_ends_it(api: Api, guarded: str) -> None:
    rejected = api("POST", f"/api/exports/{guarded}/reject", by="approver", json={"reason": "not ours"}).json()
    assert (rejected["status"], rejected["decision_reason"]) == ("rejected", "not ours")


def test_nobody_decides_about_their_own(api: Api, guarded: str) -> None:
    problem(api("POST", f"/api/exports/{guarded}/approve"), 403, "not-allowed")
    both = token(SUBJECT, Role.SUBJECT, Role.APPROVER)
    answer = api("POST", f"/api/exports/{guarded}/approve", by=both)
    assert answer.status_code in {403, 404}, answer.text
    asker = token("olga", Role.OPERATOR, Role.APPROVER)
    theirs = api.ask("user_clicks", by=asker, user_id="user-0002")
    problem(api("POST", f"/api/exports/{theirs}/approve", by=asker), 403, "not-allowed")


def test_a_due_date_moves_once(api: Api, guarded: str) -> None:
    shown = api("GET", f"/api/exports/status/{guarded}").json()
    assert shown["due_extension"] is None
    before = datetime.fromisoformat(shown["due_at"])
    path = f"/api/exports/{guarded}/extend"
    after = datetime.fromisoformat(api("POST", path, by="operator", json={"reason": "complex"}).json()["due_at"])
    assert 55 < (after - before).days < 65
    problem(api("POST", path, by="operator", json={"reason": "more"}), 409, "wrong-status")
    assert api("GET", f"/api/exports/status/{guarded}").json()["due_extension"] == "complex"


def test_the_trail_is_for_those_who_look_after_it(api: Api) -> None:
    request_id = api.ask()
    trail = api("GET", f"/api/exports/{request_id}/audit", by="auditor").json()
    assert trail["count"] == 1 and trail["entries"][0]["action"] == "export_requested"
    problem(api("GET", f"/api/exports/{request_id}/audit"), 403, "not-allowed")


_BY_ID: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/api/exports/status/{id}", {}),
    ("GET", "/api/exports/status/{id}/events", {}),
    ("GET", "/api/exports/download/{id}", {}),
    ("GET", "/api/exports/{id}/file", {}),
    ("GET", "/api/exports/{id}/manifest", {}),
    ("DELETE", "/api/exports/{id}", {}),
    ("POST", "/api/exports/{id}/cancel", {}),
    ("POST", "/api/exports/{id}/retry", {}),
]


@pytest.mark.parametrize(("method", "path", "more"), _BY_ID)
def test_somebody_elses_request_looks_like_none(api: Api, method: str, path: str, more: dict[str, Any]) -> None:
    request_id = api.ask()
    answers = [api(method, path.format(id=name), by="stranger", **more) for name in (request_id, UNKNOWN, "%00", "ü")]
    for answer in answers:
        problem(answer, 404, "not-found")
    theirs, absent = answers[:2]
    assert theirs.content == absent.content
    assert {**theirs.headers} == {**absent.headers}
    assert api.services.requests.get(request_id).status == "pending"


def test_the_same_work_is_done_for_both(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing: the row is looked for either way, and nothing else is asked of the database."""
    request_id, asked = api.ask(), []
    connect = type(api.services.database).connect

    def counted(self: Any) -> Any:
        asked.append(1)
        return connect(self)

    monkeypatch.setattr(type(api.services.database), "connect", counted)
    numbers = []
    for name in (request_id, UNKNOWN):
        asked.clear()
        api("GET", f"/api/exports/status/{name}", by="stranger")
        numbers.append(len(asked))
    assert numbers == [1, 1]


def test_history_and_list_show_a_person_only_their_own(api: Api) -> None:
    mine, theirs = api.ask(), api.ask(by="operator", user_id="user-0001")
    history = api("GET", f"/api/exports/user/{SUBJECT}/history").json()
    assert (history["user_id"], history["count"], history["exports"][0]["request_id"]) == (SUBJECT, 1, mine)
    problem(api("GET", "/api/exports/user/user-0001/history"), 403, "not-allowed")
    assert [one["request_id"] for one in api("GET", "/api/exports").json()["exports"]] == [mine]
    problem(api("GET", "/api/exports?user_id=user-0001"), 403, "not-allowed")
    everything = api("GET", "/api/exports", by="operator").json()["exports"]
    assert [one["request_id"] for one in everything] == [theirs, mine]


@pytest.mark.parametrize("query", ["limit=0", "limit=51", "limit=x"])
def test_history_has_bounds(api: Api, query: str) -> None:
    problem(api("GET", f"/api/exports/user/{SUBJECT}/history?{query}"), 400, "invalid-request")


def test_filters(api: Api) -> None:
    first = api.ask("user_sessions", format="csv", request_type="audit")
    second = api.ask("user_sessions", format="json", request_type="custom")
    api("POST", f"/api/exports/{second}/cancel")

    def ids(query: str) -> list[str]:
        return [one["request_id"] for one in api("GET", f"/api/exports?{query}", by="auditor").json()["exports"]]

    assert ids("status=cancelled") == [second] == ids("format=json") == ids("request_type=custom")
    assert ids("status=pending") == [first] == ids("format=csv&request_type=audit")
    assert ids(f"user_id={SUBJECT}&limit=1") == [second]
    assert ids("user_id=user-0001") == []
    problem(api("GET", "/api/exports?status=nonsense", by="auditor"), 400, "invalid-request")
    problem(api("GET", "/api/exports?user_id=%00", by="auditor"), 400, "invalid-request")


@pytest.mark.parametrize("cursor", ["", "x", "bm9uc2Vuc2U", "W10", "W251bGwsIG51bGxd", "%00", "é" * 10])
def test_a_cursor_of_somebody_elses_making_is_refused(api: Api, cursor: str) -> None:
    problem(api("GET", "/api/exports", by="auditor", params={"cursor": cursor}), 400, "invalid-request")


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_show_each_row_once_while_others_are_inserted(
    api: Api, limit: int, insert: Callable[[int], list[str]]
) -> None:
    there = insert(20)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = api("GET", "/api/exports", by="auditor", params=query).json()
        assert page["count"] == len(page["exports"]) <= limit
        seen += [one["request_id"] for one in page["exports"]]
        insert(2)
        if (cursor := page["next_cursor"]) is None:
            break
    assert len(seen) == len(set(seen))
    assert [one for one in seen if one in set(there)] == there


@pytest.fixture
def insert(api: Api) -> Callable[[int], list[str]]:
    """Insert rows of one moment, the hardest to page through; gives ids in the order of the list."""

    def rows(number: int) -> list[str]:
        with api.services.database.connect() as connection:
            found = connection.execute(
                "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, data_types, format)"
                " SELECT 'user-' || n, 'import', 'backup', '{user_clicks}', 'json' FROM generate_series(1, %s) AS n"
                " RETURNING request_id",
                [number],
            )
            return sorted((row[0] for row in found), reverse=True)

    return rows


def test_an_etag_saves_the_answer_until_something_changes(api: Api) -> None:
    request_id = api.ask()
    path = f"/api/exports/status/{request_id}"
    first = api("GET", path)
    tag = {"If-None-Match": first.headers["etag"]}
    same = api("GET", path, headers=tag)
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    api.services.requests.cancel(request_id, SYSTEM)
    assert api("GET", path, headers=tag).json()["status"] == "cancelled"
    assert first.headers["cache-control"] == same.headers["cache-control"] == "no-store"
    types = api("GET", "/api/exports/data-types")
    assert types.headers["cache-control"] == "private, no-cache"
    other = {"If-None-Match": f'"x", W/{types.headers["etag"]}'}
    assert api("GET", "/api/exports/data-types", headers=other).status_code == 304


def test_where_a_file_lies_is_not_told(api: Api) -> None:
    request_id = api.ask()
    api.export(request_id)
    for path in (f"/api/exports/status/{request_id}", "/api/exports", f"/api/exports/user/{SUBJECT}/history"):
        assert "file://" not in api("GET", path).text
