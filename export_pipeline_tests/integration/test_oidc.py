"""Tokens of a real OpenID Connect provider, whose keys change; and every token that must not count."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from export_pipeline.errors import IdentityProviderUnavailable, NotAuthenticated
from export_pipeline.identity import Role
from export_pipeline.sign_in import oidc
from export_pipeline.sign_in.gatekeeper import Asking, Gatekeeper
from export_pipeline.sign_in.oidc import Provider, Verifier, secure
from export_pipeline.sign_in.tokens import Issuer
from export_pipeline_tests.oidc_provider import AUDIENCE, RunningProvider, ec_key, free_port, install, rsa_key, running

CLIENTS: dict[str, dict[str, Any]] = {
    "anna": {"email": "anna@example.org", "email_verified": True, "auth_time": 1_790_000_000},
    "oscar": {"roles": ["operator", "nobody"], "email": "oscar@example.org", "email_verified": False},
    "ada": {"realm_access": {"roles": ["export-admins"]}, "https://company.example/user": "ada-7"},
}
RSA, EC, OTHER = rsa_key("first"), ec_key("curve"), rsa_key("second")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("oidc"))


@pytest.fixture(scope="module")
def provider(folder: Path) -> Iterator[RunningProvider]:
    with running(folder, port=free_port(), keys=[RSA, EC], clients=CLIENTS) as made:
        yield made


@pytest.fixture
def verifier(provider: RunningProvider) -> Verifier:
    return Verifier(Provider(issuer=provider.issuer, audience=AUDIENCE))


def refusal(verifier: Verifier, token: str) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        verifier.verify(token)
    return refused.value.reason


def forged(
    provider: RunningProvider, key: Any = None, *, alg: str = "RS256", kid: str = "first", **changed: Any
) -> str:
    """A token like the provider's, by its own key unless another is given."""
    now = datetime.now(UTC)
    claims = {"iss": provider.issuer, "aud": AUDIENCE, "sub": "anna", "iat": now, "exp": now + timedelta(minutes=5)}
    left = {name: value for name, value in (claims | changed).items() if value is not None}
    return jwt.encode(left, jwt.PyJWK(RSA).key if key is None else key, algorithm=alg, headers={"kid": kid})


# --- what counts


def test_a_person_with_nothing_special_is_a_subject(provider: RunningProvider, verifier: Verifier) -> None:
    found = verifier.verify(provider.token("anna"))
    assert (found.id, found.roles, found.email) == ("anna", {Role.SUBJECT}, "anna@example.org")
    assert found.auth_time == datetime.fromtimestamp(1_790_000_000, UTC)
    assert found.token_id is None  # its tokens are ended at the provider


def test_roles_come_from_the_token_and_unverified_addresses_do_not(
    provider: RunningProvider, verifier: Verifier
) -> None:
    found = verifier.verify(provider.token("oscar"))
    assert (found.roles, found.email, found.auth_time) == ({Role.SUBJECT, Role.OPERATOR}, None, None)


def test_claims_and_roles_may_have_other_names(provider: RunningProvider) -> None:
    told = Provider(
        issuer=provider.issuer,
        audience=AUDIENCE,
        user_claim="https://company.example/user",
        roles_claim="realm_access.roles",
        role_names={"export-admins": Role.ADMIN},
    )
    verifier = Verifier(told)
    found = verifier.verify(provider.token("ada"))
    assert (found.id, found.roles) == ("ada-7", {Role.SUBJECT, Role.ADMIN})
    # Its own names for roles do not count when there are others.
    assert refusal(verifier, provider.token("oscar")) == "no_user"


def test_other_ways_to_sign_count_with_their_keys(provider: RunningProvider, verifier: Verifier) -> None:
    for algorithm in ("ES256", "PS256", "RS512"):
        token = provider.token("anna", resource=f"{AUDIENCE}?alg={algorithm}")
        assert jwt.get_unverified_header(token)["alg"] == algorithm
        assert verifier.verify(token).id == "anna"


def test_the_test_s_own_tokens_are_like_the_provider_s(provider: RunningProvider, verifier: Verifier) -> None:
    assert verifier.verify(forged(provider)).id == "anna"
    assert verifier.verify(forged(provider, aud=["https://a.example", AUDIENCE])).id == "anna"


def test_the_gatekeeper_takes_them(provider: RunningProvider, verifier: Verifier, tmp_path: Path) -> None:
    """Without a key of our own."""
    gatekeeper = Gatekeeper(issuer=Issuer(tmp_path / "absent"), store=None, sign_outs=None, provider=verifier)
    asking = Asking(changes=True, headers={"authorization": f"Bearer {provider.token('oscar')}"})
    assert gatekeeper.admit(asking).id == "oscar"
    assert gatekeeper.admit(asking) == gatekeeper.recall(asking)


# --- what does not


def test_a_token_for_another_service_does_not_count(provider: RunningProvider, verifier: Verifier) -> None:
    assert refusal(verifier, provider.token("anna", resource="https://payroll.example")) == "wrong_audience"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": datetime.now(UTC) - timedelta(seconds=40)}, "expired"),
        ({"nbf": datetime.now(UTC) + timedelta(minutes=20)}, "not_yet_valid"),
        ({"iss": "https://elsewhere.example"}, "wrong_issuer"),
        ({"aud": "https://exports.example.evil.example"}, "wrong_audience"),
        ({"aud": None}, "missing_claim"),
        ({"iss": None}, "missing_claim"),
        ({"exp": None}, "missing_claim"),
        ({"sub": None}, "no_user"),
        ({"sub": "a" * 300}, "no_user"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_claims_that_do_not_count(
    provider: RunningProvider, verifier: Verifier, changed: dict[str, Any], reason: str
) -> None:
    assert refusal(verifier, forged(provider, **changed)) == reason


def test_no_signature_is_not_a_signature(provider: RunningProvider, verifier: Verifier) -> None:
    for name in ("none", "None", "NONE", "nOnE"):
        head = base64.urlsafe_b64encode(json.dumps({"alg": name, "kid": "first", "typ": "JWT"}).encode()).rstrip(b"=")
        body = forged(provider).split(".")[1]
        assert refusal(verifier, f"{head.decode()}.{body}.") == "wrong_algorithm"


@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
def test_the_public_key_is_no_shared_secret(
    provider: RunningProvider, verifier: Verifier, form: str, algorithm: str
) -> None:
    public = jwt.PyJWK(RSA).key.public_key()
    known = {
        "pem": public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        "der": public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        "jwk": json.dumps({name: RSA[name] for name in ("kty", "n", "e")}).encode(),
    }[form]
    forbidden = jwt.PyJWS().encode  # PyJWT itself refuses a PEM as a shared secret; an attacker does not ask it
    token = forged(provider)
    head = {"alg": algorithm, "typ": "JWT", "kid": "first"}
    body = base64.urlsafe_b64decode(token.split(".")[1] + "==")
    try:
        made = forbidden(body, known, algorithm=algorithm, headers=head)
    except jwt.InvalidKeyError:
        signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(head).encode(), body))
        digest = hmac.new(known, signed, {"HS256": hashlib.sha256, "HS512": hashlib.sha512}[algorithm]).digest()
        made = (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()
    assert refusal(verifier, made) == "wrong_algorithm"


def test_another_s_key_under_a_known_name_does_not_count(provider: RunningProvider, verifier: Verifier) -> None:
    assert refusal(verifier, forged(provider, jwt.PyJWK(OTHER).key)) == "bad_signature"


def test_a_key_signs_only_as_its_kind_does(provider: RunningProvider, verifier: Verifier) -> None:
    assert refusal(verifier, forged(provider, jwt.PyJWK(EC).key, alg="ES256", kid="first")) == "wrong_algorithm"
    assert refusal(verifier, forged(provider, alg="RS256", kid="curve")) == "wrong_algorithm"


def test_a_token_that_brings_its_own_key_does_not_count(provider: RunningProvider, verifier: Verifier) -> None:
    mine = jwt.PyJWK(OTHER)
    public = {name: OTHER[name] for name in ("kty", "n", "e")} | {"kid": "mine", "alg": "RS256"}
    now = datetime.now(UTC)
    claims = {"iss": provider.issuer, "aud": AUDIENCE, "sub": "anna", "iat": now, "exp": now + timedelta(minutes=5)}
    for extra in ({"jwk": public}, {"jku": "http://127.0.0.1:1/keys"}, {"x5u": "http://127.0.0.1:1/cert"}):
        made = jwt.encode(claims, mine.key, algorithm="RS256", headers={"kid": "mine", **extra})
        assert refusal(verifier, made) == "unknown_key"


@pytest.mark.parametrize("token", ["", "a.b.c", "e30.e30.", "." * 50, "eyJhbGciOiJSUzI1NiIsImtpZCI6N30.e30.AA"])
def test_what_is_no_token(verifier: Verifier, token: str) -> None:
    assert refusal(verifier, token) in {"malformed", "wrong_algorithm", "unknown_key"}


# --- keys change, and providers are away


def test_keys_are_rotated(folder: Path) -> None:
    port, clock = free_port(), Clock()
    with running(folder, port=port, keys=[RSA], clients=CLIENTS) as provider:
        verifier = Verifier(Provider(issuer=provider.issuer, audience=AUDIENCE), clock=clock)
        old = provider.token("anna")
        assert verifier.verify(old).id == "anna"
    with running(folder, port=port, keys=[OTHER], clients=CLIENTS) as provider:
        new = provider.token("anna")
        # Keys were fetched a moment ago: a key that nobody knows does not make us ask again at once.
        assert refusal(verifier, new) == "unknown_key"
        clock.now += 61
        assert verifier.verify(new).id == "anna"
        assert refusal(verifier, old) == "unknown_key"


def test_a_provider_that_is_away_is_not_a_refusal(folder: Path) -> None:
    port, clock = free_port(), Clock()
    verifier = Verifier(Provider(issuer=f"http://127.0.0.1:{port}", audience=AUDIENCE), clock=clock)
    with running(folder, port=port, keys=[RSA], clients=CLIENTS) as provider:
        token = provider.token("anna")
    with pytest.raises(IdentityProviderUnavailable):
        verifier.verify(token)
    with running(folder, port=port, keys=[RSA], clients=CLIENTS):
        with pytest.raises(IdentityProviderUnavailable):  # it is not asked again within seconds
            verifier.verify(token)
        clock.now += 6
        assert verifier.verify(token).id == "anna"
    clock.now += 2 * 3600
    assert verifier.verify(token).id == "anna"  # the keys that we have go on counting
    with pytest.raises(IdentityProviderUnavailable):
        verifier.verify(forged(provider, jwt.PyJWK(OTHER).key, kid="second"))
    clock.now += 24 * 3600
    with pytest.raises(IdentityProviderUnavailable):
        verifier.verify(token)


class Counting:
    """A provider of our own making, which counts questions and answers what a test wants."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[str] = []
        counting = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                counting.asked.append(self.path)
                body = json.dumps(counting.answer(self.path)).encode()
                moved = counting.answers.get("moved", {}).get(self.path)
                self.send_response(307 if moved else 200)
                if moved:
                    self.send_header("Location", moved)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        self.answers = answers
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> Any:
        about = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"} | self.answers.get("about", {})
        return self.answers.get("keys", {"keys": [public(RSA)]}) if path == "/keys" else about

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def verifier(self, clock: Clock) -> Verifier:
        return Verifier(Provider(issuer=self.issuer, audience=AUDIENCE), clock=clock)


def public(key: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in key.items() if name in {"kty", "n", "e", "crv", "x", "y", "kid", "use", "alg"}
    }


def test_no_answer_leads_us_to_another_address() -> None:
    """One within this network, say, that the provider cannot reach and we can."""
    with Counting() as elsewhere, Counting(moved={"/keys": f"{elsewhere.issuer}/keys"}) as provider:
        with pytest.raises(IdentityProviderUnavailable, match="307"):
            provider.verifier(Clock()).verify(forged(provider))
        assert provider.asked[-1] == "/keys"
        assert elsewhere.asked == []


def test_strangers_cannot_make_us_ask() -> None:
    with Counting() as provider:
        verifier = provider.verifier(Clock())
        with ThreadPoolExecutor(8) as pool:
            made = [forged(provider, jwt.PyJWK(OTHER).key, kid=f"made-up-{number}") for number in range(40)]
            assert set(pool.map(lambda token: refusal(verifier, token), made)) == {"unknown_key"}
        assert provider.asked == ["/.well-known/openid-configuration", "/keys"]
        assert verifier.verify(forged(provider)).id == "anna"
        assert len(provider.asked) == 2


@pytest.mark.parametrize(
    "answers",
    [
        {"about": {"issuer": "https://elsewhere.example"}},
        {"about": {"jwks_uri": "http://elsewhere.example/keys"}},
        {"about": {"jwks_uri": "file:///etc/passwd"}},
        {"about": {"jwks_uri": None}},
        {"keys": {"keys": []}},
        {"keys": {"keys": "none"}},
        {"keys": []},
        {"keys": {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]}},
        {"keys": {"keys": [{"kty": "RSA", "use": "enc", "kid": "first"}, 7, None]}},
    ],
    ids=str,
)
def test_a_provider_that_answers_nonsense_is_of_no_use(answers: dict[str, Any]) -> None:
    with Counting(**answers) as provider, pytest.raises(IdentityProviderUnavailable) as away:
        provider.verifier(Clock()).verify(forged(provider))
    assert "elsewhere" not in str(away.value)


def test_a_provider_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = Clock(), []

    def hang(_issuer: str, _now: float) -> None:
        waits.append(clock.now)
        clock.now += 5  # as long as the next question must wait
        raise IdentityProviderUnavailable("It hangs.")

    monkeypatch.setattr(oidc, "_published", hang)
    verifier = Verifier(Provider(issuer="https://id.example", audience=AUDIENCE), clock=clock)
    for _ in range(4):
        with pytest.raises(IdentityProviderUnavailable):
            verifier.require()
    assert len(waits) == 1


def test_a_provider_that_came_back_is_asked_however_many_come() -> None:
    clock = Clock()
    with Counting(keys={}) as provider:
        verifier = provider.verifier(clock)
        with pytest.raises(IdentityProviderUnavailable):
            verifier.verify(forged(provider))
        provider.answers = {}
        for _ in range(4):
            clock.now += 1
            with pytest.raises(IdentityProviderUnavailable):
                verifier.verify(forged(provider))
        clock.now += 1
        assert verifier.verify(forged(provider)).id == "anna"


def test_nobody_with_a_key_that_does_waits_for_a_provider_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked, answer = Clock(), threading.Event(), threading.Event()
    with Counting() as provider, ThreadPoolExecutor(1) as pool:
        verifier = provider.verifier(clock)
        token = forged(provider)
        verifier.verify(token)
        clock.now += 2 * 3600

        def hang(_issuer: str, _now: float) -> None:
            asked.set()
            answer.wait(60)
            raise IdentityProviderUnavailable("It hangs.")

        monkeypatch.setattr(oidc, "_published", hang)
        first = pool.submit(verifier.verify, token)
        assert asked.wait(60)
        assert verifier.verify(token).id == "anna"
        answer.set()
        assert first.result(60).id == "anna"


@pytest.mark.parametrize("answer", [b"HELLO\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000, b""])
def test_an_answer_that_is_none_is_of_no_use(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        spoken = pool.submit(speak)
        issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(IdentityProviderUnavailable):
            Verifier(Provider(issuer=issuer, audience=AUDIENCE), clock=Clock()).require()
        spoken.result(60)


def test_a_key_of_nonsense_does_not_hurt() -> None:
    with Counting(keys={"keys": [{"kty": "RSA", "kid": "first", "n": "?", "e": 7}, public(OTHER)]}) as provider:
        verifier = provider.verifier(Clock())
        assert refusal(verifier, forged(provider)) == "malformed"
        assert verifier.verify(forged(provider, jwt.PyJWK(OTHER).key, kid="second")).id == "anna"


def test_a_key_that_says_how_it_signs_is_taken_at_its_word() -> None:
    with Counting(keys={"keys": [public(RSA) | {"alg": "PS256"}]}) as provider:
        verifier = provider.verifier(Clock())
        assert refusal(verifier, forged(provider)) == "wrong_algorithm"
        assert verifier.verify(forged(provider, alg="PS256")).id == "anna"


def test_addresses_that_can_be_trusted() -> None:
    assert all(map(secure, ["https://a.example", "http://localhost:1", "http://127.0.0.1", "http://[::1]/x"]))
    assert not any(map(secure, ["http://a.example", "https://", "ftp://localhost", "file:///x", "", "None"]))
