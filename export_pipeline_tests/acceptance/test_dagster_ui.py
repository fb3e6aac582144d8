"""Nobody sees anything of Dagster before signing in, and only admins change something there."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from export_pipeline import supervisor
from export_pipeline.identity import SCOPES, Principal, Role, Scope
from export_pipeline.sign_in.gatekeeper import COOKIE
from export_pipeline.sign_in.tokens import Audience
from export_pipeline_tests.running import Running

VERSION = "{ version }"
TERMINATE = 'mutation { terminateRun(runId: "none") { __typename } }'
LAUNCH = """mutation { launchRun(executionParams: {selector: {repositoryName: "__repository__",
    repositoryLocationName: "export_pipeline", jobName: "export_user_data"}}) { __typename } }"""
TELEMETRY = 'mutation { logTelemetry(action: "a", clientTime: "0", clientId: "c", metadata: "{}") { __typename } }'
LOOKERS = sorted(SCOPES[Scope.READ_DAGSTER].others - SCOPES[Scope.LAUNCH_DAGSTER].others)
OUTSIDERS = sorted(set(Role) - SCOPES[Scope.READ_DAGSTER].others)


class Browser:
    """Asks the UI's server, with headers of its own."""

    def __init__(self, running: Running, **headers: str) -> None:
        self.address = urlsplit(running.stack.ui_url).netloc
        self.headers = headers

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def graphql(self, query: str) -> tuple[int, Any]:
        content = {"Content-Type": "application/json"}
        status, body, _ = self.ask("POST", "/graphql", json.dumps({"query": query}), **content)
        return status, json.loads(body)


def bearer(running: Running, *roles: Role) -> Browser:
    return Browser(running, Authorization=f"Bearer {running.token(*roles)}")


def session(running: Running, *roles: Role, **headers: str) -> Browser:
    value = running.stack.services.gatekeeper.open_session(Principal(id="anna", roles=frozenset(roles)))
    return Browser(running, Cookie=f"{COOKIE}={value}", **headers)


# --- strangers


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/server_info",
        "/dagit_info",
        "/graphql",
        "/graphql?query={version}",
        "/runs",
        "/favicon.png",
        "/robots.txt",
        "/_next/static/",
        "/download_debug/x",
        "/logs/x/y.out",
        "/notebook",
        "/report_asset_materialization/x",
        "//",
        "/alive/../server_info",
        "/alive/server_info",
        "/sign-in/../graphql",
        "/%2e%2e/server_info",
    ],
)
def test_a_stranger_gets_nothing_of_dagster(running: Running, method: str, path: str) -> None:
    status, body, headers = Browser(running).ask(method, path)
    assert status == 401
    assert "dagster" not in body.decode().lower()
    assert not [name for name in headers if "dagster" in name.lower()]


def test_a_stranger_is_told_how_to_sign_in(running: Running) -> None:
    status, body, headers = Browser(running).ask("GET", "/", Accept="text/html")
    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="export-pipeline"')
    assert b"export-pipeline sign-in" in body


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Cookie": f"{COOKIE}=x"}], ids=str)
def test_a_stranger_opens_no_websocket(running: Running, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as refused, socket(running, headers):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("role", OUTSIDERS)
def test_who_has_no_business_there_is_refused(running: Running, role: Role) -> None:
    for path in ("/", "/server_info", "/graphql?query={version}"):
        status, body, _ = bearer(running, role).ask("GET", path)
        assert (status, b"dagster" in body.lower()) == (403, False)
    assert bearer(running, role).graphql(VERSION)[0] == 403
    assert not opens(running, {"Authorization": f"Bearer {running.token(role)}"})


# --- those who may look


@pytest.mark.parametrize("role", LOOKERS)
def test_who_may_look_sees_and_changes_nothing(running: Running, role: Role) -> None:
    browser = bearer(running, role)
    status, answer = browser.graphql("{ version permissions { permission value } }")
    assert status == 200
    assert answer["data"]["version"].startswith("1.")
    assert [p["permission"] for p in answer["data"]["permissions"] if p["value"]] == []
    assert b"<!doctype html>" in browser.ask("GET", "/runs")[1].lower()
    for mutation in (TERMINATE, LAUNCH, TELEMETRY, f"query Q {{ version }} {TERMINATE}", f"{VERSION} {LAUNCH}"):
        status, answer = browser.graphql(mutation)
        assert (status, answer["data"]) == (403, None), mutation
    for kind in ("materialization", "check", "observation"):
        assert browser.ask("POST", f"/report_asset_{kind}/x", "{}")[0] == 403


def test_an_admin_may_do_everything(running: Running) -> None:
    browser = bearer(running, Role.ADMIN)
    status, answer = browser.graphql("{ permissions { permission value } }")
    assert status == 200
    allowed = {p["permission"] for p in answer["data"]["permissions"] if p["value"]}
    assert {"terminate_pipeline_execution", "launch_pipeline_execution", "edit_sensor"} <= allowed
    assert browser.graphql(TERMINATE) == (200, {"data": {"terminateRun": {"__typename": "RunNotFoundError"}}})


# --- browsers


def test_a_sign_in_link_opens_the_ui(running: Running) -> None:
    link = urlsplit(
        running.stack.services.gatekeeper.link(running.stack.ui_url, Principal(id="a", roles=frozenset(Role)))
    )
    status, _, headers = Browser(running).ask("GET", f"{link.path}?{link.query}")
    assert status == 200
    browser = Browser(running, Cookie=headers["Set-Cookie"].partition(";")[0])
    assert b"<!doctype html>" in browser.ask("GET", "/")[1].lower()
    assert Browser(running).ask("GET", f"{link.path}?{link.query}")[0] == 401


def test_a_page_of_somebody_else_changes_nothing_with_our_cookie(running: Running) -> None:
    ours = {"Origin": running.stack.ui_url}
    for headers, may in (({}, False), ({"Origin": "http://127.0.0.1:1"}, False), (ours, True)):
        browser = session(running, Role.ADMIN, **headers)
        assert browser.ask("GET", "/server_info")[0] == 200
        assert (browser.graphql(TERMINATE)[0] == 200) is may
        path = "/graphql?query=mutation%7BterminateRun(runId:%22none%22)%7B__typename%7D%7D"
        assert (browser.ask("GET", path)[0] == 200) is may
        assert opens(running, dict(browser.headers)) is may


def test_a_session_of_yesterday_is_over(running: Running) -> None:
    services = running.stack.services
    old = services.gatekeeper._issuer.issue(
        Principal(id="a", roles=frozenset(Role)), audience=Audience.SESSION, lifetime=timedelta(minutes=-1)
    )
    assert Browser(running, Cookie=f"{COOKIE}={old}").ask("GET", "/server_info")[0] == 401


# --- the WebSocket


@contextmanager
def socket(running: Running, headers: dict[str, str]) -> Iterator[Any]:
    """Open it as Dagster's pages do, and greet."""
    address = running.stack.ui_url.replace("http", "ws") + "/graphql"
    given = {name: value for name, value in headers.items() if name != "Origin"}
    with connect(
        address, additional_headers=given, origin=headers.get("Origin"), subprotocols=["graphql-ws"], open_timeout=30
    ) as opened:
        opened.send(json.dumps({"type": "connection_init"}))
        assert json.loads(opened.recv(30)) == {"type": "connection_ack"}
        yield opened


def opens(running: Running, headers: dict[str, str]) -> bool:
    try:
        with socket(running, headers):
            return True
    except InvalidStatus:
        return False


@pytest.mark.parametrize("role", [*LOOKERS, Role.ADMIN])
def test_subscriptions_work_and_mutate_nothing(running: Running, role: Role) -> None:
    with socket(running, {"Authorization": f"Bearer {running.token(role)}"}) as opened:
        for number, query in enumerate([TERMINATE, LAUNCH]):
            opened.send(json.dumps({"type": "start", "id": str(number), "payload": {"query": query}}))
            assert json.loads(opened.recv(30))["type"] == "error"
        subscription = "subscription { locationStateChangeEvents { event { eventType } } }"
        opened.send(json.dumps({"type": "start", "id": "9", "payload": {"query": subscription}}))
        opened.send(json.dumps({"type": "start", "id": "10", "payload": {"query": "subscription { nothing }"}}))
        # The valid one stays open without a word; the other one is refused.
        assert json.loads(opened.recv(30))["id"] == "10"


def test_the_ui_is_found_at_the_port_that_it_got(running: Running) -> None:
    """For `sign-in`, which starts in another process and knows only the settings, where the port is 0."""
    assert supervisor.ui_url(running.stack.services.settings) == running.stack.ui_url
