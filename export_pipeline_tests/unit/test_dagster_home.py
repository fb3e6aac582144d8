"""Dagster's configuration for each launcher; it never holds a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from export_pipeline import dagster_home
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
