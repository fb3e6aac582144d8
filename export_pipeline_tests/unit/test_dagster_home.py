"""Dagster's configuration for each launcher; it never holds a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from export_pipeline import dagster_home
from export_pipeline.errors import ConfigurationError
from export_pipeline.settings import Settings

CANARY = "canary-password"


def written(folder: Path, launcher: str) -> dict[str, Any]:
    settings = Settings(
        _env_file=None,
        home=folder,
        launcher=launcher,
        max_concurrent_runs=7,
        database_url=SecretStr(f"postgresql://me:{CANARY}@host/db"),
        broker_url=SecretStr(f"redis://:{CANARY}@broker/0"),
    )
    dagster_home.write(settings)
    assert dagster_home.environment(settings)["EXPORT_PIPELINE_BROKER_URL"] == f"redis://:{CANARY}@broker/0"
    return yaml.safe_load((folder / "dagster" / "dagster.yaml").read_text())


@pytest.mark.parametrize(
    ("launcher", "name"), [("warm", "WarmRunLauncher"), ("celery", "BrokerRunLauncher"), ("default", None)]
)
def test_each_launcher_is_configured(tmp_path: Path, launcher: str, name: str | None) -> None:
    instance = written(tmp_path, launcher)
    assert instance.get("run_launcher", {}).get("class") == name
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and CANARY in file.read_text()]


def test_the_limit_of_runs_counts_all_machines(tmp_path: Path) -> None:
    assert written(tmp_path / "a", "default")["concurrency"]["runs"]["max_concurrent_runs"] == 7
    celery = written(tmp_path / "b", "celery")
    assert celery["run_coordinator"]["config"]["max_concurrent_runs"] == 7
    assert "concurrency" not in celery, "Dagster takes one or the other"


def test_a_run_may_wait_long_for_a_warm_worker(tmp_path: Path) -> None:
    """Dagster's limit would spend the attempts of requests that wait behind long exports."""
    assert written(tmp_path, "warm")["run_monitoring"]["start_timeout_seconds"] > 24 * 3600


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A state folder whose path is too long for a socket, and a temporary folder for it."""
    temporary = tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return Settings(_env_file=None, home=tmp_path / ("long-" * 24))


def test_a_socket_elsewhere_is_in_a_folder_of_our_own(far: Settings) -> None:
    folder = dagster_home.write(far).socket.parent
    assert not folder.is_relative_to(far.home)
    folder.chmod(0o777)
    assert dagster_home.write(far).socket.parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_that_waits_there_is_refused(far: Settings, tmp_path: Path) -> None:
    folder = dagster_home.write(far).socket.parent
    folder.rmdir()
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(ConfigurationError, match="belongs to somebody else"):
        dagster_home.write(far)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_somebody_else_is_refused(far: Settings) -> None:
    os.chown(dagster_home.write(far).socket.parent, 12345, 12345)
    with pytest.raises(ConfigurationError, match="belongs to somebody else"):
        dagster_home.write(far)
