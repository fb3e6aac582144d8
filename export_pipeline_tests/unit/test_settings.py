"""Settings: read from variables and `.env`, wrong ones named, and their values shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from export_pipeline import settings
from export_pipeline.errors import ConfigurationError
from export_pipeline.settings import Settings

PASSWORD = "canary-password"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("EXPORT_PIPELINE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def setenv(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"EXPORT_PIPELINE_{name.upper()}", value)


def test_without_any_variable_everything_has_a_default(tmp_path: Path) -> None:
    loaded = settings.load()
    assert loaded.home == tmp_path / ".export-pipeline"
    assert loaded.embedded
    assert (loaded.database_url, loaded.source_url, loaded.storage_url, loaded.key_file) == (None, None, None, None)
    assert (loaded.api_port, loaded.ui_port, loaded.retention_days, loaded.max_attempts) == (8080, 3000, 7, 3)


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setenv(
        monkeypatch,
        home=str(tmp_path / "state"),
        database_url=f"postgresql://me:{PASSWORD}@host/ours",
        source_url="postgres://host/theirs",
        storage_url="s3://bucket/prefix",
        api_port="0",
        source_lock_timeout_s="0",
    )
    loaded = settings.load()
    assert loaded.home == tmp_path / "state"
    assert loaded.database_url is not None
    assert loaded.database_url.get_secret_value() == f"postgresql://me:{PASSWORD}@host/ours"
    assert loaded.source_url is not None
    assert loaded.source_url.get_secret_value() == "postgres://host/theirs"
    assert (loaded.storage_url, loaded.api_port, loaded.source_lock_timeout_s) == ("s3://bucket/prefix", 0, 0)
    assert not loaded.embedded


def test_a_dotenv_file_is_read_and_variables_go_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("EXPORT_PIPELINE_API_PORT=81\nEXPORT_PIPELINE_UI_PORT=82\nOTHER=1\n# EXPORT_PIPELINE_X\n")
    setenv(monkeypatch, ui_port="83")
    loaded = settings.load()
    assert (loaded.api_port, loaded.ui_port) == (81, 83)


@pytest.mark.parametrize("content", [b"EXPORT_PIPELINE_HOME=\xff\xfe", b"\xff" * 10])
def test_a_dotenv_file_that_is_no_text_is_named(content: bytes) -> None:
    Path(".env").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"\.env"):
        settings.load()


def test_a_wrong_value_in_a_dotenv_file_is_named_and_not_shown() -> None:
    Path(".env").write_text(f"EXPORT_PIPELINE_DATABASE_URL=mysql://me:{PASSWORD}@host/db\n")
    with pytest.raises(ConfigurationError, match="EXPORT_PIPELINE_DATABASE_URL") as caught:
        settings.load()
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", f"mysql://me:{PASSWORD}@host/db"),
        ("database_url", f"host=db password={PASSWORD}"),
        ("source_url", f"https://{PASSWORD}"),
        ("source_url", f"postgresql://me:what?/{PASSWORD}@host/db"),
        ("database_url", f"postgresql://me:%zz{PASSWORD}@host/db"),
        ("storage_url", f"ftp://me:{PASSWORD}@host"),
        ("storage_url", f"file://{PASSWORD}/folder"),
        ("storage_url", "file:///"),
        ("storage_url", "s3://"),
        ("storage_url", "s3:///prefix"),
        ("storage_url", "file:///exports#2"),
        ("storage_url", "s3://bucket/what?prefix"),
        ("smtp_url", f"smtp://me:what/{PASSWORD}@host"),
        ("smtp_url", f"smtp://me:{PASSWORD}\N{ACCOUNT OF}@host"),
        ("smtp_url", "smtp://host:submission"),
        ("broker_url", f"redis://:/{PASSWORD}@host/0"),
        ("broker_url", "redis://host:65536/0"),
        ("public_url", "https://example.org:https"),
        ("oidc_issuer", "https://[example.org"),
        ("api_cors_origins", "https://example.org:https"),
        ("api_port", PASSWORD),
        ("api_port", "65536"),
        ("api_port", "-1"),
        ("ui_port", "80.5"),
        ("max_attempts", "0"),
        ("max_attempts", "101"),
        ("max_concurrent_runs", "0"),
        ("source_statement_timeout_s", "-1"),
        ("source_lock_timeout_s", "1h"),
        ("retention_days", "0"),
        # What no date, and no server, can be counted with.
        ("retention_days", "36501"),
        ("retention_days_gdpr", "10000000000"),
        ("keep_runs_days", "36501"),
        ("verification_max_age_s", "31536001"),
        ("source_statement_timeout_s", "2147484"),
        ("home", f"~no-such-account-{PASSWORD}/state"),
        ("key_file", f"~no-such-account-{PASSWORD}/age.txt"),
    ],
)
def test_a_wrong_variable_is_named_and_its_value_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    setenv(monkeypatch, **{name: value})
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    text = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert f"EXPORT_PIPELINE_{name.upper()}: " in text
    assert caught.value.__suppress_context__
    assert PASSWORD not in text
    assert len(value) < 10 or value not in text


def test_every_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, api_port="x", ui_port="y")
    with pytest.raises(ConfigurationError, match=r"EXPORT_PIPELINE_API_PORT: .*; EXPORT_PIPELINE_UI_PORT: "):
        settings.load()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = settings.load()
    setenv(monkeypatch, **{name: ""})
    assert settings.load() == before


@pytest.mark.parametrize("name", ["home", "key_file"])
def test_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Dagster's processes have working folders of their own."""
    setenv(monkeypatch, **{name: "some/where"})
    loaded = settings.load()
    monkeypatch.chdir("/")
    assert getattr(loaded, name) == tmp_path / "some/where"


@pytest.mark.parametrize("name", ["home", "key_file"])
def test_the_home_folder_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    setenv(monkeypatch, **{name: "~/state"})
    assert getattr(settings.load(), name) == tmp_path / "me/state"


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://me:{PASSWORD}@host/db"
    setenv(monkeypatch, database_url=url, source_url=url)
    loaded = settings.load()
    assert PASSWORD not in f"{loaded} {loaded!r} {loaded.model_dump()} {loaded.model_dump_json()}"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        settings.load().api_port = 1  # type: ignore[misc]


def test_unknown_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, something_of_a_newer_version="1")
    settings.load()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith(".")
    assert description[0].isalpha()
