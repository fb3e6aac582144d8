"""An installation of its own, with an embedded server, that may be hurt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export_pipeline import demo, supervisor
from export_pipeline.settings import Settings
from export_pipeline_tests.running import Running, launcher_under_test, patient_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with launcher_under_test(tmp_path_factory.mktemp("broker")) as launcher:
        yield patient_settings(tmp_path_factory.mktemp("faults"), launcher)


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[Running]:
    """Everything started, with the sample source."""
    with supervisor.start(settings) as stack:
        demo.install_sample(stack.services)
        yield Running(stack=stack)
