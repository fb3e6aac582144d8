"""An installation of its own, with an embedded server, that may be hurt."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from export_pipeline import demo, supervisor
from export_pipeline.settings import Settings
from export_pipeline_tests.running import Running


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Patient with locks: tests hold a run in the middle by locking a table that it reads."""
    return Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("faults"),
        ui_port=0,
        source_lock_timeout_s=120,
        # The same tests must pass with every launcher.
        launcher=os.environ.get("EXPORT_PIPELINE_LAUNCHER", "warm"),
    )


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[Running]:
    """Everything started, with the sample source."""
    with supervisor.start(settings) as stack:
        demo.install_sample(stack.services)
        yield Running(stack=stack)
