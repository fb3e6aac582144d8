"""What may be asked, and that nothing is written when it may not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import InvalidRequest, RequestNotFound, WrongStatus
from export_pipeline.intake import Intake
from export_pipeline.models import MAX_DATA_TYPES, Actor, DataTypeConfig, ExportRequest, RequestStatus

if TYPE_CHECKING:
    from export_pipeline_tests.integration.conftest import Exporter

OPERATOR = Actor(id="operator", ip_address="2001:db8::7", user_agent="tests/1.0")
CONFIGURED = ("user_clicks", "user_errors", "user_feedback", "user_profile", "user_sessions", "user_workflows")
CANARY = "canary-7f3a"


@pytest.fixture
def ask(database: Database) -> Callable[..., ExportRequest]:
    """Request clicks for somebody, but for what is given."""
    intake = Intake(database)

    def request(**asked: Any) -> ExportRequest:
        return intake.request(**{"user_id": "u-1", "data_types": ["user_clicks"], "actor": OPERATOR, **asked})

    return request


def written(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT r.*::text FROM export_pipeline.export_requests AS r"
        " UNION ALL SELECT l.*::text FROM export_pipeline.export_audit_logs AS l ORDER BY 1"
    ).fetchall()


# --- what may be asked


def test_what_was_asked_is_what_is_written(ask: Callable[..., ExportRequest], database: Database) -> None:
    made = ask(data_types=["user_errors", "user_clicks"], format="csv", kind="backup", request_id="my-own_ID7")
    assert made == RequestStore(database).get("my-own_ID7")
    assert (made.user_id, made.requested_by, made.request_type, made.data_types, made.format, made.status) == (
        "u-1", "operator", "backup", ("user_errors", "user_clicks"), "csv", RequestStatus.PENDING,
    )  # fmt: skip
    [entry] = RequestStore(database).trail("my-own_ID7")
    assert (entry.action, entry.actor, entry.ip_address, entry.user_agent) == (
        "export_requested", "operator", "2001:db8::7", "tests/1.0",
    )  # fmt: skip


def test_an_id_is_made_where_none_is_given(ask: Callable[..., ExportRequest]) -> None:
    ids = {ask(user_id=f"user-{number}").request_id for number in range(5)}
    assert len(ids) == 5
    assert {len(request_id) for request_id in ids} == {36}


def test_doubles_are_asked_once(ask: Callable[..., ExportRequest]) -> None:
    made = ask(data_types=["user_clicks", "user_errors", "user_clicks", "user_clicks"])
    assert made.data_types == ("user_clicks", "user_errors")


@pytest.mark.parametrize("data_types", [[], ["user_errors"], list(CONFIGURED)])
def test_a_gdpr_request_is_everything(data_types: list[str], ask: Callable[..., ExportRequest]) -> None:
    made = ask(kind="gdpr", data_types=data_types)
    assert sorted(made.data_types) == sorted(CONFIGURED)
    assert len(made.data_types) == len(CONFIGURED)


@pytest.mark.parametrize(
    "user_id",
    [
        "x" * 255,
        "é" * 255,
        "\N{PILE OF POO}" * 255,
        "a b",
        "'; DROP TABLE users;--",
        "../../etc/passwd",
        "%s",
        "<b>",
        "日本",
    ],
)
def test_an_id_may_be_any_printable_text(user_id: str, ask: Callable[..., ExportRequest]) -> None:
    assert ask(user_id=user_id).user_id == user_id
    assert ask(actor=Actor(id=user_id)).requested_by == user_id


@pytest.mark.parametrize("request_id", ["r", "0", "A-b_c", "x" * 255])
def test_an_id_of_ones_own_may_be_letters_digits_dashes(request_id: str, ask: Callable[..., ExportRequest]) -> None:
    assert ask(request_id=request_id).request_id == request_id


# --- what may not


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data_types": ["user_photos"]}, "Unknown data type: user_photos"),
        ({"data_types": ["user_clicks", "user_photos", "users"]}, "Unknown data type: user_photos, users"),
        ({"data_types": ["USER_CLICKS"]}, "Unknown data type: USER_CLICKS"),
        ({"data_types": [" user_clicks"]}, "Unknown data type"),
        ({"data_types": ["user_clicks; DROP TABLE users"]}, "Unknown data type"),
        ({"data_types": [""]}, "Unknown data type"),
        ({"data_types": ["*"]}, "Unknown data type"),
        ({"data_types": ["nul\0"]}, "Unknown data type"),
        ({"data_types": ["\ud800"]}, "Unknown data type"),
        ({"data_types": []}, "No data type was asked for"),
        ({"data_types": (), "kind": "audit"}, "No data type was asked for"),
        ({"data_types": [f"t{n}" for n in range(MAX_DATA_TYPES + 1)]}, f"More than {MAX_DATA_TYPES}"),
        ({"data_types": ["user_photos"], "kind": "gdpr"}, "Unknown data type: user_photos"),
        ({"format": "xml"}, "The format is unknown"),
        ({"format": "JSON"}, "The format is unknown"),
        ({"format": ""}, "The format is unknown"),
        ({"format": "json\0"}, "The format is unknown"),
        ({"kind": "GDPR"}, "The request type is unknown"),
        ({"kind": ""}, "The request type is unknown"),
        ({"kind": "gdpr'--"}, "The request type is unknown"),
        ({"user_id": ""}, "The user id is empty"),
        ({"user_id": "   "}, "The user id is empty"),
        ({"user_id": "x" * 256}, "The user id has 256 characters; 255 is the limit"),
        ({"user_id": "a\0b"}, "The user id holds control characters"),
        ({"user_id": "a\nb"}, "The user id holds control characters"),
        ({"user_id": "a\x1b[31mb"}, "The user id holds control characters"),
        ({"user_id": "a\x7fb"}, "The user id holds control characters"),
        ({"user_id": "a\u202eb"}, "The user id holds control characters"),
        ({"user_id": "a\ud800b"}, "The user id holds control characters"),
        ({"actor": Actor(id="")}, "The id of the requester is empty"),
        ({"actor": Actor(id="x" * 256)}, "The id of the requester has 256 characters"),
        ({"actor": Actor(id="a\0b")}, "The id of the requester holds control characters"),
        ({"request_id": ""}, "The request id is not usable"),
        ({"request_id": "x" * 256}, "The request id is not usable"),
        ({"request_id": "../outside"}, "The request id is not usable"),
        ({"request_id": "a b"}, "The request id is not usable"),
        ({"request_id": "-a"}, "The request id is not usable"),
        ({"request_id": "a\n"}, "The request id is not usable"),
        ({"request_id": "\uff17"}, "The request id is not usable"),
        ({"request_id": "a\0"}, "The request id is not usable"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_written(
    asked: dict[str, Any], message: str, ask: Callable[..., ExportRequest], admin: psycopg.Connection
) -> None:
    ask(request_id="stands-already")
    before = written(admin)
    with pytest.raises(InvalidRequest) as refused:
        ask(**asked)
    assert message in refused.value.message
    assert refused.value.message.isprintable()
    assert written(admin) == before


@pytest.mark.parametrize("field", ["user_id", "request_id", "format", "kind"])
def test_what_was_typed_is_not_repeated(field: str, ask: Callable[..., ExportRequest]) -> None:
    """It may be a person's name in the wrong place, and errors travel."""
    with pytest.raises(InvalidRequest) as refused:
        ask(**{field: f"{CANARY}\n" + "x" * 300})
    assert CANARY not in str(refused.value)


def test_a_refusal_says_what_is_known(ask: Callable[..., ExportRequest]) -> None:
    with pytest.raises(InvalidRequest) as no_type:
        ask(data_types=["photos"])
    with pytest.raises(InvalidRequest) as no_format:
        ask(format="xml")
    with pytest.raises(InvalidRequest) as no_kind:
        ask(kind="why not")
    assert all(name in no_type.value.hint for name in CONFIGURED)
    assert "json, csv" in no_format.value.hint
    assert "gdpr, backup, audit, custom" in no_kind.value.hint


def test_nothing_can_be_asked_where_nothing_is_configured(
    ask: Callable[..., ExportRequest], admin: psycopg.Connection
) -> None:
    admin.execute("DELETE FROM export_pipeline.data_type_configs")
    with pytest.raises(InvalidRequest, match=r"No data type was asked for\. Known are: none"):
        ask(kind="gdpr", data_types=[])


def test_a_taken_id_is_refused(ask: Callable[..., ExportRequest], admin: psycopg.Connection) -> None:
    ask(request_id="mine")
    before = written(admin)
    with pytest.raises(InvalidRequest, match="this id exists already"):
        ask(request_id="mine", user_id="somebody-else", format="csv")
    assert written(admin) == before


def test_of_many_with_one_id_at_once_one_is_written(
    ask: Callable[..., ExportRequest], admin: psycopg.Connection
) -> None:
    def attempt(number: int) -> bool:
        try:
            ask(request_id="mine", user_id=f"u-{number}")
        except InvalidRequest:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(attempt, range(6))) == [False] * 5 + [True]
    assert len(written(admin)) == 2


def test_an_unknown_user_is_refused_at_the_run(
    tables_url: str, admin: psycopg.Connection, exporter_for: Callable[..., Exporter]
) -> None:
    admin.execute("CREATE TABLE public.t (user_id text); INSERT INTO public.t VALUES ('known')")
    exporter = exporter_for(tables_url, [DataTypeConfig(data_type="t", table_name="t")])
    assert exporter.json("known", ["t"]) == {"t": [{"user_id": "known"}]}
    with pytest.raises(InvalidRequest, match="No configured table of the source knows this user id") as refused:
        exporter.json(CANARY, ["t"])
    assert CANARY not in str(refused.value)


# --- afterwards


def test_retry_and_cancel_are_the_stores(ask: Callable[..., ExportRequest], database: Database) -> None:
    intake = Intake(database)
    ask(request_id="mine")
    assert intake.cancel("mine", OPERATOR).status is RequestStatus.CANCELLED
    with pytest.raises(WrongStatus, match="The request is cancelled"):
        intake.cancel("mine", OPERATOR)
    assert intake.retry("mine", OPERATOR).status is RequestStatus.PENDING
    with pytest.raises(WrongStatus, match="The request is pending"):
        intake.retry("mine", OPERATOR)
    actions = [(entry.action, entry.actor, entry.ip_address) for entry in RequestStore(database).trail("mine")]
    assert actions == [
        ("export_requested", "operator", "2001:db8::7"),
        ("export_cancelled", "operator", "2001:db8::7"),
        ("export_retried", "operator", "2001:db8::7"),
    ]


@pytest.mark.parametrize("request_id", ["none", "", "x" * 1000, "'--", "é"])
def test_what_does_not_exist_is_not_found(request_id: str, database: Database) -> None:
    for act in (Intake(database).retry, Intake(database).cancel):
        with pytest.raises(RequestNotFound):
            act(request_id, OPERATOR)
