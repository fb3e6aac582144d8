"""The doctor looks at every key and every server that the settings name, and says how to mend what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from pydantic import SecretStr

from export_pipeline import doctor, wiring
from export_pipeline.doctor import Finding
from export_pipeline.settings import Settings
from export_pipeline_tests import servers

KEYS = {
    "key and store": wiring.key_file,
    "signing key": wiring.signing_key_file,
    "pseudonym key": wiring.pseudonym_key_file,
    "link key": wiring.link_key_file,
    "sign-in": wiring.token_key_file,
}


def said(settings: Settings, check: str) -> Finding:
    [found] = [finding for finding in doctor.examine(settings) if finding.check == check]
    return found


def test_a_whole_installation_is_good(settings: Settings) -> None:
    chosen = settings.model_copy(update={"local_tokens": True})
    found = {finding.check: finding.verdict.value for finding in doctor.examine(chosen)}
    assert set(found.values()) == {"good"}
    assert set(KEYS) <= set(found)
    assert not {"mail server", "broker", "settings"} & set(found)


@pytest.mark.parametrize("check", KEYS)
@pytest.mark.parametrize(
    ("damage", "hint"),
    [(lambda file: file.unlink(), "`export-pipeline migrate`"), (lambda file: file.chmod(0o644), "`chmod 600 ")],
    ids=["absent", "open"],
)
def test_a_key_that_cannot_be_used_is_told(
    settings: Settings, check: str, damage: Callable[[Path], None], hint: str
) -> None:
    damage(KEYS[check](settings))
    found = said(settings, check)
    assert found.verdict.value == "bad"
    assert hint in found.hint


def test_keys_are_looked_at_without_a_database(settings: Settings, closed_port: int) -> None:
    away = settings.model_copy(update={"database_url": SecretStr(f"postgresql://127.0.0.1:{closed_port}/x")})
    wiring.link_key_file(settings).unlink()
    assert [said(away, check).verdict.value for check in ("database", "link key", "signing key")] == [
        "bad",
        "bad",
        "good",
    ]


def mailing(settings: Settings, port: int) -> Settings:
    url = SecretStr(f"smtp://127.0.0.1:{port}")
    return settings.model_copy(update={"smtp_url": url, "smtp_from": "exports@example.org"})


def test_a_mail_server_is_asked(settings: Settings, closed_port: int) -> None:
    found = said(mailing(settings, closed_port), "mail server")
    assert (found.verdict.value, "EXPORT_PIPELINE_SMTP_URL" in found.hint) == ("bad", True)
    [port] = servers.free_ports(1)
    server = Controller(object(), hostname="127.0.0.1", port=port)
    server.start()
    try:
        assert said(mailing(settings, port), "mail server").verdict.value == "good"
    finally:
        server.stop()


def sending(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"launcher": "celery", "broker_url": SecretStr(url)})


def test_a_broker_is_asked(settings: Settings, tmp_path: Path, closed_port: int) -> None:
    away = said(sending(settings, f"redis://:canary@127.0.0.1:{closed_port}/0"), "broker")
    assert (away.verdict.value, "EXPORT_PIPELINE_BROKER_URL" in away.hint) == ("bad", True)
    (tmp_path / "broker").mkdir()
    with servers.broker(tmp_path / "broker") as broker:
        assert said(sending(settings, broker.url), "broker").verdict.value == "good"
        refused = said(sending(settings, broker.url.replace(servers.PASSWORD, "canary")), "broker")
    assert refused.verdict.value == "bad"
    assert "canary" not in f"{away}{refused}"


def test_variables_that_set_nothing_are_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPORT_PIPELINE_STORGE_URL", "s3://canary")
    monkeypatch.setenv("EXPORT_PIPELINE_DEBUG", "1")
    (tmp_path / ".env").write_text("EXPORT_PIPELINE_XYZZY=canary\nEXPORT_PIPELINE_UI_PORT=0\nOTHER=1\n")
    found = [finding for finding in doctor.examine(settings) if finding.check == "settings"]
    assert [(finding.verdict.value, finding.message.split()[0]) for finding in found] == [
        ("warning", "EXPORT_PIPELINE_STORGE_URL"),
        ("warning", "EXPORT_PIPELINE_XYZZY"),
    ]
    assert found[0].hint == "Is EXPORT_PIPELINE_STORAGE_URL meant?"
    assert "canary" not in str(found)
