"""Who passes the gate before the Dagster UI, and as what: each role against the table of scopes.

What Dagster itself then shows and refuses is tested with the real one, in `acceptance/test_dagster_ui.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from export_pipeline import wiring
from export_pipeline.defs.internals import MAY_CHANGE
from export_pipeline.defs.ui import gated
from export_pipeline.identity import SCOPES, Principal, Role, Scope
from export_pipeline.settings import Settings
from export_pipeline.sign_in.gatekeeper import COOKIE, Gatekeeper

CALLERS: dict[str, frozenset[Role] | None] = {"anonymous": None, "nobody": frozenset()} | {
    role.value: frozenset({role}) for role in Role
}
#: Method and path; all of these are Dagster's.
CALLS = [
    ("GET", "/"),
    ("GET", "/runs"),
    ("POST", "/graphql"),
    ("GET", "/graphql?query=%7Bversion%7D"),
    ("GET", "/download_debug/x"),
    ("POST", "/report_asset_materialization/x"),
    ("DELETE", "/whatever/comes/next"),
]


async def dagster(scope: Any, receive: Any, send: Any) -> None:
    """Stands for Dagster's application: says as what somebody came."""
    may = "changes" if scope[MAY_CHANGE] else "looks"
    if scope["type"] == "websocket":
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        await socket.send_text(may)
        return await socket.close()
    await PlainTextResponse(may)(scope, receive, send)


@pytest.fixture
def gatekeeper(tables_url: str, tmp_path: Path) -> Iterator[Gatekeeper]:
    chosen = Settings(_env_file=None, home=tmp_path, database_url=SecretStr(tables_url), local_tokens=True)
    wiring.make_keys(chosen)
    with wiring.connect(chosen) as services:
        yield services.gatekeeper


@pytest.fixture
def client(gatekeeper: Gatekeeper) -> Iterator[TestClient]:
    with TestClient(gated(dagster, gatekeeper)) as made:
        yield made


def headers(gatekeeper: Gatekeeper, caller: str, *, session: bool) -> dict[str, str]:
    roles = CALLERS[caller]
    if roles is None:
        return {}
    principal = Principal(id="anna", roles=roles)
    if session:
        return {"Cookie": f"{COOKIE}={gatekeeper.open_session(principal)}", "Origin": "http://testserver"}
    return {"Authorization": f"Bearer {gatekeeper.issue(principal, timedelta(minutes=5))}"}


def expected(caller: str, path: str) -> tuple[int, str]:
    """Status, and as what somebody comes through. Dagster asks for no permission where things are reported to it."""
    roles = CALLERS[caller]
    if roles is None:
        return 401, ""
    looks, changes = (bool(roles & SCOPES[scope].others) for scope in (Scope.READ_DAGSTER, Scope.LAUNCH_DAGSTER))
    if not looks or ("/report_asset_" in path and not changes):
        return 403, ""
    return 200, "changes" if changes else "looks"


@pytest.mark.parametrize("session", [False, True], ids=["token", "session"])
@pytest.mark.parametrize("caller", CALLERS)
def test_each_role_passes_as_the_table_says(
    gatekeeper: Gatekeeper, client: TestClient, caller: str, session: bool
) -> None:
    shown = headers(gatekeeper, caller, session=session)
    for method, path in CALLS:
        answer = client.request(method, path, headers=shown)
        wanted, as_what = expected(caller, path)
        assert (answer.status_code, answer.text if wanted == 200 else "") == (wanted, as_what), path
        assert ("www-authenticate" in answer.headers) == (wanted == 401)


@pytest.mark.parametrize("session", [False, True], ids=["token", "session"])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_websocket_is_as_everything_else(
    gatekeeper: Gatekeeper, client: TestClient, caller: str, session: bool
) -> None:
    wanted, as_what = expected(caller, "/graphql")
    shown = headers(gatekeeper, caller, session=session)
    try:
        with client.websocket_connect("/graphql", headers=shown) as socket:
            came = 200, socket.receive_text()
    except WebSocketDisconnect as refused:
        assert refused.code == 1008
        came = 0, ""
    assert came == ((wanted, as_what) if wanted == 200 else (0, ""))


def test_the_application_is_told_anew_for_each_call(gatekeeper: Gatekeeper, client: TestClient) -> None:
    """Nobody inherits what the one before them might do."""
    for caller in ("admin", "operator", "admin", "auditor"):
        shown = headers(gatekeeper, caller, session=False)
        assert client.get("/runs", headers=shown).text == expected(caller, "/runs")[1]


def test_a_caller_cannot_say_it_themselves(gatekeeper: Gatekeeper, client: TestClient) -> None:
    shown = headers(gatekeeper, "operator", session=False) | {MAY_CHANGE: "true"}
    assert client.get("/runs", headers=shown).text == "looks"


@pytest.mark.parametrize("caller", CALLERS)
def test_people_get_pages_and_programs_get_problems(gatekeeper: Gatekeeper, client: TestClient, caller: str) -> None:
    shown = headers(gatekeeper, caller, session=True) | {"Accept": "text/html,*/*"}
    answer = client.get("/runs", headers=shown)
    wanted, _ = expected(caller, "/runs")
    assert answer.status_code == wanted
    if wanted != 200:
        assert answer.headers["content-type"].startswith("text/html")
        assert ('href="/sign-out"' in answer.text) == (wanted == 403)


# --- what nobody foresaw


CANARY = "Failing row contains (anna, 203.0.113.7)."


@pytest.mark.parametrize("path", ["/runs", "/sign-in?code=x"])
def test_the_text_of_an_unforeseen_error_is_for_nobody(
    gatekeeper: Gatekeeper, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown = headers(gatekeeper, "admin", session=False)

    def fail(*_: object) -> NoReturn:
        raise psycopg.errors.CheckViolation(CANARY)

    monkeypatch.setattr(Gatekeeper, "admit", fail)
    monkeypatch.setattr(Gatekeeper, "redeem", fail)
    with TestClient(gated(dagster, gatekeeper)) as client:
        answer = client.get(path, headers=shown)
    assert answer.status_code == 500
    assert "cannot be used now" in answer.json()["detail"]
    assert "Unexpected CheckViolation" in caplog.text
    assert CANARY not in caplog.text + answer.text


@pytest.mark.parametrize("half", [False, True], ids=["before the answer", "in its middle"])
def test_an_error_of_dagster_itself_is_told_by_type_and_place(
    gatekeeper: Gatekeeper, half: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if half:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError(CANARY)

    shown = headers(gatekeeper, "admin", session=False)
    with TestClient(gated(failing, gatekeeper), raise_server_exceptions=half) as client:
        if half:
            with pytest.raises(ConnectionAbortedError) as cut:
                client.get("/runs", headers=shown)
            assert cut.value.__cause__ is None and cut.value.__suppress_context__
        else:
            assert client.get("/runs", headers=shown).status_code == 500
    assert "Unexpected ValueError" in caplog.text
    assert CANARY not in caplog.text
