"""Every operation of the API, as each role, on what is one's own, somebody else's, and not there at all.

What may be done is `identity.SCOPES`; which operation needs which scope stands in `OPERATIONS`, written by hand. A
route that is new, or whose scope changed, has no line here and fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from export_pipeline import wiring
from export_pipeline.api.app import create_app, openapi_document
from export_pipeline.identity import Principal, Role, Scope, allowed
from export_pipeline.models import Actor
from export_pipeline.settings import Settings
from export_pipeline.sign_in.gatekeeper import COOKIE
from export_pipeline_tests.conftest import database_url
from export_pipeline_tests.exporting import execute

#: Operation: the scope that it needs; and whom it is about: nobody (or everybody), whoever calls, the person of a user
#: id, or the person of a request.
OPERATIONS = """
health                      -                      nobody
ready                       -                      nobody
get_file_by_link            -                      nobody
look_at_file_by_link        -                      nobody
metrics                     read_metrics           nobody
list_data_types             read_data_types        nobody
get_data_type               administer_data_types  nobody
put_data_type               administer_data_types  nobody
delete_data_type            administer_data_types  nobody
send_verification_code      request                caller
request_export              request                person
request_gdpr_export         request                person
request_gdpr_export_by_get  request                person
list_exports                read                   person
get_history                 read                   person
get_status                  read                   request
follow_export               read                   request
get_manifest                read                   request
get_download                download               request
get_file                    download               request
look_at_file                download               request
list_links                  read                   request
revoke_link                 revoke                 request
revoke_links                revoke                 request
cancel_export               cancel                 request
retry_export                retry                  request
delete_export               delete                 request
approve_export              approve                request
reject_export               approve                request
extend_export               extend                 request
get_audit_trail             read_audit             request
"""
#: What answers outside the document, to anybody.
PAGES = {"/api/openapi.json", "/sign-in", "/sign-in/callback", "/sign-out"}
DOCS = "/api/docs"

#: Person: roles. Ids are those of people in the source, so that everybody has something of their own.
CALLERS: dict[str, frozenset[Role] | None] = {"anonymous": None, "nobody": frozenset()} | {
    role.value: frozenset({role}) for role in Role
}
IDS = {name: f"user-{10 + number:04d}" for number, name in enumerate(CALLERS)}
OTHER, ABSENT = "user-0004", "somebody who is in no table"
NO_REQUEST = "00000000-0000-0000-0000-000000000000"

#: The status of a request in which the operation can be done; else it is completed and has a file.
STATUSES = {
    "cancel_export": "pending",
    "retry_export": "failed",
    "approve_export": "awaiting_approval",
    "reject_export": "awaiting_approval",
    "extend_export": "pending",
}
BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "request_export": lambda user_id: {"user_id": user_id, "data_types": ["user_sessions"]},
    "reject_export": lambda _: {"reason": "a test"},
    "extend_export": lambda _: {"reason": "a test"},
    "put_data_type": lambda _: {"table_name": "walked", "title": f"{next(_numbers)}"},
}
#: This installation has no mail server, and says so to whoever may ask for a code.
DONE = {"send_verification_code": 400}
_numbers = itertools.count(1)

_FILL = """
WITH made AS (
    INSERT INTO export_pipeline.export_requests
        (user_id, requested_by, request_type, data_types, format, status, completed_at)
    VALUES (%(user_id)s, 'import', 'gdpr', '{user_sessions}', 'json', %(status)s, now()) RETURNING request_id
), filled AS (
    INSERT INTO export_pipeline.export_metadata
    SELECT (jsonb_populate_record(m, jsonb_build_object('request_id', made.request_id))).*
    FROM export_pipeline.export_metadata AS m, made WHERE m.request_id = 'sample' AND %(status)s = 'completed'
)
SELECT request_id FROM made
"""
_DATA_TYPE = """
INSERT INTO export_pipeline.data_type_configs (data_type, table_name) VALUES ('walked', 'walked')
ON CONFLICT (data_type) DO UPDATE SET table_name = 'walked' RETURNING data_type
"""
_LINK = """
INSERT INTO export_pipeline.export_links (link_id, request_id, issued_to, expires_at)
VALUES (%(link_id)s, %(request_id)s, 'somebody', now() + interval '1 hour') RETURNING link_id
"""
_TRACES = """
SELECT (SELECT md5(string_agg(r::text, '' ORDER BY request_id)) FROM export_pipeline.export_requests AS r),
       (SELECT md5(string_agg(c::text, '' ORDER BY data_type)) FROM export_pipeline.data_type_configs AS c),
       (SELECT md5(string_agg(l::text, '' ORDER BY link_id)) FROM export_pipeline.export_links AS l),
       (SELECT count(*) FROM export_pipeline.export_audit_logs WHERE action NOT IN ('sign_in_refused', 'token_issued'))
"""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the document.

    Attributes:
        about: Whom it is about.
    """

    name: str
    method: str
    path: str
    answers: frozenset[int]
    scope: Scope | None
    about: str

    @property
    def done(self) -> int:
        """What it answers when it was done."""
        return DONE.get(self.name) or min(status for status in self.answers if 200 <= status < 300)


def operations() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    paths: dict[str, dict[str, Any]] = openapi_document()["paths"]  # type: ignore[assignment]
    for path, methods in paths.items():
        for method, operation in methods.items():
            yield operation["operationId"], method.upper(), path, operation


def lines() -> dict[str, tuple[str, str]]:
    return {name: (scope, about) for name, scope, about in (line.split() for line in OPERATIONS.strip().splitlines())}


def walked() -> list[Operation]:
    told = lines()
    return [
        Operation(
            name=name,
            method=method,
            path=path,
            answers=frozenset(map(int, operation["responses"])),
            scope=None if told[name][0] == "-" else Scope(told[name][0]),
            about=told[name][1],
        )
        for name, method, path, operation in operations()
        if name in told
    ]


WALKED = walked()
OF_REQUESTS = [operation for operation in WALKED if operation.about == "request"]


def link_of(request_id: str) -> str:
    """The id of the one link of a request here."""
    return request_id.replace("-", "")


@dataclass(frozen=True, kw_only=True)
class House:
    """An installation with its real sign-in, and one exported file."""

    services: wiring.Services
    client: TestClient
    token: str

    def execute(self, statement: str, **values: object) -> Any:
        with self.services.database.connect() as connection:
            return connection.execute(statement.encode(), values).fetchone()

    def arrange(self, operation: Operation, user_id: str, *, there: bool = True) -> str:
        """Make what the operation can be done to; gives the id of a request."""
        if operation.name in {"get_data_type", "delete_data_type"}:
            self.execute(_DATA_TYPE)
        if operation.about != "request" or not there:
            return NO_REQUEST
        request_id = str(self.execute(_FILL, user_id=user_id, status=STATUSES.get(operation.name, "completed"))[0])
        if "/links" in operation.path:
            self.execute(_LINK, link_id=link_of(request_id), request_id=request_id)
        return request_id

    def ask(self, operation: Operation, headers: dict[str, str], user_id: str, request_id: str) -> httpx.Response:
        """Call as it should be called."""
        ids = {"request_id": request_id, "user_id": user_id, "link_id": link_of(request_id)}
        path = operation.path.format(**ids, data_type="walked", token=self.token)
        query = {"user_id": user_id} if operation.name == "list_exports" else None
        body = BODIES[operation.name](user_id) if operation.name in BODIES else None
        return self.client.request(operation.method, path, params=query, json=body, headers=headers)

    def bearer(self, caller: str) -> dict[str, str]:
        principal = self.principal(caller)
        if principal is None:
            return {}
        return {"Authorization": f"Bearer {self.services.gatekeeper.issue(principal, timedelta(minutes=5))}"}

    def cookie(self, caller: str) -> dict[str, str]:
        principal = self.principal(caller)
        assert principal is not None
        return {"Cookie": f"{COOKIE}={self.services.gatekeeper.open_session(principal)}"}

    def principal(self, caller: str) -> Principal | None:
        roles = CALLERS[caller]
        return None if roles is None else Principal(id=IDS[caller], roles=roles, auth_time=datetime.now(UTC))

    def traces(self) -> Any:
        """Changes with whatever a call leaves."""
        return self.execute(_TRACES)


@pytest.fixture(scope="module")
def house(server_url: str, sample_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE authorization_walk TEMPLATE {sample_template}".encode())
    chosen = Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("house"),
        database_url=SecretStr(database_url(server_url, "authorization_walk")),
        local_tokens=True,
        requests_per_day=1000,
    )
    wiring.make_keys(chosen)
    with wiring.connect(chosen) as services, TestClient(create_app(services)) as client:
        services.intake.request(user_id=OTHER, data_types=["user_sessions"], actor=Actor(id=OTHER), request_id="sample")
        execute(services, "sample")
        token = services.links.issue("sample", Actor(id=OTHER)).url_path.rpartition("/")[2]
        yield House(services=services, client=client, token=token)


# --- the map is complete


def test_every_operation_has_its_line_and_says_the_same_scope_itself() -> None:
    told = {name: scope for name, (scope, _) in lines().items()}
    declared = {
        name: "".join(scope for need in operation["security"] for scope in need["bearer"]) or "-"
        for name, _, _, operation in operations()
    }
    assert declared == told
    assert set(told.values()) - {"-"} == set(Scope) - {Scope.READ_DAGSTER, Scope.LAUNCH_DAGSTER}


def test_nothing_answers_outside_the_document_but_what_is_open_to_all(house: House) -> None:
    documented = {(method, path) for _, method, path, _ in operations()}
    served = set(_routes(house.client.app.routes))  # type: ignore[attr-defined]
    assert documented <= served
    beside = {path for method, path in served - documented if method != "HEAD" or path not in PAGES}
    assert {path for path in beside if not path.startswith(DOCS)} == PAGES


def _routes(routes: Any) -> Iterator[tuple[str, str]]:
    for route in routes:
        if included := getattr(route, "original_router", None):
            yield from _routes(included.routes)
        else:
            yield from ((method, route.path) for method in route.methods)


def test_every_request_is_looked_at() -> None:
    """Who adds a path with an id must say so here."""
    for operation in WALKED:
        assert ("{request_id}" in operation.path) == (operation.about == "request"), operation.name
        assert "{user_id}" not in operation.path or operation.about == "person", operation.name


# --- the walk


def expected(operation: Operation, principal: Principal | None, whose: str) -> int:
    """What the table says.

    401 to whoever is not signed in. 403 to whoever may do it to nobody at all, before anything is looked up; and where
    the person is named in the call. 404, as for an id that is not there, where only the id is known; but 403 to whoever
    may see the request and not do this to it.
    """
    if operation.scope is None:
        return operation.done
    if principal is None:
        return 401
    own = allowed(principal, operation.scope, user_id=principal.id)
    others = allowed(principal, operation.scope, user_id=OTHER)
    if not others and (operation.about == "nobody" or not own):
        return 403
    may = own if whose == "own" or operation.about == "caller" else others
    if operation.about != "request":
        return operation.done if may else 403
    if whose == "absent":
        return 404
    if may:
        return operation.done
    return 403 if allowed(principal, Scope.READ, user_id=principal.id if whose == "own" else OTHER) else 404


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("operation", WALKED, ids=lambda operation: operation.name)
def test_each_answer_is_that_of_the_table(house: House, operation: Operation, caller: str) -> None:
    for whose, user_id in (("own", IDS[caller]), ("foreign", OTHER), ("absent", ABSENT)):
        request_id = house.arrange(operation, user_id, there=whose != "absent")
        before = house.traces()
        answer = house.ask(operation, house.bearer(caller), user_id, request_id)
        wanted = expected(operation, house.principal(caller), whose)
        assert answer.status_code == wanted, (whose, answer.text)
        assert wanted in operation.answers, whose
        if wanted in {401, 403, 404}:
            assert answer.headers["content-type"] == "application/problem+json"
            assert ("www-authenticate" in answer.headers) == (wanted == 401)
            assert user_id not in answer.text and OTHER not in answer.text
            assert house.traces() == before, whose


# --- what is hidden


def hidden() -> list[tuple[Operation, str]]:
    """Operations, and callers to whom other people's requests look like none."""
    found = []
    for operation, (caller, roles) in itertools.product(OF_REQUESTS, CALLERS.items()):
        principal = None if roles is None else Principal(id=IDS[caller], roles=roles)
        if expected(operation, principal, "foreign") == 404:
            found.append((operation, caller))
    return found


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the database is asked, in order; but not whether the token has ended, nor what the pool asks."""
    asked: list[str] = []
    execute = psycopg.Cursor.execute

    def watched(self: Any, query: Any, *values: Any, **how: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if text and not any(word in text for word in ("export_sign_outs", "tcp_keepalives")):
            asked.append(text)
        return execute(self, query, *values, **how)

    monkeypatch.setattr(psycopg.Cursor, "execute", watched)
    return asked


def test_something_is_hidden_from_a_subject_by_each_operation_on_their_own() -> None:
    """Else the next test would be none."""
    mine = [one for one in OF_REQUESTS if one.scope and allowed(Principal(id="a", roles=frozenset({Role.SUBJECT})),
            one.scope, user_id="a")]  # fmt: skip
    assert [operation for operation, caller in hidden() if caller == "subject"] == mine
    assert len(mine) >= 8


@pytest.mark.parametrize(("operation", "caller"), hidden(), ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("status", ["pending", "completed", "failed", "deleted"])
def test_somebody_elses_request_is_like_none(
    house: House, operation: Operation, caller: str, status: str, statements: list[str]
) -> None:
    """The same bytes, the same headers, and the same questions to the database."""
    theirs = house.execute(_FILL, user_id=OTHER, status=status)[0]
    headers, before = house.bearer(caller), house.traces()
    seen = []
    for request_id in (theirs, NO_REQUEST, theirs):
        statements.clear()
        answer = house.ask(operation, headers, OTHER, request_id)
        assert answer.status_code == 404
        seen.append(
            (answer.content, sorted(answer.headers.multi_items()), [one for one in statements if "export_" in one])
        )
    assert seen[0] == seen[1] == seen[2]
    assert house.traces() == before


def people() -> list[tuple[Operation, str]]:
    found = []
    for operation, (caller, roles) in itertools.product(WALKED, CALLERS.items()):
        principal = None if roles is None else Principal(id=IDS[caller], roles=roles)
        if operation.about == "person" and expected(operation, principal, "foreign") in {401, 403}:
            found.append((operation, caller))
    return found


@pytest.mark.parametrize(("operation", "caller"), people(), ids=lambda value: getattr(value, "name", value))
def test_nobody_learns_who_is_in_the_source(
    house: House, operation: Operation, caller: str, statements: list[str]
) -> None:
    """Whoever may not act for a person gets one answer, be they in the source, in our tables, or nowhere."""
    house.execute(_FILL, user_id=OTHER, status="completed")
    headers, seen = house.bearer(caller), []
    for user_id in (OTHER, "user-0300", ABSENT):
        statements.clear()
        answer = house.ask(operation, headers, user_id, NO_REQUEST)
        seen.append((answer.status_code, answer.content, sorted(answer.headers.multi_items()), list(statements)))
    assert seen[0] == seen[1] == seen[2]
    assert statements == []


@pytest.mark.parametrize("fields", [{"data_types": ["nonsense"]}, {"data_types": []}, {"anonymize": "nonsense"},
                                    {"recipient": "nonsense"}], ids=str)  # fmt: skip
def test_a_wrong_request_for_somebody_else_is_refused_before_it_is_looked_at(
    house: House, fields: dict[str, Any], statements: list[str]
) -> None:
    headers, seen = house.bearer("subject"), []
    statements.clear()  # a token leaves a row in the trail
    for user_id in (OTHER, ABSENT):
        body = {"user_id": user_id, "data_types": ["user_sessions"]} | fields
        answer = house.client.post("/api/exports/request", json=body, headers=headers)
        seen.append((answer.status_code, answer.content))
    assert seen[0] == seen[1] and seen[0][0] == 403
    assert statements == []


# --- browsers


CHANGING = [operation for operation in WALKED if operation.scope and operation.method not in {"GET", "HEAD"}]


@pytest.mark.parametrize("operation", CHANGING, ids=lambda operation: operation.name)
@pytest.mark.parametrize("caller", ["operator", "approver", "admin"])
def test_a_session_does_what_a_token_does_but_only_from_our_own_pages(
    house: House, operation: Operation, caller: str
) -> None:
    may = house.ask(operation, house.bearer(caller), OTHER, house.arrange(operation, OTHER)).status_code
    session = house.cookie(caller)
    for origin, wanted in (("http://testserver", may), ("http://elsewhere.example", 401), (None, 401)):
        request_id = house.arrange(operation, OTHER)
        before = house.traces()
        named = {} if origin is None else {"Origin": origin}
        answer = house.ask(operation, session | named, OTHER, request_id)
        assert answer.status_code == wanted, origin
        assert wanted != 401 or house.traces() == before
