"""A request wakes the daemon, also when the sensor has just looked: no request waits for a regular round."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from export_pipeline_tests.running import PATIENCE_S, Running

OURS, PATIENT = "export_pipeline.defs.daemon", "export_pipeline_tests.patient_daemon"


def change_daemon(running: Running, now: str, wanted: str) -> None:
    """End the daemon; the supervisor starts another program in its place."""
    [child] = [child for child in running.stack._children if child.name == "daemon"]
    before = child.process
    assert now in child.command
    child.command = [wanted if word == now else word for word in child.command]
    before.kill()
    deadline = time.monotonic() + PATIENCE_S
    while child.process is before:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the supervisor sends no word


@pytest.fixture
def patient(running: Running) -> Iterator[Running]:
    """The regular rounds of its daemon are further apart than anybody waits here."""
    change_daemon(running, OURS, PATIENT)
    yield running
    change_daemon(running, PATIENT, OURS)


def test_one_after_the_other_none_waits_for_a_regular_round(patient: Running) -> None:
    for _ in range(10):
        request_id = patient.insert(data_types=["user_clicks"])
        assert patient.wait(request_id).status == "completed"
