"""The API against its own OpenAPI document: calls that nobody would think of, as each role."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from export_pipeline.api.app import openapi_document
from export_pipeline_tests.integration.api.conftest import SUBJECT, Api

ROLES = ["subject", "operator", "approver", "auditor", "admin", "nobody", None]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
_EXAMPLES = 6
_SETTINGS = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def some(api: Api) -> list[str]:
    """Requests in different states: what is drawn hits them now and then."""
    done, cancelled, waiting = api.ask(), api.ask("user_clicks"), api.ask("user_errors", request_type="gdpr")
    api.export(done)
    api("GET", f"/api/exports/download/{done}")
    api("POST", f"/api/exports/{cancelled}/cancel")
    return [done, cancelled, waiting]


@pytest.mark.parametrize("role", ROLES)
def test_no_surprise(api: Api, some: list[str], role: str | None) -> None:
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", api.app)
    headers = {} if role is None else {"Authorization": f"Bearer {api.tokens[role]}"}
    called = 0

    def try_out(operation: object) -> None:
        @_SETTINGS
        @given(case=operation.as_strategy(), known=st.booleans(), pick=st.randoms())  # type: ignore[attr-defined]
        def call(case: schemathesis.Case, known: bool, pick: random.Random) -> None:
            nonlocal called
            if known:
                _aim(api, case, some, pick)
            called += 1
            case.call_and_validate(headers=headers, checks=CHECKS)

        call()

    for found in schema.get_all_operations():
        try_out(found.ok())
    assert called >= _EXAMPLES * 15


def _aim(api: Api, case: schemathesis.Case, some: list[str], pick: random.Random) -> None:
    """Point a call at something that exists. A stream of a request that goes on would not end."""
    if "request_id" in (case.path_parameters or {}):
        ids = some[:2] if case.operation.path.endswith("/events") else some
        case.path_parameters["request_id"] = pick.choice(ids)
    if "link_id" in (case.path_parameters or {}):
        case.path_parameters["request_id"] = some[0]
        case.path_parameters["link_id"] = api.services.links.of_request(some[0])[0].link_id
    if "user_id" in (case.path_parameters or {}):
        case.path_parameters["user_id"] = pick.choice([SUBJECT, "user-0001"])


def operations() -> Iterator[tuple[str, dict[str, object]]]:
    for path, methods in openapi_document()["paths"].items():  # type: ignore[attr-defined]
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


@pytest.mark.parametrize(("name", "operation"), list(operations()))
def test_every_operation_is_described(name: str, operation: dict[str, object]) -> None:
    assert operation["operationId"] and operation["tags"] and operation["description"], name
    assert "422" not in operation["responses"]
    if operation["security"]:
        assert {"401", "403", "503"} <= operation["responses"].keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("path", "methods"), [(path, set(of)) for path, of in openapi_document()["paths"].items()])  # type: ignore[attr-defined]
def test_what_an_address_does_not_take_is_told_what_it_takes(api: Api, path: str, methods: set[str]) -> None:
    address = re.sub(r"{\w+}", "some-1", path)
    for method in {"OPTIONS", "GET", "PUT", "POST", "PATCH", "DELETE"} - {one.upper() for one in methods}:
        answer = api(method, address, by=None)
        if answer.status_code != 405:  # it is a word where another address takes an id
            assert (path, method) in TAKEN_FOR_AN_ID
            continue
        assert {one.strip().lower() for one in answer.headers["allow"].split(",")} == methods, method


TAKEN_FOR_AN_ID = {("/api/exports/request", "DELETE"), ("/api/exports/data-types", "DELETE")}


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, operation in operations()]
    assert len(ids) == len(set(ids)) > 20
