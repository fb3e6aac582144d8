"""Who asks, on real tables: tokens, sessions, sign-in links, and what of it stands in the trail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from export_pipeline import wiring
from export_pipeline.errors import ConfigurationError, InvalidRequest, KeyUnusable, NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.models import Actor
from export_pipeline.settings import Settings
from export_pipeline.sign_in import web
from export_pipeline.sign_in.gatekeeper import COOKIE, Asking, Gatekeeper
from export_pipeline.sign_in.refusals import Refusals
from export_pipeline.sign_in.tokens import Audience
from export_pipeline.vault import token_keys

ANNA = Principal(id="anna", roles=frozenset({Role.SUBJECT, Role.OPERATOR}))
HOST = "export.example:8080"


@pytest.fixture
def services(settings: Settings) -> Iterator[wiring.Services]:
    with wiring.connect(settings.model_copy(update={"local_tokens": True})) as made:
        yield made


@pytest.fixture
def gatekeeper(services: wiring.Services) -> Gatekeeper:
    return services.gatekeeper


@pytest.fixture
def client(gatekeeper: Gatekeeper) -> Iterator[TestClient]:
    """A small application behind the gatekeeper, as the API is."""

    async def who(request: Request) -> Response:
        try:
            return JSONResponse({"id": (await web.admit(gatekeeper, request)).id})
        except NotAuthenticated as refused:
            return JSONResponse({"reason": refused.reason}, 401)

    app = Starlette(routes=[*web.routes(gatekeeper), Route("/who", who, methods=["GET", "POST"])])
    with TestClient(app, base_url=f"http://{HOST}", client=("192.0.2.7", 1234)) as made:
        yield made


def trail(services: wiring.Services, action: str) -> list[tuple[str, ...]]:
    with psycopg.connect(services.database_url) as connection:
        return connection.execute(
            "SELECT actor, ip_address, user_agent, detail FROM export_pipeline.export_audit_logs"
            " WHERE action = %s ORDER BY log_id",
            [action],
        ).fetchall()


def token(services: wiring.Services, **how: object) -> str:
    return wiring.Issuer(wiring.token_key_file(services.settings)).issue(ANNA, **how)


def asking(*, changes: bool = False, **headers: str) -> Asking:
    return Asking(changes=changes, headers={"host": HOST, **headers}, ip_address="192.0.2.7")


def refusal(gatekeeper: Gatekeeper, asked: Asking) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        gatekeeper.admit(asked)
    return refused.value.reason


# --- tokens and sessions


def test_a_token_counts_for_everything(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    for changes in (False, True):
        found = gatekeeper.admit(asking(changes=changes, authorization=f"Bearer {token(services)}"))
        assert (found.id, found.roles) == (ANNA.id, ANNA.roles)
    assert gatekeeper.admit(asking(authorization=f"bearer  {token(services)} ")).id == "anna"


def test_without_anything_nobody_is_there_and_nothing_is_written(
    services: wiring.Services, gatekeeper: Gatekeeper
) -> None:
    assert refusal(gatekeeper, asking()) == ""
    assert refusal(gatekeeper, asking(cookie="other=1")) == ""
    assert trail(services, "sign_in_refused") == []


@pytest.mark.parametrize("scheme", ["Basic", "Token", "Digest"])
def test_only_bearer_tokens(services: wiring.Services, gatekeeper: Gatekeeper, scheme: str) -> None:
    assert refusal(gatekeeper, asking(authorization=f"{scheme} {token(services)}")) == "wrong_scheme"


def test_a_wrong_token_is_not_made_good_by_a_session(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    session = f"{COOKIE}={gatekeeper.open_session(ANNA)}"
    assert refusal(gatekeeper, asking(authorization="Bearer x", cookie=session)) == "malformed"


def test_kinds_do_not_stand_in_for_each_other(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    assert refusal(gatekeeper, asking(authorization=f"Bearer {gatekeeper.open_session(ANNA)}")) == "wrong_audience"
    assert refusal(gatekeeper, asking(cookie=f"{COOKIE}={token(services)}")) == "wrong_audience"


def test_an_enormous_token_is_not_even_read(gatekeeper: Gatekeeper) -> None:
    assert refusal(gatekeeper, asking(authorization="Bearer " + "a" * 20_000)) == "malformed"
    assert refusal(gatekeeper, asking(cookie=f"{COOKIE}={'a' * 20_000}")) == "malformed"


@pytest.mark.parametrize(
    ("origin", "counts"),
    [
        (f"http://{HOST}", True),
        (f"https://{HOST}", True),
        ("http://export.example:3001", False),
        ("https://evil.example", False),
        ("null", False),
        (None, False),
        ("", False),
    ],
)
def test_a_session_changes_things_only_from_our_pages(gatekeeper: Gatekeeper, origin: str | None, counts: bool) -> None:
    headers = {"cookie": f"{COOKIE}={gatekeeper.open_session(ANNA)}"} | ({} if origin is None else {"origin": origin})
    assert gatekeeper.admit(asking(**headers)).id == "anna"
    if counts:
        assert gatekeeper.admit(asking(changes=True, **headers)).id == "anna"
    else:
        assert refusal(gatekeeper, asking(changes=True, **headers)) == "foreign_page"


def test_a_session_is_no_sign_in_of_its_own(gatekeeper: Gatekeeper) -> None:
    """Else a stolen token could be made into a recent sign-in, which sensitive data types ask for."""
    at = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
    for auth_time in (None, at):
        session = gatekeeper.open_session(replace(ANNA, auth_time=auth_time))
        assert gatekeeper.admit(asking(cookie=f"{COOKIE}={session}")).auth_time == auth_time


def test_an_expired_session_is_over(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    old = token(services, audience=Audience.SESSION, lifetime=timedelta(minutes=-2))
    assert refusal(gatekeeper, asking(cookie=f"{COOKIE}={old}")) == "expired"


def test_our_own_tokens_do_not_count_on_a_database_of_your_own(settings: Settings) -> None:
    assert not settings.embedded
    with wiring.connect(settings) as services:
        assert not services.gatekeeper.open
        assert refusal(services.gatekeeper, asking(authorization=f"Bearer {token(services)}")) == "wrong_issuer"
        code = wiring.SignInStore(services.database).make_code(ANNA, timedelta(minutes=1))
        with pytest.raises(NotAuthenticated):
            services.gatekeeper.redeem(code, asking())
        with pytest.raises(ConfigurationError, match="EXPORT_PIPELINE_LOCAL_TOKENS"):
            services.gatekeeper.link("http://127.0.0.1", ANNA)
        with pytest.raises(ConfigurationError, match="EXPORT_PIPELINE_LOCAL_TOKENS"):
            services.gatekeeper.issue(ANNA, timedelta(hours=1))


# --- the trail


def test_a_refusal_stands_in_the_trail_without_what_was_shown(
    services: wiring.Services, gatekeeper: Gatekeeper
) -> None:
    forged = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJleHBvcnQtcGlwZWxpbmUifQ."
    refusal(gatekeeper, asking(authorization=f"Bearer {forged}", **{"user-agent": "curl\0\n" + "x" * 500}))
    [(actor, ip_address, agent, detail)] = trail(services, "sign_in_refused")
    assert (actor, ip_address, detail) == ("unknown", "192.0.2.7", "unknown_key")
    assert agent == ("curl" + "x" * 500)[:256]


def test_refusals_cannot_fill_the_trail(services: wiring.Services) -> None:
    now = [100.0]
    refusals = Refusals(wiring.SignInStore(services.database), clock=lambda: now[0])
    for _ in range(25):
        refusals.record(Actor(id="unknown"), "expired")
    assert len(trail(services, "sign_in_refused")) == 10
    now[0] += 61
    refusals.record(Actor(id="unknown"), "expired")
    assert trail(services, "sign_in_refused")[-1][3] == "expired; 15 more were not written"


# --- links


def code(services: wiring.Services, **lifetime: int) -> str:
    return wiring.SignInStore(services.database).make_code(ANNA, timedelta(**lifetime or {"minutes": 1}))


def test_a_link_opens_one_session(services: wiring.Services, client: TestClient) -> None:
    made = code(services)
    assert client.get("/who").json() == {"reason": ""}
    page = client.get(f"/sign-in?code={made}", follow_redirects=False)
    assert page.status_code == 200
    cookie = page.headers["set-cookie"]
    assert all(word in cookie.lower() for word in ("httponly", "samesite=strict", "path=/", "max-age=43200"))
    assert made not in page.text + str(page.headers)
    assert client.get("/who").json() == {"id": "anna"}
    client.cookies.clear()
    assert client.get(f"/sign-in?code={made}").status_code == 401
    assert client.get("/who").status_code == 401
    [(actor, ip_address, *_)] = trail(services, "signed_in")
    assert (actor, ip_address) == ("anna", "192.0.2.7")
    assert trail(services, "sign_in_refused")[-1][3] == "sign_in_code"


def test_of_many_who_use_a_link_at_once_one_gets_in(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    made, start = code(services), threading.Barrier(8)

    def use(_: int) -> bool:
        start.wait()
        try:
            return gatekeeper.redeem(made, asking()).id == "anna"
        except NotAuthenticated:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(use, range(8))) == [False] * 7 + [True]


def test_an_old_link_does_not_count(services: wiring.Services, client: TestClient) -> None:
    assert client.get(f"/sign-in?code={code(services, minutes=-1)}").status_code == 401
    assert trail(services, "signed_in") == []


def test_looking_at_a_link_does_not_use_it_up(services: wiring.Services, client: TestClient) -> None:
    made = code(services)
    assert client.head(f"/sign-in?code={made}").status_code == 200
    assert client.get(f"/sign-in?code={made}").status_code == 200


def test_no_code_is_kept_in_the_clear(services: wiring.Services) -> None:
    made = code(services)
    with psycopg.connect(services.database_url) as connection:
        rows = connection.execute("SELECT c::text FROM export_pipeline.export_sign_in_codes AS c").fetchall()
    assert len(rows) == 1
    assert made not in str(rows)
    assert made.encode().hex() not in str(rows)


@pytest.mark.parametrize("query", ["", "?code=", "?code=x&code=y", "?code=%00", "?code=%ff%fe", "?code=" + "a" * 5000])
def test_odd_links_are_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/sign-in{query}")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_a_token_becomes_a_session_and_signing_out_ends_it(services: wiring.Services, client: TestClient) -> None:
    assert client.post("/sign-in").status_code == 401
    assert client.post("/sign-in", headers={"Authorization": f"Bearer {token(services)}"}).status_code == 204
    assert client.get("/who").json() == {"id": "anna"}
    assert client.post("/who").json() == {"reason": "foreign_page"}
    assert client.post("/who", headers={"Origin": f"http://{HOST}"}).json() == {"id": "anna"}
    client.post("/sign-out")
    assert client.get("/who").status_code == 401


def test_the_cookie_is_secure_behind_tls(services: wiring.Services, client: TestClient) -> None:
    answer = client.get(f"https://{HOST}/sign-in?code={code(services)}")
    assert "secure" in answer.headers["set-cookie"].lower()
    answer = client.get(f"/sign-in?code={code(services)}", headers={"X-Forwarded-Proto": "https"})
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "secure" not in client.get(f"/sign-in?code={code(services)}").headers["set-cookie"].lower()


def test_trouble_of_ours_is_not_called_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    answer = web.refused(KeyUnusable("The key file /etc/keys/tokens.txt does not exist."))
    assert answer.status_code == 503
    # A stranger reads the page, an operator the log.
    assert b"tokens.txt" not in answer.body
    assert "tokens.txt" in caplog.text


def test_a_session_does_not_make_another(services: wiring.Services, client: TestClient) -> None:
    """Else it would last for ever, and so would a stolen one."""
    client.post("/sign-in", headers={"Authorization": f"Bearer {token(services)}"})
    answer = client.post("/sign-in", headers={"Origin": f"http://{HOST}"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)


@pytest.mark.parametrize(
    "other", ['theme={"dark":true}', "consent", "x:y=1", 'open="never closed', "name=ä", "list=[1,2, 3]", "; ;="]
)
def test_cookies_of_others_do_not_hide_the_session(services: wiring.Services, other: str) -> None:
    session = f"{COOKIE}={services.gatekeeper.open_session(ANNA)}"
    for cookies in (f"{other}; {session}", f"{session}; {other}"):
        assert services.gatekeeper.admit(asking(cookie=cookies)).id == "anna"


@pytest.mark.parametrize("origin", ["http://[", "null", "", "//", "http://", f"http://{HOST}.evil.example", HOST])
def test_an_origin_that_is_none_is_a_foreign_page(services: wiring.Services, origin: str) -> None:
    cookie = f"{COOKIE}={services.gatekeeper.open_session(ANNA)}"
    asked = asking(changes=True, cookie=cookie, origin=origin, host=HOST)
    assert refusal(services.gatekeeper, asked) == "foreign_page"


@pytest.mark.parametrize("user_id", ["", " ", "a\nb", "\udcff", "x" * 256])
def test_nothing_is_made_for_who_cannot_be(gatekeeper: Gatekeeper, user_id: str) -> None:
    nobody = replace(ANNA, id=user_id)
    with pytest.raises(InvalidRequest):
        gatekeeper.issue(nobody, timedelta(hours=1))
    with pytest.raises(InvalidRequest):
        gatekeeper.link(f"http://{HOST}", nobody)


def test_a_token_that_counted_a_moment_ago_does_not_outlive_its_key(services: wiring.Services) -> None:
    gatekeeper, shown = services.gatekeeper, asking(authorization=f"Bearer {token(services)}")
    assert gatekeeper.recall(shown) is None
    assert gatekeeper.admit(shown) == gatekeeper.recall(shown)
    wiring.token_key_file(services.settings).unlink()
    token_keys.create(wiring.token_key_file(services.settings))
    assert gatekeeper.recall(shown) is None
    with pytest.raises(NotAuthenticated):
        gatekeeper.admit(shown)


def test_a_session_that_counted_a_moment_ago_still_needs_a_page_of_ours_to_change_something(
    services: wiring.Services,
) -> None:
    gatekeeper, cookie = services.gatekeeper, f"{COOKIE}={services.gatekeeper.open_session(ANNA)}"
    gatekeeper.admit(asking(cookie=cookie))
    assert gatekeeper.recall(asking(cookie=cookie)).id == "anna"
    assert gatekeeper.recall(asking(changes=True, cookie=cookie, origin="https://evil.example", host=HOST)) is None
    assert gatekeeper.recall(asking(authorization=f"Bearer {cookie.partition('=')[2]}")) is None
