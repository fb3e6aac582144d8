"""The way in: what is refused before anything is written. The stores behind it are tested against a real server."""

from __future__ import annotations

from typing import Any

import pytest

from export_pipeline import intake
from export_pipeline.errors import InvalidRequest
from export_pipeline.intake import Intake
from export_pipeline.models import Actor, DataTypeConfig, ExportFormat, NewRequest, RequestType

ADMIN = Actor(id="admin")


class Requests:
    """Notes what would be written."""

    def __init__(self) -> None:
        self.written: list[NewRequest] = []

    def insert(self, request: NewRequest, actor: Actor, *, limit: int | None) -> NewRequest:
        self.written.append(request)
        return request

    def retry(self, request_id: str, actor: Actor, *, limit: int | None) -> tuple[str | int | None, ...]:
        return ("retry", request_id, actor.id, limit)

    def cancel(self, request_id: str, actor: Actor) -> tuple[str, ...]:
        return ("cancel", request_id, actor.id)


class DataTypes:
    """Two configured types."""

    def all(self) -> list[DataTypeConfig]:
        return [DataTypeConfig(data_type=name, table_name=name) for name in ("clicks", "profile")]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    made = Requests()
    monkeypatch.setattr(intake, "RequestStore", lambda _: made)
    monkeypatch.setattr(intake, "DataTypeStore", lambda _: DataTypes())
    return made


def ask(**asked: Any) -> NewRequest:
    asked = {"user_id": "user-1", "data_types": ["clicks"], "actor": ADMIN, **asked}
    return Intake(None).request(**asked)  # type: ignore[arg-type, return-value]


def test_a_request_is_written_as_asked(requests: Requests) -> None:
    ask(user_id="ada", data_types=["profile", "clicks", "profile"], format="csv", kind="audit", request_id="my-id_1")
    assert requests.written == [
        NewRequest(
            user_id="ada",
            requested_by="admin",
            request_type=RequestType.AUDIT,
            data_types=("profile", "clicks"),
            format=ExportFormat.CSV,
            request_id="my-id_1",
        )
    ]


def test_a_gdpr_request_names_every_type(requests: Requests) -> None:
    assert ask(kind="gdpr", data_types=[]).data_types == ("clicks", "profile")


@pytest.mark.parametrize(
    "user_id",
    ["a", "x" * 255, "ada@example.org", "é漢\U0001f600", "o'brien", "a b", "../x", "%s", "'; DROP TABLE x; --"],
)
def test_ids_of_every_kind_are_taken_as_they_are(requests: Requests, user_id: str) -> None:
    assert ask(user_id=user_id, actor=Actor(id=user_id)).user_id == user_id
    assert requests.written[0].requested_by == user_id


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("\u00a0\u2003", "is empty"),
        ("x" * 256, "has 256 characters; 255 is the limit"),
        ("canary\0", "control characters"),
        ("canary\n", "control characters"),
        ("canary\x1b[31m", "control characters"),
        ("canary\u202e", "control characters"),
        ("canary\ud800", "control characters"),
    ],
)
@pytest.mark.parametrize("what", ["user id", "id of the requester"])
def test_ids_that_cannot_be_are_refused_and_not_repeated(requests: Requests, value: str, words: str, what: str) -> None:
    asked = {"user_id": value} if what == "user id" else {"actor": Actor(id=value)}
    with pytest.raises(InvalidRequest, match=f"The {what} .*{words}") as caught:
        ask(**asked)
    assert "canary" not in str(caught.value)
    assert requests.written == []


@pytest.mark.parametrize("request_id", ["a", "0", "A-b_C", "x" * 255, "2b5c1c3e-7f5e-4d34-9d6b-5b8f6a0c1d2e"])
def test_ids_of_ones_own(requests: Requests, request_id: str) -> None:
    assert ask(request_id=request_id).request_id == request_id


def test_without_one_the_database_makes_it(requests: Requests) -> None:
    assert ask().request_id is None


@pytest.mark.parametrize(
    "request_id", ["", "x" * 256, "-a", "_a", "a/b", "..", ".", "a b", "a\n", "é", "a.b", "a%00", "~", "a:b"]
)
def test_ids_that_could_be_another_path_are_refused(requests: Requests, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"request id is not usable.*Use 1 to 255 letters"):
        ask(request_id=request_id)
    assert requests.written == []


@pytest.mark.parametrize(
    "asked", [{"format": "xml"}, {"kind": "other"}, {"data_types": ["nothing"]}, {"data_types": []}], ids=str
)
def test_nothing_is_written_when_anything_is_wrong(requests: Requests, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        ask(**asked)
    assert requests.written == []


def test_a_retry_is_decided_by_the_store(requests: Requests) -> None:
    made = Intake(None, limits=intake.Limits(for_oneself=5, for_others=7))  # type: ignore[arg-type]
    assert made.retry("request-1", ADMIN) == ("retry", "request-1", "admin", 5)
