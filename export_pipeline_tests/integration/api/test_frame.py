"""What surrounds every call: errors, headers, limits, whose address it is, health and figures."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from export_pipeline import wiring
from export_pipeline.api import app as application_module
from export_pipeline.api.app import create_app
from export_pipeline.api.authentication import authenticate
from export_pipeline.api.routes import system
from export_pipeline.api.schemas import Ready
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import DatabaseUnavailable
from export_pipeline.settings import Settings
from export_pipeline_tests.integration.api.conftest import SUBJECT, Api, problem, stand_in

SECRET = "anna@example.org"


def test_addresses_that_lead_nowhere_are_problems_too(api: Api) -> None:
    problem(api("GET", "/nothing"), 404, "not-found")
    problem(api("GET", "/api/exports/"), 404, "not-found")
    answer = api("PATCH", "/api/exports")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"


def test_without_a_token_there_is_only_the_outside(api: Api) -> None:
    for method, path in (("GET", "/api/exports"), ("POST", "/api/exports/request"), ("GET", "/metrics")):
        answer = api(method, path, by=None)
        problem(answer, 401, "not-authenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    for path in ("/health", "/ready", "/api/openapi.json", "/api/docs", "/api/docs/swagger-ui-bundle.js"):
        assert api("GET", path, by=None).status_code == 200


def test_the_docs_page_loads_nothing_from_elsewhere(api: Api) -> None:
    page = api("GET", "/api/docs", by=None)
    assert "//" not in page.text.replace("</", "")
    assert "'self'" in page.headers["content-security-policy"]
    for asset in ("swagger-ui.css", "start.js"):
        assert api("GET", f"/api/docs/{asset}", by=None).status_code == 200


def test_a_large_body_is_refused_by_what_it_says_and_by_what_it_is(api: Api) -> None:
    json = {"Content-Type": "application/json"}
    problem(api("POST", "/api/exports/request", content=b" " * 65_537, headers=json), 413, "too-large")

    def pieces() -> Iterator[bytes]:
        for _ in range(70):
            yield b" " * 1000

    problem(api("POST", "/api/exports/request", content=pieces(), headers=json), 413, "too-large")


def test_security_headers(api: Api) -> None:
    for answer in (api("GET", "/api/exports"), api("GET", "/nothing"), api("GET", "/health", by=None)):
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
    assert api("GET", "/api/exports").headers["cache-control"] == "no-store"


def another(services: wiring.Services, **fields: Any) -> TestClient:
    """The application with other settings."""
    chosen = services.settings.model_copy(update=fields)
    app = create_app(
        wiring.Services(
            settings=chosen, database_url=services.database_url, database=services.database, _held=services._held
        )
    )
    app.dependency_overrides[authenticate] = stand_in
    return TestClient(app, client=("10.1.2.3", 5000))


def test_cors_and_hsts_when_asked_for(services: wiring.Services) -> None:
    client = another(services, api_cors_origins="https://app.example.org", api_hsts=True)
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    welcome = client.options("/api/exports/request", headers={"Origin": "https://app.example.org", **ask})
    assert welcome.headers["access-control-allow-origin"] == "https://app.example.org"
    assert "access-control-allow-credentials" not in welcome.headers
    foreign = client.options("/api/exports/request", headers={"Origin": "https://evil.example.org", **ask})
    assert "access-control-allow-origin" not in foreign.headers
    assert "max-age" in client.get("/health").headers["strict-transport-security"]


@pytest.mark.parametrize(
    ("trusted", "header", "address"),
    [
        ("", "198.51.100.7", "10.1.2.3"),
        ("10.0.0.0/8", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.0/8", "203.0.113.9, 198.51.100.7, 10.9.9.9", "198.51.100.7"),
        ("10.0.0.0/8", "not an address", "10.1.2.3"),
        ("192.0.2.0/24", "198.51.100.7", "10.1.2.3"),
        ("10.0.0.0/8", "", "10.1.2.3"),
        ("10.0.0.0/8", "fe80::7%" + "x" * 100, "fe80::7"),
        ("10.0.0.0/8,2001:db8::/32", "198.51.100.7, 2001:db8::1", "198.51.100.7"),
    ],
)
def test_whose_address_stands_in_the_trail(services: wiring.Services, trusted: str, header: str, address: str) -> None:
    client = another(services, api_trusted_proxies=trusted)
    headers = {"Authorization": f"Bearer {SUBJECT};subject;1", "X-Forwarded-For": header}
    body = {"user_id": SUBJECT, "data_types": ["user_clicks"]}
    made = client.post("/api/exports/request", json=body, headers=headers).json()
    assert services.requests.trail(made["request_id"])[0].ip_address == address


def test_an_unforeseen_error_tells_nobody_anything(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr("export_pipeline.db.listing.Listing.page", break_down)
    with caplog.at_level(logging.DEBUG):
        answer = api("GET", "/api/exports", by="auditor")
    found = problem(answer, 500, "internal")
    assert "KeyError" in caplog.text
    assert SECRET not in caplog.text + answer.text and "KeyError" not in str(found)


def test_a_database_that_is_away_is_503_and_come_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("Our database cannot be reached.", hint="host db.internal")

    monkeypatch.setattr("export_pipeline.db.pool.Database.connect", away)
    answer = api("GET", "/api/exports", by="auditor")
    found = problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert "db.internal" not in str(found)
    assert api("GET", "/health", by=None).json()["status"] == "ok"
    ready = api("GET", "/ready", by=None)
    assert ready.status_code == 503
    assert ready.json()["checks"] == {"database": False, "migrations": False, "key": True, "store": True}


def test_a_server_that_nobody_answers_at_is_503_soon(services: wiring.Services) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = Database(f"postgresql://127.0.0.1:{port}/none", patience_s=0.3)
    app = create_app(wiring.Services(settings=services.settings, database_url="", database=away, _held=services._held))
    app.dependency_overrides[authenticate] = stand_in
    headers = {"Authorization": f"Bearer {SUBJECT};subject;1"}
    problem(TestClient(app).get("/api/exports", headers=headers), 503, "unavailable")
    away.close()


def test_ready_names_what_is_missing(api: Api) -> None:
    assert api("GET", "/ready", by=None).json()["status"] == "ready"


def test_ready_without_a_key(services: wiring.Services) -> None:
    (services.settings.home / "keys" / "age.txt").unlink()
    answer = TestClient(create_app(services)).get("/ready")
    assert (answer.status_code, answer.json()["checks"]["key"]) == (503, False)


def test_metrics_hold_figures_and_no_ids(api: Api) -> None:
    request_id = api.ask()
    api("GET", f"/api/exports/status/{request_id}")
    api("GET", f"/api/exports/user/{SUBJECT}/history")
    api("GET", f"/{SECRET}")
    answer = api("GET", "/metrics", by="auditor")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'export_pipeline_queue_length{status="pending"} 1.0' in lines
    assert 'export_pipeline_requests{format="json",status="pending"} 1.0' in lines
    assert any(line.startswith("export_pipeline_queue_oldest_waiting_seconds ") for line in lines)
    assert 'export_pipeline_requests_due{when="overdue"} 0.0' in lines
    status = 'method="GET",route="/api/exports/status/{request_id}",status="200"'
    assert f"export_pipeline_http_requests_total{{{status}}} 1.0" in lines
    assert 'route="unmatched",status="404"' in answer.text
    assert not [word for word in (request_id, SUBJECT, SECRET) if word in answer.text]
    problem(api("GET", "/metrics"), 403, "not-allowed")


def test_metrics_may_be_public(services: wiring.Services) -> None:
    assert another(services, api_public_metrics=True).get("/metrics").status_code == 200


def test_the_application_makes_and_closes_its_own_parts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application_module.settings, "load", lambda: settings)
    app = application_module.application()
    with TestClient(app) as client:
        assert client.get("/ready").status_code == 200
        database = app.state.services.database
        assert RequestStore(database).search() == []
    with pytest.raises(Exception, match=r".+"), database.connect():
        pass


def test_calls_behind_a_lock_end_and_give_their_places_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application_module.settings, "load", lambda: settings)
    app = application_module.application()
    app.dependency_overrides[authenticate] = stand_in
    with TestClient(app) as client, ThreadPoolExecutor(12) as pool:
        api = Api(app=app, client=client, services=app.state.services)
        with psycopg.connect(api.services.database_url) as other:
            other.execute("LOCK TABLE export_pipeline.export_requests IN ACCESS EXCLUSIVE MODE")
            stuck = [pool.submit(api, "GET", "/api/exports/status/any") for _ in range(12)]
            try:
                for call in stuck:
                    answer = call.result(60)
                    problem(answer, 503, "unavailable")
                    assert int(answer.headers["retry-after"]) > 0
                assert api("GET", "/api/exports/data-types").status_code == 200
            finally:
                other.rollback()
        assert api("GET", "/api/exports/status/any").status_code == 404


def test_nobody_waits_for_a_look_that_hangs(services: wiring.Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_FRESH_S", 0.0)
    check, looks, go_on = system.readiness(services), threading.Event(), threading.Event()
    before = check()
    assert before.status == "ready"

    def hang(_services: wiring.Services) -> Ready:
        looks.set()
        go_on.wait(60)
        return Ready(status="not ready", checks={"store": False})

    monkeypatch.setattr(system, "_look", hang)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(check)
        assert looks.wait(60)
        assert check() is before
        go_on.set()
        assert looking.result(60).status == "not ready"
