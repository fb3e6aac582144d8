"""Our own tokens: what counts, and everything that does not."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from export_pipeline.errors import InvalidRequest, KeyUnusable, NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.sign_in.tokens import ISSUER, LONGEST, Audience, Issuer
from export_pipeline.vault import token_keys

ANNA = Principal(id="anna", roles=frozenset({Role.SUBJECT, Role.AUDITOR}), email="anna@example.org")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "keys" / "tokens.txt"
    assert token_keys.create(made)
    return made


def claims(**changed: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    made = {"iss": ISSUER, "aud": Audience.BEARER.value, "sub": "anna", "roles": ["admin"], "jti": "1", "iat": now}
    return {**made, "exp": now + timedelta(hours=1), **changed}


def signed(file: Path, **changed: Any) -> str:
    key = token_keys.read(file)[0]
    return jwt.encode(claims(**changed), key.private, algorithm="EdDSA", headers={"kid": key.key_id})


def refusal(issuer: Issuer, token: str, **how: Any) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        issuer.verify(token, **how)
    assert "anna" not in str(refused.value)
    return refused.value.reason


def test_what_goes_in_comes_out(file: Path) -> None:
    issuer = Issuer(file)
    before = datetime.now(UTC) - timedelta(seconds=1)
    found = issuer.verify(issuer.issue(ANNA))
    assert (found.id, found.roles, found.email) == (ANNA.id, ANNA.roles, ANNA.email)
    assert found.token_id
    assert before <= found.auth_time <= datetime.now(UTC)


def test_every_token_has_its_own_id(file: Path) -> None:
    issuer = Issuer(file)
    assert issuer.verify(issuer.issue(ANNA)).token_id != issuer.verify(issuer.issue(ANNA)).token_id


def test_a_session_is_no_bearer_token_and_the_other_way_round(file: Path) -> None:
    issuer = Issuer(file)
    session = issuer.issue(ANNA, audience=Audience.SESSION)
    assert issuer.verify(session, audience=Audience.SESSION).id == "anna"
    assert refusal(issuer, session) == "wrong_audience"
    assert refusal(issuer, issuer.issue(ANNA), audience=Audience.SESSION) == "wrong_audience"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": datetime.now(UTC) - timedelta(minutes=2)}, "expired"),
        ({"nbf": datetime.now(UTC) + timedelta(days=2)}, "not_yet_valid"),
        (
            {"iat": datetime.now(UTC) + timedelta(days=2), "exp": datetime.now(UTC) + timedelta(days=3)},
            "not_yet_valid",
        ),
        ({"aud": "somebody-else"}, "wrong_audience"),
        ({"iss": "https://elsewhere.example"}, "wrong_issuer"),
        ({"sub": ""}, "no_user"),
        ({"sub": " "}, "no_user"),
        ({"sub": "a" * 256}, "no_user"),
        ({"sub": "an\0na"}, "no_user"),
        ({"exp": "soon"}, "malformed"),
    ],
)
def test_what_does_not_count(file: Path, changed: dict[str, Any], reason: str) -> None:
    assert refusal(Issuer(file), signed(file, **changed)) == reason


@pytest.mark.parametrize("missing", ["exp", "iat", "iss", "aud", "sub", "jti"])
def test_no_claim_may_be_left_out(file: Path, missing: str) -> None:
    key = token_keys.read(file)[0]
    left = {name: value for name, value in claims().items() if name != missing}
    token = jwt.encode(left, key.private, algorithm="EdDSA", headers={"kid": key.key_id})
    assert refusal(Issuer(file), token) == "missing_claim"


def test_clocks_may_differ_by_half_a_minute(file: Path) -> None:
    now = datetime.now(UTC)
    assert Issuer(file).verify(signed(file, exp=now - timedelta(seconds=20))).id == "anna"
    assert Issuer(file).verify(signed(file, nbf=now + timedelta(seconds=20))).id == "anna"


def test_no_signature_is_not_a_signature(file: Path) -> None:
    key_id = token_keys.read(file)[0].key_id
    unsigned = jwt.encode(claims(), None, algorithm="none", headers={"kid": key_id})
    assert refusal(Issuer(file), unsigned) == "wrong_algorithm"
    head, body, _ = signed(file).split(".")
    assert refusal(Issuer(file), f"{head}.{body}.") == "bad_signature"


def test_the_public_key_is_no_shared_secret(file: Path) -> None:
    key = token_keys.read(file)[0]
    raw = key.private.public_key().public_bytes_raw()
    forged = jwt.encode(claims(), raw, algorithm="HS256", headers={"kid": key.key_id})
    assert refusal(Issuer(file), forged) == "wrong_algorithm"


def test_a_changed_role_breaks_the_signature(file: Path) -> None:
    head, _, signature = signed(file, roles=["subject"]).split(".")
    body = base64.urlsafe_b64encode(
        json.dumps(claims(), default=lambda moment: int(moment.timestamp())).encode()
    ).rstrip(b"=")
    assert refusal(Issuer(file), f"{head}.{body.decode()}.{signature}") == "bad_signature"


def test_another_installation_s_key_is_not_ours(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    token_keys.create(other)
    assert refusal(Issuer(file), signed(other)) == "unknown_key"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "." * 100, "e30.e30.e30", "ä.ö.ü"])
def test_what_is_no_token(file: Path, token: str) -> None:
    assert refusal(Issuer(file), token) in {"malformed", "unknown_key", "wrong_algorithm"}


def test_roles_that_we_do_not_have_give_nothing(file: Path) -> None:
    assert Issuer(file).verify(signed(file, roles=["root", "auditor", 7, None])).roles == {Role.AUDITOR}
    assert Issuer(file).verify(signed(file, roles={"admin": True})).roles == frozenset()


def test_a_rotated_key_verifies_until_it_is_removed(file: Path, tmp_path: Path) -> None:
    old = Issuer(file).issue(ANNA)
    new = tmp_path / "new.txt"
    token_keys.create(new)
    file.write_text(new.read_text() + file.read_text())
    issuer = Issuer(file)
    assert issuer.verify(old).id == "anna"
    assert jwt.get_unverified_header(issuer.issue(ANNA))["kid"] == token_keys.read(new)[0].key_id
    file.write_text(new.read_text())
    assert refusal(issuer, old) == "unknown_key"


@pytest.mark.parametrize("content", ["", "# nothing\n", "secret\n", "EXPORT-PIPELINE-TOKEN-KEY-1zz\n"])
def test_a_damaged_key_file_is_said(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(KeyUnusable, match="holds no token key"):
        Issuer(file).issue(ANNA)


def test_a_key_file_that_others_can_read_is_refused(file: Path) -> None:
    file.chmod(0o644)
    with pytest.raises(KeyUnusable, match="by others"):
        Issuer(file).issue(ANNA)


# --- what is needed to end one


def test_a_session_names_the_token_that_it_began_with_and_comes_after_the_same_sign_outs(file: Path) -> None:
    issuer = Issuer(file)
    began = issuer.read(issuer.issue(replace(ANNA, came_after=7)), Audience.BEARER)
    session = issuer.read(issuer.issue(began.principal, audience=Audience.SESSION), Audience.SESSION)
    assert (began.begun_with, began.came_after) == (None, 7)
    assert (session.begun_with, session.came_after) == (began.token_id, 7)
    assert session.token_id != began.token_id == began.principal.token_id
    assert issuer.read(issuer.issue(ANNA, audience=Audience.SESSION), Audience.SESSION).begun_with is None


@pytest.mark.parametrize(("said", "read"), [(3, 3), (None, 0), (-1, 0), (True, 0), ("5", 0), (2.5, 0), ([1], 0)])
def test_only_a_number_says_what_a_token_came_after(file: Path, said: object, read: int) -> None:
    found = Issuer(file).read(signed(file, **{} if said is None else {"came_after": said}), Audience.BEARER)
    assert found.came_after == read


def test_what_expired_can_still_be_read_to_end_it_and_counts_no_more(file: Path) -> None:
    issuer = Issuer(file)
    for audience in (Audience.BEARER, Audience.SESSION):
        old = issuer.issue(ANNA, audience=audience, lifetime=timedelta(hours=-1))
        assert issuer.read(old, Audience.BEARER, Audience.SESSION, expired_too=True).principal.id == "anna"
        assert refusal(issuer, old, audience=audience) == "expired"
    with pytest.raises(NotAuthenticated):
        issuer.read(issuer.note({}, lifetime=timedelta(hours=1)), Audience.BEARER, Audience.SESSION, expired_too=True)


@pytest.mark.parametrize("changed", [{"jti": ""}, {"exp": 10**15}])
def test_what_could_not_be_ended_does_not_count(file: Path, changed: dict[str, Any]) -> None:
    assert refusal(Issuer(file), signed(file, **changed)) == "missing_claim"


def test_nothing_counts_longer_than_what_ends_it_is_kept(file: Path) -> None:
    Issuer(file).issue(ANNA, lifetime=LONGEST)
    with pytest.raises(InvalidRequest, match="a year"):
        Issuer(file).issue(ANNA, lifetime=LONGEST + timedelta(seconds=1))
