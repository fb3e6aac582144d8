"""People sign in by browser at a real OpenID Connect provider; and everything that must not let anybody in."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urljoin, urlsplit

import httpx
import jwt
import psycopg
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from export_pipeline import doctor, wiring
from export_pipeline.cli.sign_in import print_link
from export_pipeline.defs.internals import MAY_CHANGE
from export_pipeline.defs.ui import gated
from export_pipeline.errors import ConfigurationError, IdentityProviderUnavailable, KeyUnusable, NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.models import Actor
from export_pipeline.settings import Settings, load
from export_pipeline.sign_in import code_flow, web
from export_pipeline.sign_in.gatekeeper import COOKIE, Asking
from export_pipeline.sign_in.oidc import Provider, Verifier
from export_pipeline_tests.oidc_provider import AUDIENCE, RunningProvider, free_port, install, rsa_key, running
from export_pipeline_tests.serving import served, served_app

ADDRESS = "http://exports.example:8080"
SAFE_ADDRESS = "https://exports.example"
ELSEWHERE = "https://people.example/exports"
SECRET = "a secret: with + and / and %"
KEY = rsa_key("first")
PEOPLE: dict[str, dict[str, Any]] = {
    "anna": {"email": "anna@example.org", "email_verified": True},
    "olga": {"roles": ["operator", "nonsense"], "email": "olga@example.org", "email_verified": False},
    "adam": {"roles": ["admin"]},
}
AGENT = "browser/1"


@dataclass
class House:
    """An installation, and the provider that it trusts."""

    settings: Settings
    provider: RunningProvider
    held: ExitStack = field(repr=False)

    def services(self, **changed: Any) -> wiring.Services:
        """Its parts, with other settings."""
        return self.held.enter_context(wiring.connect(self.settings.model_copy(update=changed)))


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {"provider": free_port()}


@pytest.fixture(scope="module")
def house(
    server_url: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]
) -> Iterator[House]:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE browser_sign_in TEMPLATE {migrated_template}".encode())
    chosen = Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("home"),
        database_url=SecretStr(urlsplit(server_url)._replace(path="/browser_sign_in").geturl()),
        oidc_issuer=f"http://127.0.0.1:{ports['provider']}",
        oidc_audience=AUDIENCE,
        oidc_client_id="public",
    )
    wiring.make_keys(chosen)
    with ExitStack() as held:
        api = held.enter_context(served(held.enter_context(wiring.connect(chosen))))
        gate = gated(_dagster, held.enter_context(wiring.connect(chosen)).gatekeeper)
        ports |= {"api": api, "ui": held.enter_context(served_app(gate))}
        back = [f"{base}/sign-in/callback" for base in (ADDRESS, SAFE_ADDRESS, ELSEWHERE)]
        back += [f"http://127.0.0.1:{ports[name]}/sign-in/callback" for name in ("api", "ui")]
        secret = {"client_secret": SECRET, "redirect_uris": back}
        apps = {
            "public": {"token_endpoint_auth_method": "none", "redirect_uris": back},
            "confidential": {"token_endpoint_auth_method": "client_secret_basic", **secret},
        }
        folder = install(tmp_path_factory.mktemp("oidc"))
        provider = held.enter_context(
            running(folder, port=ports["provider"], keys=[KEY], clients={}, apps=apps, people=PEOPLE)
        )
        yield House(settings=chosen, provider=provider, held=held)


@pytest.fixture(autouse=True)
def _parts_end_with_their_test(house: House) -> Iterator[None]:
    with ExitStack() as house.held:
        yield


async def _dagster(scope: Any, receive: Any, send: Any) -> None:
    """Stands for Dagster's application."""
    await PlainTextResponse("changes" if scope[MAY_CHANGE] else "looks")(scope, receive, send)


class Account:
    """A person's browser at the provider: it remembers them."""

    def __init__(self, login: str = "anna") -> None:
        self.login = login
        self.asked: list[str] = []
        self.cookies = httpx.Cookies()

    def go(self, url: str, *, abort: bool = False) -> str:
        """Sign in; gives the address to which the provider sends the browser back."""
        with httpx.Client(headers={"User-Agent": AGENT}, timeout=30, cookies=self.cookies) as client:
            came = self._walk(client, client.get(url), abort=abort)
            self.cookies = client.cookies
        return came

    def _walk(self, client: httpx.Client, answer: httpx.Response, *, abort: bool) -> str:
        while True:
            if answer.is_redirect:
                place = urljoin(str(answer.url), answer.headers["location"])
                if "/sign-in/callback" in place:
                    return place
                answer = client.get(place)
                continue
            assert answer.status_code == 200, answer.text
            form = re.search(r'action="([^"]+)" method="post"', answer.text)
            prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
            assert form and prompt, answer.text
            self.asked.append(prompt[1])
            if abort:
                answer = client.get(form[1] + "/abort")
            else:
                fields = {"prompt": prompt[1], "login": self.login, "password": "any"}
                answer = client.post(form[1], data=fields)


@dataclass
class Door:
    """A small application behind the gatekeeper, as the API is, and a browser before it."""

    services: wiring.Services
    client: TestClient

    def begin(self, query: str = "") -> str:
        """Ask for the sign-in; gives where the browser is sent."""
        answer = self.client.get(f"/sign-in{query}", follow_redirects=False)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    def back(self, url: str) -> httpx.Response:
        """Come back from the provider."""
        parts = urlsplit(url)
        return self.client.get(f"{parts.path}?{parts.query}", follow_redirects=False)

    def who(self) -> Any:
        return self.client.get("/who").json()

    def note(self) -> str | None:
        return self.client.cookies.get(web.NOTE)

    def change_note(self, **changed: str) -> None:
        """Be the provider's worst client: remember something else than what was begun."""
        issuer = wiring.Issuer(wiring.token_key_file(self.services.settings))
        kept = {**issuer.read_note(self.note() or ""), **changed}
        kept.pop("iat")
        note = issuer.note(kept, lifetime=timedelta(minutes=1))
        self.client.cookies.clear()
        self.client.cookies.set(web.NOTE, note, domain="exports.example")

    def trail(self, action: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.services.database_url) as connection:
            return connection.execute(
                "SELECT actor, ip_address, user_agent, detail FROM export_pipeline.export_audit_logs"
                " WHERE action = %s ORDER BY log_id",
                [action],
            ).fetchall()


def opened(services: wiring.Services, base: str = ADDRESS, **headers: str) -> Door:
    gatekeeper = services.gatekeeper

    async def who(request: Request) -> Response:
        try:
            found = await web.admit(gatekeeper, request)
        except NotAuthenticated as refused:
            return JSONResponse({"reason": refused.reason}, 401)
        at = found.auth_time.timestamp() if found.auth_time else None
        return JSONResponse({"id": found.id, "roles": sorted(found.roles), "email": found.email, "auth_time": at})

    app = Starlette(routes=[*web.routes(gatekeeper, services.settings.public_url), Route("/who", who)])
    client = TestClient(app, base_url=base, client=("192.0.2.7", 1234), headers={"User-Agent": AGENT, **headers})
    return Door(services=services, client=client)


@pytest.fixture
def door(house: House) -> Door:
    return opened(house.services())


def let_in(answer: httpx.Response) -> bool:
    return COOKIE in answer.headers.get("set-cookie", "")


def cookies(answer: httpx.Response) -> dict[str, str]:
    """Name → the whole line, small."""
    lines = [value for name, value in answer.headers.multi_items() if name == "set-cookie"]
    return {line.partition("=")[0]: line.lower() for line in lines}


def refused(door: Door, answer: httpx.Response, reason: str) -> None:
    """Nobody was let in, the browser keeps nothing, and the trail says why without what was shown."""
    assert answer.status_code == 401, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert not let_in(answer)
    assert door.note() is None
    assert door.who() == {"reason": ""}
    assert door.trail("sign_in_refused")[-1] == ("unknown", "192.0.2.7", AGENT, reason)


@pytest.fixture(autouse=True)
def every_refusal_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than ten a minute would only be counted."""
    monkeypatch.setattr("export_pipeline.sign_in.refusals._ROWS", 1000)


# --- letting in


def test_a_person_signs_in_and_gets_where_they_wanted(door: Door, house: House) -> None:
    before = len(door.trail("signed_in"))
    url = door.begin("?to=" + quote("/runs/1?view=all&x=%2F", safe=""))
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert url.startswith(house.provider.issuer + "/")
    assert (asked["response_type"], asked["client_id"], asked["scope"]) == ("code", "public", "openid email")
    assert (asked["redirect_uri"], asked["code_challenge_method"]) == (f"{ADDRESS}/sign-in/callback", "S256")
    assert min(map(len, (asked["state"], asked["nonce"], asked["code_challenge"]))) >= 43
    answer = door.back(Account().go(url))
    assert answer.status_code == 200, answer.text
    assert 'content="0;url=/runs/1?view=all&amp;x=%2F"' in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    found = door.who()
    assert (found["id"], found["roles"], found["email"]) == ("anna", ["subject"], "anna@example.org")
    assert door.trail("signed_in")[before:] == [("anna", "192.0.2.7", AGENT, "by the identity provider")]


def test_cookies_are_for_this_server_alone(door: Door) -> None:
    answer = door.client.get("/sign-in", follow_redirects=False)
    [note] = cookies(answer).values()
    assert all(word in note for word in ("httponly", "samesite=lax", "path=/", "max-age=900"))
    assert "secure" not in note and "domain" not in note
    back = cookies(door.back(Account().go(answer.headers["location"])))
    session = back[COOKIE]
    assert all(word in session for word in ("httponly", "samesite=strict", "path=/", "max-age=43200"))
    assert "secure" not in session and "domain" not in session
    assert "max-age=0" in back[web.NOTE]
    assert door.note() is None


@pytest.mark.parametrize("how", ["tls", "proxy"])
def test_behind_tls_cookies_are_secure_and_no_neighbour_can_plant_one(house: House, how: str) -> None:
    if how == "tls":
        door = opened(house.services(), SAFE_ADDRESS)
    else:
        door = opened(house.services(public_url=ELSEWHERE), ADDRESS, **{"X-Forwarded-Proto": "https"})
    begun = door.client.get("/sign-in", follow_redirects=False)
    [(name, line)] = cookies(begun).items()
    assert name == f"__Host-{web.NOTE}"
    assert "secure" in line and "path=/;" in line and "domain" not in line
    came = Account().go(begun.headers["location"])
    # A plain name, as a server beside this one could set it, is not looked at.
    planted = {"Cookie": f"{web.NOTE}={begun.cookies[name]}"}
    other = opened(door.services, str(door.client.base_url), **{"X-Forwarded-Proto": "https"})
    parts = urlsplit(came)
    answer = other.client.get(f"/sign-in/callback?{parts.query}", headers=planted)
    assert answer.status_code == 401 and not let_in(answer)
    answer = other.client.get(f"/sign-in/callback?{parts.query}", headers={"Cookie": f"{name}={begun.cookies[name]}"})
    assert answer.status_code == 200
    assert "secure" in cookies(answer)[COOKIE]


def test_the_address_that_people_use_is_the_one_that_the_provider_hears(house: House) -> None:
    door = opened(house.services(public_url=ELSEWHERE))
    came = Account().go(door.begin())
    assert came.startswith(f"{ELSEWHERE}/sign-in/callback?")
    answer = door.client.get(f"/sign-in/callback?{urlsplit(came).query}")
    # A proxy puts the API below a path: there is the way on.
    assert answer.status_code == 200 and 'url=/exports/"' in answer.text


def test_roles_come_with_the_sign_in_and_unverified_addresses_do_not(house: House) -> None:
    for login, roles in (("olga", ["operator", "subject"]), ("adam", ["admin", "subject"])):
        door = opened(house.services())
        assert door.back(Account(login).go(door.begin())).status_code == 200
        found = door.who()
        assert (found["id"], found["roles"], found["email"]) == (login, roles, None)


def test_a_client_with_a_secret_shows_it(house: House, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    door = opened(house.services(oidc_client_id="confidential", oidc_client_secret_file=file))
    assert door.back(Account().go(door.begin())).status_code == 200
    assert door.who()["id"] == "anna"
    file.write_text("another\n")
    wrong = opened(door.services)
    answer = wrong.back(Account().go(wrong.begin()))
    assert (answer.status_code, let_in(answer)) == (503, False)
    assert "EXPORT_PIPELINE_OIDC_CLIENT_ID" in answer.text
    assert "another" not in answer.text and SECRET not in answer.text
    file.chmod(0o644)
    answer = wrong.back(Account().go(wrong.begin()))
    assert (answer.status_code, let_in(answer)) == (503, False)


def test_whoever_signs_in_again_proves_it(house: House) -> None:
    account, door = Account(), opened(house.services())
    door.back(account.go(door.begin()))
    assert account.asked == ["login", "consent"]
    door.back(account.go(door.begin()))
    assert account.asked == ["login", "consent"]  # the provider knew them
    answer = door.back(account.go(door.begin("?again&to=/x")))
    assert account.asked == ["login", "consent", "login"]
    assert answer.status_code == 200 and "url=/x" in answer.text
    assert abs(door.who()["auth_time"] - datetime.now(UTC).timestamp()) < 300


def test_a_provider_that_did_not_ask_again_is_not_believed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_flow, "LEEWAY_S", -1000)  # as if the last proof were older than the question
    refused(door, door.back(Account().go(door.begin("?again"))), "stale_sign_in")


def test_the_api_and_the_dagster_ui_let_in_whoever_signed_in(house: House, ports: dict[str, int]) -> None:
    """Over real HTTP, each at its own address."""
    for login, as_what in (("olga", "looks"), ("adam", "changes")):
        account = Account(login)
        ui, page = f"http://127.0.0.1:{ports['ui']}", {"Accept": "text/html"}
        with httpx.Client(headers={"User-Agent": AGENT}, timeout=30) as browser:
            stranger = browser.get(f"{ui}/runs?tag=x", headers=page)
            assert stranger.status_code == 401
            way = re.search(r'href="(/sign-in\?to=[^"]+)"', stranger.text)
            assert way and way[1] == "/sign-in?to=%2Fruns%3Ftag%3Dx"
            came = account.go(browser.get(f"{ui}{way[1]}").headers["location"])
            assert 'url=/runs?tag=x"' in browser.get(came).text
            assert browser.get(f"{ui}/runs?tag=x", headers=page).text == as_what
            browser.cookies.clear()
            api = f"http://127.0.0.1:{ports['api']}"
            assert browser.get(f"{api}/api/exports").status_code == 401
            came = account.go(browser.get(f"{api}/sign-in").headers["location"])
            assert browser.get(came).status_code == 200
            assert browser.get(f"{api}/api/exports").json() == {"exports": [], "count": 0, "next_cursor": None}
            # A page of somebody else's changes nothing by this cookie.
            deleted = browser.delete(f"{api}/api/exports/nothing", headers={"Origin": "https://evil.example"})
            assert deleted.status_code == 401
            deleted = browser.delete(f"{api}/api/exports/nothing", headers={"Origin": api})
            assert deleted.status_code == 404


# --- what lets nobody in


def test_what_was_not_begun_here_does_not_count(door: Door, house: House) -> None:
    """Somebody's own code in another's browser would sign that one in as them."""
    attacker = opened(house.services())
    came = Account("adam").go(attacker.begin())
    refused(door, door.back(came), "sign_in_state")
    door.begin()
    refused(door, door.back(came), "sign_in_state")
    # Untouched by all this, it counts where it was begun.
    assert attacker.back(came).status_code == 200


@pytest.mark.parametrize("change", ["", "&state=", "&state=x", "&state=%ff", "&state=%00"])
def test_a_code_with_another_state_does_not_count(door: Door, change: str) -> None:
    came = urlsplit(Account().go(door.begin()))
    code = parse_qs(came.query)["code"][0]
    refused(door, door.back(f"{came.path}?code={code}{change}"), "sign_in_state")


def test_a_note_that_is_old_or_something_else_does_not_count(door: Door) -> None:
    issuer = wiring.Issuer(wiring.token_key_file(door.services.settings))
    kept = {"state": "x", "nonce": "n", "verifier": "v", "redirect_uri": "r", "to": "/"}
    somebody = Principal(id="anna", roles=frozenset())
    good = issuer.note(kept, lifetime=timedelta(minutes=1))
    for note in (
        issuer.note(kept, lifetime=timedelta(minutes=-2)),
        issuer.issue(somebody),
        door.services.gatekeeper.open_session(somebody),
        good[:-2] + ("AA" if not good.endswith("AA") else "BB"),
        "x",
        "é",
    ):
        cookie = f"{web.NOTE}={note}".encode()
        answer = door.client.get("/sign-in/callback?code=c&state=x", headers={b"Cookie": cookie})
        refused(door, answer, "sign_in_state")
    # A note is no session and no token.
    assert door.client.get("/who", headers={"Cookie": f"{COOKIE}={good}"}).json() == {"reason": "missing_claim"}
    assert door.client.get("/who", headers={"Authorization": f"Bearer {good}"}).status_code == 401


def test_a_code_that_somebody_else_got_is_of_no_use(door: Door) -> None:
    """Without what this browser keeps, the provider does not take it: that is PKCE."""
    came = Account().go(door.begin())
    door.change_note(verifier="another-verifier-of-at-least-forty-three-characters")
    refused(door, door.back(came), "code_refused")


def test_an_answer_to_another_sign_in_does_not_count(door: Door) -> None:
    came = Account().go(door.begin())
    door.change_note(nonce="another")
    refused(door, door.back(came), "wrong_nonce")


def test_a_code_counts_once(door: Door) -> None:
    came = Account().go(door.begin())
    note = door.note()
    assert let_in(door.back(came))
    again = opened(door.services)
    refused(again, again.back(came), "sign_in_state")
    again.client.cookies.set(web.NOTE, note or "", domain="exports.example")
    refused(again, again.back(came), "code_refused")


@pytest.mark.parametrize("code", ["", "&code=", "&code=nonsense", "&code=" + "a" * 5000])
def test_a_code_of_nobody_does_not_count(door: Door, code: str) -> None:
    state = parse_qs(urlsplit(door.begin()).query)["state"][0]
    named = quote(door.services.settings.oidc_issuer or "", safe="")
    answer = door.back(f"/sign-in/callback?state={state}&iss={named}{code}")
    refused(door, answer, "code_refused" if "nonsense" in code else "malformed")


def test_whoever_changes_their_mind_is_not_in(door: Door) -> None:
    came = Account().go(door.begin(), abort=True)
    assert "error=access_denied" in came
    answer = door.back(came)
    refused(door, answer, "provider_refused")
    assert "End-User" not in answer.text and 'href="/sign-in"' in answer.text


def test_an_answer_of_another_provider_does_not_count(door: Door) -> None:
    came = Account().go(door.begin())
    assert "iss=" in came
    refused(door, door.back(re.sub(r"iss=[^&]+", "iss=https%3A%2F%2Felsewhere.example", came)), "wrong_issuer")


def test_a_provider_that_signs_its_answers_with_its_name_always_does(door: Door) -> None:
    came = Account().go(door.begin())
    refused(door, door.back(re.sub(r"&?iss=[^&]+", "", came)), "wrong_issuer")


def test_only_the_last_of_two_tabs_goes_on(door: Door) -> None:
    account = Account()
    first = account.go(door.begin())
    second = door.begin()
    refused(door, door.back(first), "sign_in_state")
    door.begin()
    assert second  # its note is gone, too: one browser, one sign-in at a time
    assert let_in(door.back(account.go(door.begin())))


def test_what_a_browser_had_before_is_of_no_use_afterwards(door: Door) -> None:
    """Nobody can give a browser a session and have its person sign in to it."""
    planted = door.services.gatekeeper.open_session(Principal(id="adam", roles=frozenset({Role.ADMIN})))
    door.client.cookies.set(COOKIE, planted, domain="exports.example")
    answer = door.back(Account().go(door.begin()))
    assert let_in(answer) and answer.cookies[COOKIE] != planted
    assert door.who()["id"] == "anna"
    other = opened(door.services)
    assert let_in(other.back(Account().go(other.begin())))
    assert other.client.cookies[COOKIE] != door.client.cookies[COOKIE]


@pytest.mark.parametrize(
    "to",
    [
        "https://evil.example",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "/x\\y",
        "\\\\evil.example",
        "/\t/evil.example",
        "\t//evil.example",
        "/\n/evil.example",
        " /x",
        "javascript:alert(1)",
        "evil.example",
        "//[",
        "/é",
        "/" + "a" * 1001,
        "",
    ],
)
def test_only_paths_of_this_server_are_gone_to(door: Door, to: str) -> None:
    answer = door.back(Account().go(door.begin("?to=" + quote(to, safe=""))))
    assert answer.status_code == 200
    assert re.findall(r'(?:href="|url=)([^"]*)"', answer.text) == ["/", "/"]


def test_a_path_is_written_as_text(door: Door) -> None:
    answer = door.back(Account().go(door.begin("?to=" + quote("/\"><script>'", safe=""))))
    assert "<script>" not in answer.text and 'url=/&quot;&gt;&lt;script&gt;&#x27;"' in answer.text


@pytest.mark.parametrize("host", ["", "a b", "x/../y", "exports.example@evil.example", "evil.example#", "a:b:c"])
def test_an_odd_name_of_this_server_is_told_to_nobody(door: Door, host: str) -> None:
    answer = door.client.get("/sign-in", headers={"Host": host}, follow_redirects=False)
    assert answer.status_code == 401
    assert "location" not in answer.headers


def test_looking_begins_nothing(door: Door) -> None:
    assert door.client.head("/sign-in", follow_redirects=False).status_code == 200
    assert door.client.head("/sign-in/callback?code=x&state=y").status_code == 401
    assert door.note() is None


# --- tokens of the provider do not stand in for each other


def tokens(door: Door, house: House, login: str) -> tuple[Any, Any]:
    """What the provider gives for a code, and what the browser kept meanwhile."""
    came = Account(login).go(door.begin())
    kept = wiring.Issuer(wiring.token_key_file(house.settings)).read_note(door.note() or "")
    form = {
        "grant_type": "authorization_code",
        "code": parse_qs(urlsplit(came).query)["code"][0],
        "client_id": "public",
        "redirect_uri": kept["redirect_uri"],
        "code_verifier": kept["verifier"],
    }
    return httpx.post(f"{house.provider.issuer}/token", data=form).json(), kept


def test_id_tokens_and_access_tokens_do_not_stand_in_for_each_other(door: Door, house: House) -> None:
    got, kept = tokens(door, house, "olga")
    verifier = Verifier(Provider(issuer=house.provider.issuer, audience=AUDIENCE))
    found = verifier.verify_id_token(got["id_token"], client_id="public", nonce=kept["nonce"])
    assert (found.id, found.roles) == ("olga", {Role.SUBJECT, Role.OPERATOR})
    assert verifier.verify(got["access_token"]).id == "olga"
    for token, client_id, reason in (
        (got["access_token"], "public", "wrong_audience"),
        (got["access_token"], AUDIENCE, "wrong_audience"),
        (got["id_token"], "another", "wrong_audience"),
    ):
        with pytest.raises(NotAuthenticated) as not_in:
            verifier.verify_id_token(token, client_id=client_id, nonce=kept["nonce"])
        assert not_in.value.reason in {reason, "wrong_nonce"}
    for nonce in ("", "x"):
        with pytest.raises(NotAuthenticated):
            verifier.verify_id_token(got["id_token"], client_id="public", nonce=nonce)
    answer = door.client.get("/who", headers={"Authorization": f"Bearer {got['id_token']}"})
    assert answer.json() == {"reason": "wrong_audience"}


# --- signing out


def test_signing_out_ends_the_session_of_this_browser(door: Door, house: House) -> None:
    door.back(Account().go(door.begin()))
    assert door.who()["id"] == "anna"
    page = door.client.get("/sign-out", headers={"Accept": "text/html"})
    assert page.status_code == 200 and '<form method="post" action="/sign-out">' in page.text
    # With the policy of the other pages a browser would send this form with `Origin: null`.
    assert page.headers["referrer-policy"] == "same-origin"
    assert door.who()["id"] == "anna"  # looking signs nobody out
    evil = door.client.post("/sign-out", headers={"Accept": "text/html", "Origin": "https://evil.example"})
    assert evil.status_code == 403 and door.who()["id"] == "anna"
    gone = door.client.post("/sign-out", headers={"Accept": "text/html", "Origin": ADDRESS})
    assert gone.status_code == 200 and f'href="{house.provider.issuer}/session/end"' in gone.text
    assert door.who() == {"reason": ""}
    assert door.client.post("/sign-out").status_code == 204


def test_a_session_that_began_at_the_provider_ends_also_where_it_was_copied_to(door: Door) -> None:
    door.back(Account().go(door.begin()))
    thief = opened(door.services)
    thief.client.cookies.set(COOKIE, door.client.cookies[COOKIE], domain="exports.example")
    assert thief.who()["id"] == "anna"
    door.client.post("/sign-out", headers={"Origin": ADDRESS})
    assert thief.who() == {"reason": "revoked"}
    assert door.trail("sign_in_refused")[-1] == ("unknown", "192.0.2.7", AGENT, "revoked")
    assert door.trail("signed_out")[-1][:3] == ("anna", "192.0.2.7", AGENT)


def test_whoever_signs_in_at_the_provider_after_everything_ended_is_in(door: Door, house: House) -> None:
    account, bearer = Account("olga"), tokens(door, house, "olga")[0]["access_token"]
    shown = {"Authorization": f"Bearer {bearer}"}
    for way in (lambda: door.back(account.go(door.begin())), lambda: door.client.post("/sign-in", headers=shown)):
        for _ in range(2):
            assert let_in(way())
            assert door.who()["id"] == "olga"
            door.services.gatekeeper.sign_out_everywhere("olga", Actor(id="ops"))
            assert door.who() == {"reason": "revoked"}


# --- where it is not set up, or does not work


def test_without_a_client_id_nothing_of_this_is_there(house: House) -> None:
    door = opened(house.services(oidc_client_id=None))
    page = door.client.get("/sign-in", follow_redirects=False)
    assert page.status_code == 401 and "Sign in with your account" not in page.text
    assert door.client.get("/sign-in/callback?code=x&state=y").status_code == 401
    with pytest.raises(NotAuthenticated):
        door.services.gatekeeper.begin(redirect_uri="x", to="/")
    assert door.services.gatekeeper.provider_sign_out() is None


def test_sign_in_links_count_beside_it(house: House) -> None:
    door = opened(house.services(local_tokens=True))
    page = web.closed(door.services.gatekeeper, "/x").body.decode()
    assert "/sign-in?to=%2Fx" in page and "export-pipeline sign-in" in page
    link = door.services.gatekeeper.link(ADDRESS, Principal(id="eva", roles=frozenset({Role.AUDITOR})))
    assert door.client.get(link.removeprefix(ADDRESS)).status_code == 200
    assert door.who()["id"] == "eva"
    assert "export-pipeline sign-in" not in web.closed(opened(house.services()).services.gatekeeper).body.decode()


def test_a_provider_that_is_away_is_not_the_persons_fault(house: House, closed_port: int) -> None:
    door = opened(house.services(oidc_issuer=f"http://127.0.0.1:{closed_port}"))
    answer = door.client.get("/sign-in", follow_redirects=False)
    assert (answer.status_code, "location" in answer.headers) == (503, False)


class Odd:
    """A provider of our own making, whose token endpoint does what a test wants."""

    def __init__(self, about: dict[str, Any], answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.asked: list[tuple[str, str]] = []
        odd = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                odd.asked.append(("GET", self.path))
                keys = {"keys": [{name: KEY[name] for name in ("kty", "n", "e", "kid")}]}
                body = json.dumps(keys if self.path == "/keys" else odd.about).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                odd.asked.append(("POST", self.path))
                self.rfile.read(int(self.headers["Content-Length"]))
                answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        named = {"authorization_endpoint": "auth", "token_endpoint": "token", "jwks_uri": "keys"}
        self.about = {"issuer": self.issuer} | {name: f"{self.issuer}/{path}" for name, path in named.items()} | about
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Odd:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def says(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        says(500, b"no"),
        says(200, b"<html>"),
        says(200, b"[]"),
        says(200, b"{}"),
        says(200, b'{"id_token": 7}'),
        says(400, b'{"error": "invalid_request"}'),
        says(400, b'{"error": "unauthorized_client"}'),
        says(400, b"[]"),
        says(302, b"", Location="/elsewhere"),
        says(307, b"", Location="/elsewhere"),
    ],
)
def test_a_provider_that_answers_nonsense_lets_nobody_in(
    house: House, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    with Odd({}, answer) as odd:
        door = opened(house.services(oidc_issuer=odd.issuer))
        state = parse_qs(urlsplit(door.begin()).query)["state"][0]
        came = door.back(f"/sign-in/callback?code=c&state={state}")
        assert (came.status_code, let_in(came), door.note()) == (503, False, None)
        # A secret and a code go to one address alone.
        assert [path for method, path in odd.asked if method == "POST"] == ["/token"]
        assert ("GET", "/elsewhere") not in odd.asked


def test_a_refused_code_is_a_refusal(house: House) -> None:
    with Odd({}, says(400, b'{"error": "invalid_grant", "error_description": "anna"}')) as odd:
        door = opened(house.services(oidc_issuer=odd.issuer))
        state = parse_qs(urlsplit(door.begin()).query)["state"][0]
        answer = door.back(f"/sign-in/callback?code=c&state={state}")
        refused(door, answer, "code_refused")
        assert "anna" not in answer.text


def test_an_id_token_of_another_key_lets_nobody_in(house: House) -> None:
    other = jwt.PyJWK(rsa_key("first"))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        says(200, json.dumps({"id_token": token}).encode())(handler)

    with Odd({}, answer) as odd:
        door = opened(house.services(oidc_issuer=odd.issuer))
        asked = parse_qs(urlsplit(door.begin()).query)
        now = datetime.now(UTC)
        claims = {"iss": odd.issuer, "aud": "public", "sub": "adam", "iat": now, "exp": now + timedelta(minutes=5)}
        claims |= {"nonce": asked["nonce"][0], "roles": ["admin"]}
        token = jwt.encode(claims, other.key, algorithm="RS256", headers={"kid": "first"})
        refused(door, door.back(f"/sign-in/callback?code=c&state={asked['state'][0]}"), "bad_signature")
        # The same by its own key would do, but not for two audiences of which we are not the one that asked.
        for changed, reason in (({}, None), ({"aud": ["public", "x"], "azp": "x"}, "wrong_audience")):
            asked = parse_qs(urlsplit(door.begin()).query)
            mine = claims | {"nonce": asked["nonce"][0]} | changed
            token = jwt.encode(mine, jwt.PyJWK(KEY).key, algorithm="RS256", headers={"kid": "first"})
            came = door.back(f"/sign-in/callback?code=c&state={asked['state'][0]}")
            if reason is None:
                assert let_in(came)
                door.client.cookies.clear()
            else:
                refused(door, came, reason)


@pytest.mark.parametrize(
    "about",
    [
        {"authorization_endpoint": None},
        {"authorization_endpoint": "http://evil.example/auth"},
        {"token_endpoint": "http://evil.example/token"},
        {"token_endpoint": "file:///etc/passwd"},
    ],
    ids=str,
)
def test_endpoints_that_cannot_be_trusted_are_not_gone_to(house: House, about: dict[str, Any]) -> None:
    with Odd(about, says(200, b"{}")) as odd:
        services = house.services(oidc_issuer=odd.issuer)
        with pytest.raises(IdentityProviderUnavailable):
            services.gatekeeper.require_provider()
        door = opened(services)
        answer = door.client.get("/sign-in", follow_redirects=False)
        if answer.status_code == 303:
            state = parse_qs(urlsplit(answer.headers["location"]).query)["state"][0]
            answer = door.back(f"/sign-in/callback?code=c&state={state}")
        assert (answer.status_code, let_in(answer)) == (503, False)


def test_a_slow_provider_holds_up_nobody_else(house: House) -> None:
    """Strangers can make us ask it: those calls have threads of their own, and few."""
    release, arrived = threading.Event(), threading.Semaphore(0)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        arrived.release()
        release.wait(30)
        says(400, b'{"error": "invalid_grant"}')(handler)

    with Odd({}, answer) as odd, served(house.services(oidc_issuer=odd.issuer, local_tokens=True)) as port:
        base = f"http://127.0.0.1:{port}"

        def come(_: int) -> int:
            with httpx.Client(timeout=60) as browser:
                state = parse_qs(urlsplit(browser.get(f"{base}/sign-in").headers["location"]).query)["state"][0]
                return browser.get(f"{base}/sign-in/callback?code=c&state={state}").status_code

        with ThreadPoolExecutor(50) as pool:
            # More than there are threads for everything else.
            coming = pool.map(come, range(50))
            assert all(arrived.acquire(timeout=30) for _ in range(8))
            assert httpx.get(f"{base}/sign-in?code=x", timeout=10).status_code == 401
            assert httpx.get(f"{base}/ready", timeout=10).status_code == 200
            assert not arrived.acquire(blocking=False)
            release.set()
            assert set(coming) == {401}


@pytest.mark.parametrize("methods", [["client_secret_post"], ["client_secret_basic", "client_secret_post"], None])
def test_the_secret_is_shown_as_the_provider_wants_it(house: House, tmp_path: Path, methods: list[str] | None) -> None:
    file, seen = tmp_path / "secret", []
    file.write_text(SECRET)
    file.chmod(0o600)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        says(400, b'{"error": "invalid_grant"}')(handler)

    about = {} if methods is None else {"token_endpoint_auth_methods_supported": methods}
    with Odd(about, answer) as odd:
        door = opened(house.services(oidc_issuer=odd.issuer, oidc_client_secret_file=file))
        state = parse_qs(urlsplit(door.begin()).query)["state"][0]
        door.back(f"/sign-in/callback?code=c&state={state}")
    assert [shown is None for shown in seen] == [methods == ["client_secret_post"]]


def test_when_the_trail_cannot_be_written_nobody_is_in(door: Door) -> None:
    came = Account().go(door.begin())
    with psycopg.connect(door.services.database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE export_pipeline.export_audit_logs RENAME TO away")
        try:
            with pytest.raises(psycopg.Error):
                door.back(came)
        finally:
            connection.execute("ALTER TABLE export_pipeline.away RENAME TO export_audit_logs")
    assert door.who() == {"reason": ""}


# --- what operators see


def test_the_doctor_and_up_tell_of_it(house: House, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    services = house.services()
    assert "sign-ins there by browser" in doctor._sign_in(services).message
    print_link(services, ADDRESS)
    assert f"{ADDRESS}/sign-in" in capsys.readouterr().out
    with pytest.raises(KeyUnusable):
        doctor._sign_in(house.services(oidc_client_secret_file=tmp_path / "absent"))


def test_a_client_needs_a_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPORT_PIPELINE_OIDC_CLIENT_ID", "exports")
    with pytest.raises(ConfigurationError, match=r"EXPORT_PIPELINE_OIDC_CLIENT_ID.*EXPORT_PIPELINE_OIDC_ISSUER"):
        load()
    monkeypatch.setenv("EXPORT_PIPELINE_OIDC_ISSUER", "https://id.example.org")
    monkeypatch.setenv("EXPORT_PIPELINE_OIDC_AUDIENCE", "https://exports.example.org")
    assert load().oidc_client_id == "exports"


def test_a_note_prints_nothing() -> None:
    begun = code_flow.Begun(url="https://id.example.org", note="secret")
    assert "secret" not in repr(begun)
    assert "anna" not in repr(Asking(changes=False, headers={"cookie": "anna"}))
