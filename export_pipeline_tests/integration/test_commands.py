"""What the command line prints, for people and for machines, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from export_pipeline.models import Actor
from export_pipeline.wiring import Services

ME = Actor(id="tester")
USER = "user-0004"


@pytest.fixture
def here(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The commands work on this installation."""
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(services.settings.home))
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", services.settings.database_url.get_secret_value())
    return services


def run(*words: str | bytes) -> subprocess.CompletedProcess[str]:
    """Start the command as a shell does: what is told about its end counts."""
    code = "from export_pipeline.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def document(*words: str, code: int) -> Any:
    """Run with `--json`: one document, nothing on the error stream."""
    done = run(*words, "--json")
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


@pytest.mark.usefixtures("here")
def test_a_wait_in_vain_is_one_document() -> None:
    words = ("request", "-u", USER, "-t", "user_clicks", "--wait", "--timeout", "0.1")
    assert document(*words, code=1)["status"] == "pending"


def test_the_findings_of_the_doctor_are_one_document(here: Services) -> None:
    (here.settings.home / "keys" / "age.txt").unlink()
    verdicts = {found["verdict"] for found in document("doctor", code=1)["findings"]}
    assert "bad" in verdicts


def test_missing_files_are_reported_in_one_document(here: Services) -> None:
    made = here.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME)
    export(here, made.request_id)
    here.vault().delete_below(made.request_id)
    assert document("purge", code=1)["missing"] == [made.request_id]


def export(services: Services, request_id: str) -> None:
    """Do what a run does, without Dagster."""
    services.requests.claim(1)
    run = services.run(request_id, "run-1", reopen=False)
    try:
        plan = run.plan()
        parts = [run.collect(plan, planned.data_type) for planned in plan.types]
        run.write_metadata(run.render_and_store(plan, parts, {}))
    finally:
        run.close()
