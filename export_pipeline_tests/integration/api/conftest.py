"""The API in this process, over a real database. Who calls is told by a stand-in for tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from export_pipeline import wiring
from export_pipeline.api.app import create_app
from export_pipeline.api.authentication import authenticate
from export_pipeline.errors import NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.models import ExportRequest
from export_pipeline_tests.exporting import execute
from export_pipeline_tests.file_server import CONTENT, MIB, Installation
from export_pipeline_tests.serving import served

_runs = itertools.count(1)
SUBJECT = "user-0004"


def token(user_id: str, *roles: Role, signed_in_ago: float | None = 10) -> str:
    """What the stand-in takes for a token."""
    return f"{user_id};{'+'.join(roles)};{'' if signed_in_ago is None else signed_in_ago}"


async def stand_in(request: Request) -> Principal:
    """Believe what the bearer says."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or bearer.count(";") != 2:
        raise NotAuthenticated("Sign in first.")
    user_id, roles, ago = bearer.split(";")
    at = datetime.now(UTC) - timedelta(seconds=float(ago)) if ago else None
    return Principal(id=user_id, roles=frozenset(map(Role, filter(None, roles.split("+")))), auth_time=at)


@dataclass(frozen=True, kw_only=True)
class Api:
    """Calls the application."""

    app: FastAPI
    client: TestClient
    services: wiring.Services
    tokens: dict[str, str] = field(
        default_factory=lambda: {
            "subject": token(SUBJECT, Role.SUBJECT),
            "stranger": token("user-0001", Role.SUBJECT),
            "operator": token("olga", Role.OPERATOR),
            "approver": token("pia", Role.APPROVER),
            "auditor": token("audrey", Role.AUDITOR),
            "admin": token("adam", Role.ADMIN),
            "nobody": token("nina"),
        }
    )

    def __call__(
        self, method: str, path: str, *, by: str | None = "subject", headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        """Call as one of `tokens`, as a token itself, or as nobody (None)."""
        authorization = {} if by is None else {"Authorization": f"Bearer {self.tokens.get(by, by)}"}
        return self.client.request(method, path, headers={**authorization, **(headers or {})}, **more)

    def ask(self, *types: str, by: str = "subject", user_id: str = SUBJECT, **fields: Any) -> str:
        """Ask for an export; gives its id."""
        body = {"user_id": user_id, "data_types": list(types or ["user_sessions"]), "format": "json", **fields}
        answer = self("POST", "/api/exports/request", by=by, json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["request_id"]

    def export(self, request_id: str) -> ExportRequest:
        """Do what a run does, without Dagster."""
        return execute(self.services, request_id, f"run-{next(_runs)}")


@pytest.fixture
def api(services: wiring.Services) -> Iterator[Api]:
    """The application, entered."""
    app = create_app(services)
    app.dependency_overrides[authenticate] = stand_in
    with TestClient(app) as client:
        yield Api(app=app, client=client, services=services)


@pytest.fixture
def running(services: wiring.Services) -> Iterator[Installation]:
    """One file, `one`, of ann, and a server."""
    with served(services) as port:
        made = Installation(services, port)
        made.place("one", [CONTENT[:MIB], CONTENT[MIB:]])
        yield made


def problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """Check that an answer is a problem document of a kind; gives it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["status"], found["type"]) == (status, f"urn:export-pipeline:problem:{name}")
    assert found["title"] and found["detail"]
    return found
