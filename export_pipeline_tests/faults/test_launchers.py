"""Every launcher does the main things. All other tests of whole installations run with one; here come the others."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from export_pipeline.settings import Settings
from export_pipeline_tests.faults.test_killed import (
    test_a_killed_run_is_done_again,
    test_a_terminated_run_cancels_its_request,
)
from export_pipeline_tests.running import LAUNCHER, LAUNCHERS, Running, launcher_under_test, patient_settings

__all__ = [
    "test_a_killed_run_is_done_again",
    "test_a_terminated_run_cancels_its_request",
]


@pytest.fixture(scope="module", params=[launcher for launcher in LAUNCHERS if launcher != LAUNCHER])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """As those of the other tests here, with another launcher."""
    with launcher_under_test(tmp_path_factory.mktemp("broker"), request.param) as launcher:
        yield patient_settings(tmp_path_factory.mktemp("faults"), launcher)


def test_a_row_becomes_a_file_or_a_reason(running: Running, settings: Settings) -> None:
    assert running.stack.services.settings.launcher == settings.launcher != LAUNCHER
    good, bad = (running.insert(user_id="user-0005", data_types=[name]) for name in ("user_clicks", "nope"))
    assert running.wait(good).status == "completed"
    document = json.loads(running.file(good))
    assert document["data"]["user_clicks"]
    assert [part["rows"] for part in document["metadata"]["parts"]] == [len(document["data"]["user_clicks"])]
    assert [run["status"] for run in running.finished_runs(good)] == ["SUCCESS"]
    assert (running.wait(bad).status, running.stack.services.vault().keys(bad)) == ("failed", [])
    assert [run["status"] for run in running.finished_runs(bad)] == ["FAILURE"]
