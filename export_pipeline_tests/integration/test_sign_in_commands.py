"""`export-pipeline token`, `sign-in`, `sign-out`: what they print counts until it ends, and only where it can."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from export_pipeline import doctor, supervisor
from export_pipeline.cli.app import app
from export_pipeline.errors import ConfigurationError, InvalidRequest, NotAuthenticated
from export_pipeline.identity import Principal, Role
from export_pipeline.settings import load
from export_pipeline.sign_in.gatekeeper import Asking
from export_pipeline.wiring import Services, connect


@pytest.fixture
def here(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands work on this installation."""
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(services.settings.home))
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", services.settings.database_url.get_secret_value())
    monkeypatch.setenv("EXPORT_PIPELINE_LOCAL_TOKENS", "true")


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done
    return done.stdout.strip()


def admitted(token: str) -> Principal:
    with connect(load()) as services:
        return services.gatekeeper.admit(Asking(changes=True, headers={"authorization": f"Bearer {token}"}))


@pytest.mark.usefixtures("here")
def test_a_token_without_a_role_is_a_subject_s() -> None:
    found = admitted(printed("token", "--user", "anna"))
    assert (found.id, found.roles, found.email) == ("anna", {Role.SUBJECT}, None)


@pytest.mark.usefixtures("here")
def test_a_token_has_the_roles_that_were_asked_for() -> None:
    words = ["token", "-u", "ada", "--role", "admin", "--role", "auditor", "--email", "ada@example.org", "--json"]
    told = json.loads(printed(*words, "--lifetime", "0.5"))
    assert (told["user"], told["roles"], told["lifetime_s"]) == ("ada", ["admin", "auditor"], 1800)
    found = admitted(told["token"])
    assert (found.roles, found.email) == ({Role.ADMIN, Role.AUDITOR}, "ada@example.org")


@pytest.mark.usefixtures("here")
def test_a_link_has_the_port_that_the_ui_got(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_UI_PORT", "0")
    refused = CliRunner().invoke(app, ["sign-in"]).exception
    assert isinstance(refused, ConfigurationError)
    assert "`export-pipeline up`" in refused.hint
    with supervisor._known(load(), "http://127.0.0.1:4242"):
        assert urlsplit(printed("sign-in")).port == 4242
    assert CliRunner().invoke(app, ["sign-in"]).exit_code == 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "words", [["token"], ["token", "-u", "a", "--role", "root"], ["token", "-u", "a", "--lifetime", "0"]]
)
def test_wrong_calls_make_no_token(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (2, "")


@pytest.mark.usefixtures("here")
def test_a_link_signs_in_once(services: Services) -> None:
    link = urlsplit(printed("sign-in", "--user", "oscar", "--role", "operator"))
    assert (link.hostname, link.port, link.path) == ("127.0.0.1", 3000, "/sign-in")
    [code] = parse_qs(link.query)["code"]
    with connect(load()) as opened:
        found = opened.gatekeeper.redeem(code, Asking(changes=False, headers={}))
        assert (found.id, found.roles) == ("oscar", {Role.OPERATOR})
        assert found.auth_time
        with pytest.raises(NotAuthenticated):
            opened.gatekeeper.redeem(code, Asking(changes=False, headers={}))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("words", [["token", "-u", "anna"], ["sign-in"]])
def test_nothing_is_made_where_it_would_not_count(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPORT_PIPELINE_LOCAL_TOKENS")
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigurationError)
    assert "EXPORT_PIPELINE_OIDC_ISSUER" in str(done.exception)
    assert done.stdout == ""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("variables", "verdict", "message"),
    [
        ({}, "good", "our own tokens and links"),
        ({"LOCAL_TOKENS": "false"}, "warning", "nobody can sign in to the API and the Dagster UI"),
        (
            {"OIDC_ISSUER": "http://127.0.0.1:1", "OIDC_AUDIENCE": "x"},
            "bad",
            "The identity provider cannot be used now",
        ),
    ],
)
def test_the_doctor_looks_at_it(
    variables: dict[str, str], verdict: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"EXPORT_PIPELINE_{name}", value)
    [found] = [finding for finding in doctor.examine(load()) if finding.check == "sign-in"]
    assert found.verdict.value == verdict
    assert found.message.startswith(message)
    assert bool(found.hint) is (verdict != "good")


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"OIDC_ISSUER": "http://id.example.org", "OIDC_AUDIENCE": "x"}, "OIDC_ISSUER"),
        ({"OIDC_ISSUER": "id.example.org", "OIDC_AUDIENCE": "x"}, "OIDC_ISSUER"),
        ({"OIDC_ISSUER": "https://id.example.org"}, "OIDC_AUDIENCE"),
        ({"OIDC_ROLES": "staff=root"}, "OIDC_ROLES"),
        ({"OIDC_ROLES": "staff"}, "OIDC_ROLES"),
        ({"SMTP_URL": "http://mail.example.org"}, "SMTP_URL"),
        ({"SMTP_URL": "smtp://mail.example.org"}, "SMTP_FROM"),
        ({"SMTP_FROM": "nobody"}, "SMTP_FROM"),
    ],
    ids=str,
)
def test_settings_that_could_not_work_are_refused(
    variables: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"EXPORT_PIPELINE_{name}", value)
    with pytest.raises(ConfigurationError, match=f"EXPORT_PIPELINE_{complaint}") as refused:
        load()
    assert "example.org" not in str(refused.value)


def test_roles_have_the_provider_s_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_OIDC_ROLES", "/staff/exports=operator, a=b=admin ,")
    assert load().oidc_role_names == {"/staff/exports": "operator", "a=b": "admin"}


# --- signing out


def refused_now(token: str) -> bool:
    try:
        return not admitted(token).id
    except NotAuthenticated as refused:
        return refused.reason == "revoked"


@pytest.mark.usefixtures("here")
def test_everything_of_a_person_ends() -> None:
    mine, others = printed("token", "-u", "anna"), printed("token", "-u", "ben")
    told = json.loads(printed("sign-out", "anna", "--json"))
    assert told["user"] == "anna" and datetime.fromisoformat(told["signed_out_at"]).tzinfo
    assert (refused_now(mine), refused_now(others)) == (True, False)
    assert not refused_now(printed("token", "-u", "anna"))
    assert "anna" in printed("sign-out", "anna")


@pytest.mark.usefixtures("here")
def test_one_token_ends_from_standard_input_or_a_file(tmp_path: Path) -> None:
    first, second, third = (printed("token", "-u", "anna") for _ in range(3))
    done = CliRunner().invoke(app, ["sign-out", "--token", "-", "--json"], input=f"{first}\n")
    assert done.exit_code == 0, done
    told = json.loads(done.stdout)
    assert (told["user"], sorted(told)) == ("anna", ["expires_at", "token_id", "user"])
    (tmp_path / "token").write_text(f"\n {second} \n")
    shown = printed("sign-out", "--token", str(tmp_path / "token"))
    assert "anna" in shown and second not in shown
    assert [refused_now(one) for one in (first, second, third)] == [True, True, False]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("words", [["sign-out"], ["sign-out", "anna", "--token", "-"], ["sign-out", "a", "b"]])
def test_wrong_calls_end_nothing(words: list[str]) -> None:
    token = printed("token", "-u", "anna")
    done = CliRunner().invoke(app, words, input=token)
    assert (done.exit_code, done.stdout) == (2, "")
    assert not refused_now(token)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "input", "error", "says"),
    [
        (["--token", "-"], b"", InvalidRequest, "no token or session"),
        (["--token", "-"], b"\xff\x00", InvalidRequest, "no token or session"),
        (["--token", "-"], b"a" * 100_000, InvalidRequest, "no token or session"),
        (["--token", "/nowhere/token"], b"", ConfigurationError, "/nowhere/token cannot be read"),
        (["--token", "/"], b"", ConfigurationError, "cannot be read"),
        ([" "], b"", InvalidRequest, "no user id"),
        (["x" * 256], b"", InvalidRequest, "no user id"),
    ],
)
def test_what_cannot_be_ended_is_explained(words: list[str], input: bytes, error: type[Exception], says: str) -> None:
    done = CliRunner().invoke(app, ["sign-out", *words], input=input)
    assert isinstance(done.exception, error) and says in str(done.exception)
    assert done.stdout == ""


@pytest.mark.usefixtures("here")
def test_a_person_ends_also_where_our_own_tokens_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPORT_PIPELINE_LOCAL_TOKENS")
    assert "anna" in printed("sign-out", "anna")
