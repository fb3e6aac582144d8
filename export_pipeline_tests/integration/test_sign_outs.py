"""What has ended lets nobody in any more: sessions, tokens and links, at the API and before the Dagster UI."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from export_pipeline import wiring
from export_pipeline.api.app import create_app
from export_pipeline.db.pool import Database
from export_pipeline.db.sign_in import SignInStore
from export_pipeline.db.sign_outs import SignOutStore
from export_pipeline.defs.ui import gated
from export_pipeline.errors import DatabaseUnavailable, InvalidRequest, NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.models import Actor
from export_pipeline.settings import Settings
from export_pipeline.sign_in.gatekeeper import COOKIE, Asking, Gatekeeper
from export_pipeline.sign_in.recent import LIFETIME_S
from export_pipeline.sign_in.tokens import ISSUER, LONGEST, Audience, Issuer
from export_pipeline.vault import token_keys

ANNA = Principal(id="anna", roles=frozenset({Role.SUBJECT, Role.OPERATOR}))
BEN = Principal(id="ben", roles=frozenset({Role.OPERATOR}))
OPS = Actor(id="ops")
HERE = "http://exports.example"
AGENT = "browser/1"
#: A page that an operator sees, by door.
PAGES = {"api": "/api/exports", "ui": "/runs"}
LATER = LIFETIME_S + 0.001


@pytest.fixture
def chosen(settings: Settings) -> Settings:
    return settings.model_copy(update={"local_tokens": True})


@pytest.fixture
def services(chosen: Settings) -> Iterator[wiring.Services]:
    with wiring.connect(chosen) as made:
        yield made


@pytest.fixture
def gatekeeper(services: wiring.Services) -> Gatekeeper:
    return services.gatekeeper


class Clock:
    """Of a process, for a test to move."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Process:
    """Another process of the installation: it remembers what it checked, and nothing of what others did."""

    clock: Clock
    gatekeeper: Gatekeeper

    def later(self) -> None:
        """It looks again from now on."""
        self.clock.now += LATER


@pytest.fixture
def other(services: wiring.Services) -> Process:
    clock = Clock()
    made = Gatekeeper(
        issuer=Issuer(wiring.token_key_file(services.settings)),
        store=SignInStore(services.database),
        sign_outs=SignOutStore(services.database),
        local=True,
        clock=clock,
    )
    return Process(clock=clock, gatekeeper=made)


async def dagster(scope: Any, receive: Any, send: Any) -> None:
    """Stands for Dagster's application: an echo, as long as somebody is there."""
    if scope["type"] != "websocket":
        return await PlainTextResponse("runs")(scope, receive, send)
    socket = WebSocket(scope, receive, send)
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.send_text(await socket.receive_text())


@pytest.fixture(params=PAGES)
def door(request: pytest.FixtureRequest, services: wiring.Services) -> Iterator[Callable[[], Door]]:
    """Browsers before the API, or before the gate of the Dagster UI."""
    app = create_app(services) if request.param == "api" else gated(dagster, services.gatekeeper)
    with ExitStack() as held:
        if request.param == "api":
            held.enter_context(TestClient(app))  # runs its lifespan

        def browser() -> Door:
            client = TestClient(app, base_url=HERE, client=("192.0.2.7", 1), headers={"User-Agent": AGENT})
            return Door(client=client, page=PAGES[request.param])

        yield browser


@dataclass
class Door:
    """A browser."""

    client: TestClient
    page: str

    def looks(self) -> int:
        """What it gets to see."""
        return self.client.get(self.page).status_code

    def signs_in(self, token: str) -> str:
        """Gives the session that its cookie holds."""
        answer = self.client.post("/sign-in", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 204, answer.text
        return self.client.cookies[COOKIE]

    def follows(self, link: str) -> str:
        answer = self.client.get(link.removeprefix(HERE))
        assert answer.status_code == 200, answer.text
        return self.client.cookies[COOKIE]

    def has(self, session: str) -> Door:
        """It gets a copy of the cookie."""
        self.client.cookies.set(COOKIE, session, domain="exports.example")
        return self

    def signs_out(self, **headers: str) -> httpx.Response:
        return self.client.post("/sign-out", headers={"Origin": HERE, **headers})


def trail(services: wiring.Services, *actions: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(services.database_url) as connection:
        return connection.execute(
            "SELECT action, actor, user_id, ip_address, user_agent, detail FROM export_pipeline.export_audit_logs"
            " WHERE action = ANY(%s) ORDER BY log_id",
            [list(actions)],
        ).fetchall()


def count(services: wiring.Services, table: str) -> int:
    with psycopg.connect(services.database_url) as connection:
        row = connection.execute(f"SELECT count(*) FROM export_pipeline.{table}".encode()).fetchone()
    assert row
    return int(row[0])


def by_cookie(session: str) -> Asking:
    return Asking(changes=False, headers={"cookie": f"{COOKIE}={session}"})


def by_token(token: str) -> Asking:
    return Asking(changes=True, headers={"authorization": f"Bearer {token}"})


def is_in(gatekeeper: Gatekeeper, asked: Asking) -> bool:
    """As the doors do it: what was checked a moment ago is not checked again."""
    if gatekeeper.recall(asked) is not None:
        return True
    try:
        return bool(gatekeeper.admit(asked).id)
    except NotAuthenticated as refused:
        assert refused.reason == "revoked"
        return False


def token(gatekeeper: Gatekeeper, principal: Principal = ANNA) -> str:
    return gatekeeper.issue(principal, timedelta(hours=1))


# --- signing out


def test_a_copied_cookie_does_not_outlive_the_sign_out(
    services: wiring.Services, gatekeeper: Gatekeeper, door: Callable[[], Door]
) -> None:
    browser = door()
    session = browser.follows(gatekeeper.link(HERE, ANNA))
    thief = door().has(session)
    assert (browser.looks(), thief.looks()) == (200, 200)  # so that it is remembered
    answer = browser.signs_out()
    assert answer.status_code == 204 and f'{COOKIE}=""' in answer.headers["set-cookie"]
    assert (browser.looks(), thief.looks()) == (401, 401)
    token_id = Issuer(wiring.token_key_file(services.settings)).read(session, Audience.SESSION).token_id
    assert trail(services, "signed_out", "sign_in_refused") == [
        ("signed_out", "anna", "anna", "192.0.2.7", AGENT, f"token {token_id}"),
        ("sign_in_refused", "unknown", None, "192.0.2.7", AGENT, "revoked"),
    ]


def test_signing_out_again_or_with_nothing_that_counts_is_harmless(
    services: wiring.Services, gatekeeper: Gatekeeper, door: Callable[[], Door]
) -> None:
    browser = door()
    session = browser.signs_in(token(gatekeeper))
    assert browser.signs_out().status_code == 204
    issuer = Issuer(wiring.token_key_file(services.settings))
    old = issuer.issue(ANNA, audience=Audience.SESSION, lifetime=timedelta(hours=-1))
    bearer = token(gatekeeper)
    for dead in (session, old, bearer, "nonsense", "a" * 20_000):
        assert door().has(dead).signs_out().status_code == 204
    assert door().signs_out().status_code == 204
    assert is_in(gatekeeper, by_token(bearer))
    assert len(trail(services, "signed_out")) == count(services, "export_revoked_tokens") == 1


def test_what_ended_with_everything_else_writes_nothing_more(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    session = gatekeeper.open_session(ANNA)
    gatekeeper.sign_out_everywhere("anna", OPS)
    gatekeeper.sign_out(by_cookie(session))
    assert count(services, "export_revoked_tokens") == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{HERE}:8081"])
def test_a_page_of_somebody_else_signs_nobody_out(
    gatekeeper: Gatekeeper, door: Callable[[], Door], origin: str
) -> None:
    browser = door()
    browser.signs_in(token(gatekeeper))
    assert browser.signs_out(Origin=origin).status_code == 403
    assert browser.client.get("/sign-out").status_code == 200
    assert browser.client.head("/sign-out").status_code == 200
    assert browser.looks() == 200


def test_other_sessions_of_the_person_stay(gatekeeper: Gatekeeper, door: Callable[[], Door]) -> None:
    bearer = token(gatekeeper)
    first, second = door(), door()
    first.signs_in(bearer)
    second.signs_in(bearer)
    first.signs_out()
    assert (first.looks(), second.looks()) == (401, 200)
    assert is_in(gatekeeper, by_token(bearer))


def test_who_signs_in_again_is_in(gatekeeper: Gatekeeper, door: Callable[[], Door]) -> None:
    browser = door()
    for _ in range(3):
        browser.follows(gatekeeper.link(HERE, ANNA))
        assert browser.looks() == 200
        browser.signs_out()
        assert browser.looks() == 401


def test_a_cookie_that_a_neighbour_planted_does_not_shield_the_session(gatekeeper: Gatekeeper) -> None:
    session, planted = gatekeeper.open_session(ANNA), gatekeeper.open_session(BEN)
    header = "; ".join(f"{COOKIE}={value}" for value in ("", "x", "ä", planted, session))
    gatekeeper.sign_out(Asking(changes=True, headers={"cookie": header}))
    assert not is_in(gatekeeper, by_cookie(session))
    assert not is_in(gatekeeper, by_cookie(planted))


def test_another_process_notices_when_it_looks_again(gatekeeper: Gatekeeper, other: Process) -> None:
    session, bearer = gatekeeper.open_session(ANNA), token(gatekeeper)
    assert is_in(other.gatekeeper, by_cookie(session)) and is_in(other.gatekeeper, by_token(bearer))
    gatekeeper.sign_out(by_cookie(session))
    gatekeeper.revoke(bearer, OPS)
    assert not is_in(gatekeeper, by_cookie(session))
    assert is_in(other.gatekeeper, by_cookie(session)) and is_in(other.gatekeeper, by_token(bearer))
    other.later()
    assert not is_in(other.gatekeeper, by_cookie(session))
    assert not is_in(other.gatekeeper, by_token(bearer))


def test_of_many_who_sign_out_at_once_one_is_written(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    session, start = gatekeeper.open_session(ANNA), threading.Barrier(4)

    def end(_: int) -> None:
        start.wait()
        gatekeeper.sign_out(by_cookie(session))
        gatekeeper.sign_out_everywhere("anna", OPS)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(end, range(4)))
    assert [row[5] for row in trail(services, "signed_out")].count("everywhere") == 4
    assert count(services, "export_revoked_tokens") <= 1
    assert is_in(gatekeeper, by_token(token(gatekeeper)))


# --- one token


def test_who_made_a_token_for_whom_stands_in_the_trail(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    made = gatekeeper.issue(Principal(id="anna", roles=frozenset({Role.ADMIN, Role.SUBJECT})), timedelta(hours=1), OPS)
    [(action, actor, user_id, *_, detail)] = trail(services, "token_issued")
    assert (action, actor, user_id) == ("token_issued", "ops", "anna")
    ended = gatekeeper.revoke(made, OPS)
    until = f"{ended.expires_at:%Y-%m-%d %H:%M}Z"
    assert detail == f"token {ended.token_id}; roles: admin, subject; until {until}"
    assert made not in detail
    # The same words tell of its end.
    assert trail(services, "token_revoked")[0][5] in detail


def test_a_token_that_leaked_ends_with_the_sessions_that_it_began(
    services: wiring.Services, gatekeeper: Gatekeeper, other: Process, door: Callable[[], Door]
) -> None:
    leaked, mine = token(gatekeeper), token(gatekeeper)
    thief, before = door(), door()
    thief.signs_in(leaked)
    before.signs_in(mine)
    assert is_in(other.gatekeeper, by_token(leaked))
    ended = gatekeeper.revoke(leaked, OPS)
    # Where it is still remembered, it begins one more.
    late = other.gatekeeper.open_session(other.gatekeeper.recall(by_token(leaked)))
    assert thief.client.post("/sign-in", headers={"Authorization": f"Bearer {leaked}"}).status_code == 401
    other.later()
    for gate in (gatekeeper, other.gatekeeper):
        assert not is_in(gate, by_token(leaked))
        assert not is_in(gate, by_cookie(late))
    thieves = door().has(thief.client.cookies[COOKIE])
    assert (thieves.looks(), before.looks(), is_in(gatekeeper, by_token(mine))) == (401, 200, True)
    gatekeeper.revoke(leaked, OPS)  # again: harmless
    assert trail(services, "token_revoked") == [
        ("token_revoked", "ops", "anna", None, None, f"token {ended.token_id}"),
    ]


def test_a_copied_cookie_can_be_shown_to_be_ended(gatekeeper: Gatekeeper) -> None:
    session, bearer = gatekeeper.open_session(ANNA), token(gatekeeper)
    assert gatekeeper.revoke(session, OPS).principal.id == "anna"
    assert not is_in(gatekeeper, by_cookie(session))
    assert is_in(gatekeeper, by_token(bearer))


def test_an_expired_token_ends_for_the_sessions_that_it_began(services: wiring.Services, other: Process) -> None:
    issuer = Issuer(wiring.token_key_file(services.settings))
    expired = issuer.issue(ANNA, lifetime=timedelta(minutes=-5))
    began = issuer.read(expired, Audience.BEARER, expired_too=True).principal
    session = other.gatekeeper.open_session(began)
    assert is_in(other.gatekeeper, by_cookie(session))
    other.gatekeeper.revoke(expired, OPS)
    other.later()
    assert not is_in(other.gatekeeper, by_cookie(session))


@pytest.mark.parametrize("what", ["", "nonsense", "a.b.c", "é", "note", "provider", "other key"])
def test_what_is_none_of_ours_is_not_ended(
    services: wiring.Services, gatekeeper: Gatekeeper, what: str, tmp_path: Any
) -> None:
    shown = what
    if what == "note":
        shown = Issuer(wiring.token_key_file(services.settings)).note({"x": "y"}, lifetime=timedelta(minutes=1))
    elif what == "provider":
        shown = jwt.encode({"iss": "https://id.example", "sub": "anna"}, "k" * 32, algorithm="HS256")
    elif what == "other key":
        token_keys.create(tmp_path / "other.txt")
        shown = Issuer(tmp_path / "other.txt").issue(ANNA)
    with pytest.raises(InvalidRequest, match="no token or session") as refused:
        gatekeeper.revoke(shown, OPS)
    assert "anna" not in str(refused.value)
    assert count(services, "export_revoked_tokens") == 0


# --- a person


def test_everything_that_lets_a_person_in_ends_and_nothing_of_others(
    services: wiring.Services, gatekeeper: Gatekeeper, other: Process, door: Callable[[], Door]
) -> None:
    bearer, link = token(gatekeeper), gatekeeper.link(HERE, ANNA)
    browser, linked, ben = door(), door(), door()
    browser.signs_in(bearer)
    linked.follows(gatekeeper.link(HERE, ANNA))
    bens = token(gatekeeper, BEN)
    ben.signs_in(bens)
    bens_link = gatekeeper.link(HERE, BEN)
    sessions = [one.client.cookies[COOKIE] for one in (browser, linked)]
    assert all(is_in(other.gatekeeper, by_cookie(one)) for one in sessions)
    at = gatekeeper.sign_out_everywhere("anna", OPS)
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=10)
    other.later()
    assert not any(is_in(other.gatekeeper, by_cookie(one)) for one in sessions)
    assert not is_in(other.gatekeeper, by_token(bearer))
    assert door().client.get(link.removeprefix(HERE)).status_code == 401
    assert is_in(other.gatekeeper, by_token(bens))
    assert ben.looks() == 200
    assert door().follows(bens_link)
    [row] = trail(services, "signed_out")
    assert row == ("signed_out", "ops", "anna", None, None, "everywhere")


def test_who_signs_in_right_after_is_in_and_can_be_put_out_again(gatekeeper: Gatekeeper, other: Process) -> None:
    for _ in range(3):
        bearer = token(gatekeeper)
        session = gatekeeper.open_session(ANNA)
        code = gatekeeper.link(HERE, ANNA).partition("code=")[2]
        linked = gatekeeper.open_session(gatekeeper.redeem(code, by_cookie("")))
        exchanged = gatekeeper.open_session(gatekeeper.admit(by_token(bearer)))
        proofs = [by_token(bearer), *map(by_cookie, (session, linked, exchanged))]
        assert [is_in(other.gatekeeper, proof) for proof in proofs] == [True] * 4
        gatekeeper.sign_out_everywhere("anna", OPS)
        other.later()
        assert [is_in(other.gatekeeper, proof) for proof in proofs] == [False] * 4


def test_a_token_that_is_still_remembered_begins_no_session_that_stays(gatekeeper: Gatekeeper, other: Process) -> None:
    bearer = token(gatekeeper)
    other.gatekeeper.admit(by_token(bearer))
    gatekeeper.sign_out_everywhere("anna", OPS)
    session = other.gatekeeper.open_session(other.gatekeeper.recall(by_token(bearer)))
    assert not is_in(gatekeeper, by_cookie(session))
    assert not is_in(other.gatekeeper, by_cookie(session))


def test_a_token_from_before_this_was_known_ends_too(services: wiring.Services, other: Process) -> None:
    key = token_keys.read(wiring.token_key_file(services.settings))[0]
    now = datetime.now(UTC)
    claims = {"iss": ISSUER, "aud": Audience.SESSION.value, "sub": "anna", "roles": [], "jti": "old"}
    old = jwt.encode(
        {**claims, "iat": now, "exp": now + timedelta(hours=1)}, key.private, "EdDSA", headers={"kid": key.key_id}
    )
    assert is_in(other.gatekeeper, by_cookie(old))
    other.gatekeeper.sign_out_everywhere("anna", OPS)
    other.later()
    assert not is_in(other.gatekeeper, by_cookie(old))


@pytest.mark.parametrize("user_id", ["", " ", "a\nb", "a\0b", "\udcff", "x" * 256])
def test_who_cannot_be_is_not_signed_out(services: wiring.Services, user_id: str) -> None:
    with pytest.raises(InvalidRequest):
        services.gatekeeper.sign_out_everywhere(user_id, OPS)
    assert count(services, "export_sign_outs") == 0


def test_sessions_end_also_where_our_own_tokens_do_not_count(chosen: Settings) -> None:
    with wiring.connect(chosen.model_copy(update={"local_tokens": False})) as services:
        session = services.gatekeeper.open_session(ANNA)
        assert is_in(services.gatekeeper, by_cookie(session))
        services.gatekeeper.sign_out_everywhere("anna", OPS)
        assert not is_in(services.gatekeeper, by_cookie(session))


# --- rows


def test_rows_that_no_longer_matter_go(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    with psycopg.connect(services.database_url) as connection:
        connection.execute(
            "INSERT INTO export_pipeline.export_revoked_tokens VALUES ('old', now() - interval '1 s'),"
            " ('new', now() + interval '1 h')"
        )
        connection.execute(
            "INSERT INTO export_pipeline.export_sign_outs (user_id, expires_at)"
            " VALUES ('gone', now() - interval '1 s'), ('anna', now() - interval '1 s'),"
            " ('ben', now() + interval '1 h')"
        )
    session = gatekeeper.open_session(ANNA)
    gatekeeper.sign_out(by_cookie(session))
    for _ in range(3):
        gatekeeper.sign_out_everywhere("anna", OPS)
    with psycopg.connect(services.database_url) as connection:
        kept = connection.execute("SELECT token_id FROM export_pipeline.export_revoked_tokens").fetchall()
        people = connection.execute("SELECT user_id, expires_at - signed_out_at FROM export_pipeline.export_sign_outs")
        assert dict(people.fetchall())["anna"] > LONGEST
    assert ("new",) in kept and ("old",) not in kept and len(kept) == 2
    assert count(services, "export_sign_outs") == 2
    assert not is_in(gatekeeper, by_cookie(session))


def test_a_row_stays_as_long_as_what_it_ends_could_count(services: wiring.Services, gatekeeper: Gatekeeper) -> None:
    short, long = (gatekeeper.issue(ANNA, lifetime) for lifetime in (timedelta(minutes=5), timedelta(days=90)))
    for one, least in ((short, timedelta(hours=12)), (long, timedelta(days=90))):
        ended = gatekeeper.revoke(one, OPS)
        with psycopg.connect(services.database_url) as connection:
            row = connection.execute(
                "SELECT expires_at - now() FROM export_pipeline.export_revoked_tokens WHERE token_id = %s",
                [ended.token_id],
            ).fetchone()
        assert row and least < row[0] < least + timedelta(hours=2)


def test_nothing_lives_longer_than_what_ends_it(gatekeeper: Gatekeeper) -> None:
    with pytest.raises(InvalidRequest, match="a year"):
        gatekeeper.issue(ANNA, LONGEST + timedelta(seconds=1))


# --- a line that stays open


def test_a_websocket_ends_with_its_session(services: wiring.Services, other: Process) -> None:
    admin = Principal(id="adam", roles=frozenset({Role.ADMIN}))
    session = services.gatekeeper.open_session(admin)
    shown = {"Cookie": f"{COOKIE}={session}", "Origin": "http://testserver"}
    with TestClient(gated(dagster, other.gatekeeper)) as client:
        with client.websocket_connect("/graphql", headers=shown) as socket:
            socket.send_text("one")
            assert socket.receive_text() == "one"
            services.gatekeeper.sign_out(by_cookie(session))
            other.later()
            socket.send_text("two")
            with pytest.raises(WebSocketDisconnect) as ended:
                socket.receive_text()
        assert ended.value.code == 1008
        shown["Cookie"] = f"{COOKIE}={services.gatekeeper.open_session(admin)}"
        with client.websocket_connect("/graphql", headers=shown) as another:
            another.send_text("three")
            assert another.receive_text() == "three"


# --- while our database is away


@pytest.fixture
def cut_off(chosen: Settings, closed_port: int) -> Iterator[wiring.Services]:
    """A process with the same keys whose database does not answer."""
    database = Database(f"postgresql://nobody@127.0.0.1:{closed_port}/nothing", patience_s=0.2)
    with wiring.Services(settings=chosen, database_url=database.url, database=database, _held=ExitStack()) as made:
        yield made


@pytest.mark.parametrize("where", PAGES)
def test_while_our_database_is_away_nobody_is_in_and_nobody_out(
    services: wiring.Services, cut_off: wiring.Services, where: str
) -> None:
    session, bearer = services.gatekeeper.open_session(ANNA), token(services.gatekeeper)
    app = create_app(cut_off) if where == "api" else gated(dagster, cut_off.gatekeeper)
    browser = Door(client=TestClient(app, base_url=HERE), page=PAGES[where]).has(session)
    assert browser.looks() == 503
    shown = {"Authorization": f"Bearer {bearer}"}
    assert TestClient(app).get(PAGES[where], headers=shown).status_code == 503
    assert TestClient(app).post("/sign-in", headers=shown).status_code == 503
    answer = browser.signs_out(Accept="text/html")
    assert (answer.status_code, "set-cookie" in answer.headers) == (503, False)
    assert "Not signed out" in answer.text and "127.0.0.1" not in answer.text
    # There is nothing to end, so nothing fails.
    assert TestClient(app).post("/sign-out").status_code == 204


def test_while_our_database_is_away_nothing_ends(cut_off: wiring.Services) -> None:
    bearer = Issuer(wiring.token_key_file(cut_off.settings)).issue(ANNA)
    for end in (
        lambda: cut_off.gatekeeper.revoke(bearer, OPS),
        lambda: cut_off.gatekeeper.sign_out_everywhere("anna", OPS),
        lambda: cut_off.gatekeeper.issue(ANNA, timedelta(hours=1)),
        lambda: cut_off.gatekeeper.open_session(ANNA),
    ):
        with pytest.raises(DatabaseUnavailable):
            end()
