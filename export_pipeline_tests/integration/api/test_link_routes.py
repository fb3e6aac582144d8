"""Showing and taking back the download links of a request by the API."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from export_pipeline.identity import Role
from export_pipeline.models import Actor, AuditAction
from export_pipeline_tests.integration.api.conftest import SUBJECT, Api, problem, token

UNKNOWN = "0" * 32


@pytest.fixture
def request_id(api: Api) -> str:
    """A request with a file."""
    made = api.ask()
    api.export(made)
    return made


def issued(api: Api, request_id: str, by: str = "subject") -> dict[str, Any]:
    answer = api("GET", f"/api/exports/download/{request_id}", by=by)
    assert answer.status_code == 200
    return answer.json()


def listed(api: Api, request_id: str, by: str = "subject", query: str = "") -> dict[str, Any]:
    answer = api("GET", f"/api/exports/{request_id}/links{query}", by=by)
    assert answer.status_code == 200, answer.text
    return answer.json()


def opens(api: Api, link: dict[str, Any]) -> bool:
    answer = api("GET", link["download_url"], by=None)
    assert answer.status_code == 200 or problem(answer, 410, "link-ended")
    return answer.status_code == 200


def ended(api: Api, request_id: str) -> list[tuple[str, str | None, str | None, str]]:
    rows = api.services.requests.trail(request_id)
    return [
        (row.actor, row.ip_address, row.user_agent, row.detail)
        for row in rows
        if row.action == AuditAction.LINK_REVOKED
    ]


def test_links_are_shown_newest_first_and_open_nothing_by_themselves(api: Api, request_id: str) -> None:
    assert listed(api, request_id) == {"request_id": request_id, "links": [], "count": 0, "more": False}
    first, second = issued(api, request_id), issued(api, request_id, by="operator")
    assert opens(api, first)
    found = listed(api, request_id)
    assert [one["link_id"] for one in found["links"]] == [second["link_id"], first["link_id"]]
    assert [one["issued_to"] for one in found["links"]] == ["olga", SUBJECT]
    assert [(one["downloads"], one["works"], one["revoked_at"]) for one in found["links"]] == [
        (0, True, None),
        (1, True, None),
    ]
    lasts = datetime.fromisoformat(found["links"][0]["expires_at"]) - datetime.fromisoformat(
        found["links"][0]["issued_at"]
    )
    assert timedelta(minutes=59) < lasts <= timedelta(minutes=60)
    for link in (first, second):
        assert link["download_url"].rpartition("/")[2] not in str(found)
        assert api("GET", f"/api/exports/files/{link['link_id']}", by=None).status_code == 403


def test_a_long_list_is_cut_and_says_so(api: Api, request_id: str) -> None:
    made = [issued(api, request_id)["link_id"] for _ in range(4)]
    cut = listed(api, request_id, query="?limit=3")
    assert ([one["link_id"] for one in cut["links"]], cut["count"], cut["more"]) == (made[:0:-1], 3, True)
    assert listed(api, request_id, query="?limit=4")["more"] is False
    for query in ("?limit=0", "?limit=101", "?limit=x"):
        problem(api("GET", f"/api/exports/{request_id}/links{query}"), 400, "invalid-request")


def test_one_link_is_ended_once_and_the_others_stay(api: Api, request_id: str) -> None:
    first, second = issued(api, request_id), issued(api, request_id)
    path = f"/api/exports/{request_id}/links/{first['link_id']}"
    answers = [api("DELETE", path, headers={"User-Agent": "a browser"}).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert (answers[0]["link_id"], answers[0]["works"]) == (first["link_id"], False)
    assert answers[0]["revoked_at"]
    assert (opens(api, first), opens(api, second)) == (False, True)
    assert ended(api, request_id) == [(SUBJECT, "testclient", "a browser", f"link {first['link_id']}")]
    assert [one["works"] for one in listed(api, request_id)["links"]] == [True, False]


@pytest.mark.parametrize("by", ["subject", "operator", "admin"])
def test_all_links_are_ended_and_new_ones_can_be_made(api: Api, request_id: str, by: str) -> None:
    links = [issued(api, request_id), issued(api, request_id, by="operator")]
    api("DELETE", f"/api/exports/{request_id}/links/{links[0]['link_id']}")
    path = f"/api/exports/{request_id}/links"
    assert api("DELETE", path, by=by).json() == {"request_id": request_id, "revoked": 1}
    assert api("DELETE", path, by=by).json() == {"request_id": request_id, "revoked": 0}
    assert not any(opens(api, link) for link in links)
    who = {"subject": SUBJECT, "operator": "olga", "admin": "adam"}[by]
    assert [row[0] for row in ended(api, request_id)] == [SUBJECT, who]
    assert opens(api, issued(api, request_id))


def test_a_link_that_is_over_works_no_more(api: Api, request_id: str) -> None:
    issued(api, request_id)
    with api.services.database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_links SET expires_at = now()")
    [one] = listed(api, request_id)["links"]
    assert (one["works"], one["revoked_at"]) == (False, None)


def test_links_go_with_their_file_and_stay_in_the_list(api: Api, request_id: str) -> None:
    link = issued(api, request_id)
    api("DELETE", f"/api/exports/{request_id}")
    [one] = listed(api, request_id)["links"]
    assert (one["link_id"], one["works"]) == (link["link_id"], False)


def test_a_link_of_another_request_is_like_none(api: Api, request_id: str) -> None:
    """Also of another request of the same person: what a call names must be so."""
    other = api.ask(by="operator", user_id="user-0001")
    api.export(other)
    theirs = issued(api, other, by="operator")["link_id"]
    answers = [
        api("DELETE", f"/api/exports/{request_id}/links/{link_id}", by=by)
        for link_id in (theirs, UNKNOWN)
        for by in ("subject", "operator")
    ]
    for answer in answers:
        problem(answer, 404, "link-not-found")
    assert len({answer.content for answer in answers}) == 1
    assert len({str(sorted(answer.headers.items())) for answer in answers}) == 1
    assert [one["works"] for one in listed(api, other, by="operator")["links"]] == [True]
    assert ended(api, other) == []


@pytest.mark.parametrize("link_id", ["x", "0" * 31, "0" * 33, "G" * 32, "%00" * 32, "é" * 32])
def test_what_is_no_id_of_a_link_is_refused(api: Api, request_id: str, link_id: str) -> None:
    fault = problem(api("DELETE", f"/api/exports/{request_id}/links/{link_id}"), 400, "invalid-request")
    assert fault["errors"][0]["pointer"] == "path/link_id"


def test_who_may_look_ends_nothing(api: Api, request_id: str) -> None:
    link = issued(api, request_id)
    for by in ("approver", "auditor"):
        assert listed(api, request_id, by=by)["count"] == 1
        problem(api("DELETE", f"/api/exports/{request_id}/links", by=by), 403, "not-allowed")
        problem(api("DELETE", f"/api/exports/{request_id}/links/{link['link_id']}", by=by), 403, "not-allowed")
    problem(api("GET", f"/api/exports/{request_id}/links", by="stranger"), 404, "not-found")
    auditor_too = token(SUBJECT, Role.SUBJECT, Role.AUDITOR)
    assert api("DELETE", f"/api/exports/{request_id}/links", by=auditor_too).json()["revoked"] == 1
    assert not opens(api, link)


def test_the_command_and_the_api_speak_of_the_same_links(api: Api, request_id: str) -> None:
    made = api.services.links.issue(request_id, Actor(id="root"))
    assert listed(api, request_id)["links"][0]["link_id"] == made.link_id
    api("DELETE", f"/api/exports/{request_id}/links/{made.link_id}")
    assert api.services.links.of_request(request_id)[0].revoked_at is not None
