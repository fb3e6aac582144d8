"""What the command line prints, for people and for machines, and how it ends."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from export_pipeline import settings, wiring
from export_pipeline.cli import requests as request_commands
from export_pipeline.cli.app import app
from export_pipeline.errors import ConfigurationError
from export_pipeline.models import Actor
from export_pipeline.wiring import Services
from export_pipeline_tests.exporting import execute

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
    execute(here, made.request_id)
    here.vault().delete_below(made.request_id)
    assert document("purge", code=1)["missing"] == [made.request_id]


@pytest.mark.usefixtures("here")
def test_who_acts_is_the_account_and_not_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever asked could decide about it too."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    asked = document("request", "-u", USER, "-t", "user_clicks", code=0)
    assert asked["requested_by"] == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "words", [("link", "x", "--lifetime", "525601"), ("request", "-u", USER, "-t", "user_clicks", "--timeout", "-1")]
)
def test_numbers_out_of_bounds_are_wrong_calls(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--" in done.stderr


@pytest.mark.usefixtures("here")
def test_the_list_shows_until_when_the_law_wants_an_answer() -> None:
    document("request", "-u", USER, "-t", "user_clicks", code=0)
    asked = document("request", "-u", USER, "--request-type", "gdpr", code=0)
    head, _, *rows = run("list").stdout.split("\n\n")[0].strip().splitlines()
    assert head.split()[-1] == "due"
    assert [row.split()[-1] for row in rows] == [asked["due_at"][:10], "-"]


@pytest.mark.usefixtures("here")
def test_a_status_that_there_is_not_is_a_wrong_call() -> None:
    """And no empty list: nobody would find what they misspelt."""
    done = run("list", "--status", "complete")
    assert (done.returncode, done.stdout) == (2, "")
    assert "completed" in done.stderr
    assert document("list", "--status", "awaiting_approval", code=0) == {"requests": []}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "words",
    [
        ("status", b"\xff"),
        ("list", "--user", b"\xff"),
        ("reject", "x", "--reason", b"\xff"),
        ("link", "--revoke", b"\xff"),
        ("audit", "export", "--request", b"\xff"),
    ],
    ids=lambda words: words[0],
)
def test_bytes_that_are_no_text_are_explained(words: tuple[str | bytes, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: What was asked holds bytes that are no text. Use UTF-8.\n"


def test_a_path_that_is_no_text_is_still_json() -> None:
    done = run("verify", b"/nowhere/\xff", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["error"] == "ConfigurationError"


def test_nothing_that_is_shown_gives_orders_to_the_terminal(here: Services) -> None:
    made = here.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME)
    with here.database.connect() as connection:
        connection.execute(
            "UPDATE export_pipeline.export_requests SET error_message = %s", ["\x1b[2J\x9b1m[red]\u202e"]
        )
    shown = run("status", made.request_id).stdout
    assert not set(shown) & {"\x1b", "\x9b", "\u202e"}
    assert r"\x1b[2J\x9b1m[red]\u202e" in shown


def test_a_file_may_have_any_name(here: Services, tmp_path: Path) -> None:
    made = here.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME)
    execute(here, made.request_id)
    file = tmp_path / "[bold]of a[/]person.json"
    file.parent.mkdir()
    done = run("download", made.request_id, "-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "[bold]of a[/]person.json" in done.stdout.replace("\n", "")
    assert file.exists()


def test_the_url_of_a_database_of_ones_own_is_printed(here: Services) -> None:
    url = here.settings.database_url.get_secret_value()
    assert run("database-url").stdout == f"{url}\n"
    assert document("database-url", code=0) == {"database_url": url, "psql": None}


def test_the_embedded_database_is_reached_by_psql_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that anybody writes there is a request; and what fails tells how to get tables."""
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(tmp_path / "home"))
    assert document("database-url", code=1)["hint"].startswith("Start `export-pipeline up`")
    with wiring.connect(settings.load()) as services:
        found = document("database-url", code=0)
        assert run("database-url").stdout == f"{found['database_url']}\n"
        statement = (
            "INSERT INTO export_requests (user_id, requested_by, request_type, data_types, format)"
            " VALUES ('42', 'me', 'custom', '{user_clicks}', 'json')"
        )
        subprocess.run([found["psql"], "-qX", "-c", statement, found["database_url"]], check=True, timeout=60)
        [made] = services.requests.search()
        with pytest.raises(ConfigurationError) as refused:
            execute(services, made.request_id)
        assert "`export-pipeline demo`" in refused.value.hint
        assert "EXPORT_PIPELINE_SOURCE_URL" in refused.value.hint
    assert document("database-url", code=1)["error"] == "ConfigurationError"


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_who_waits_hears_when_nothing_seems_to_run(
    here: Services, words: tuple[str, ...], claimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_commands, "_SOON_S", 0.1)
    if claimed:
        here.intake.request(user_id=USER, data_types=["user_profile"], actor=ME)
        assert here.requests.claim(1)
    asked = ["request", "-u", USER, "-t", "user_clicks", "--wait", "--timeout", "0.2", *words]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1
    assert ("`export-pipeline up`" in done.stderr) is (not words and not claimed)


def test_a_changed_value_is_told_by_its_hash(here: Services, tmp_path: Path) -> None:
    """Rows and bytes are as many as before: to compare them would say nothing."""
    made = here.intake.request(user_id=USER, data_types=["user_profile"], actor=ME)
    execute(here, made.request_id)
    file = tmp_path / "export.json"
    assert run("download", made.request_id, "-o", str(file)).returncode == 0
    before, after = file.read_bytes(), f'"{USER[:-1]}5"'.encode()
    first = before.index(b'"data"')
    file.write_bytes(before[:first] + before[first:].replace(f'"{USER}"'.encode(), after, 1))
    message = document("verify", str(file), code=1)["message"]
    assert "SHA-256" in message
    assert "were found" not in message
    file.write_bytes(before[:first] + before[first:].replace(f'"{USER}"'.encode(), b'"?"', 1))
    assert "bytes were found" in document("verify", str(file), code=1)["message"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("head", ["zz", "0" * 63, "", "A" * 64])
def test_a_head_that_is_no_hash_is_no_sign_of_tampering(head: str) -> None:
    assert document("audit", "verify", "--head", head, code=1)["message"] == "The kept head is no hash."


@pytest.mark.usefixtures("here")
def test_up_tells_of_a_variable_that_sets_nothing(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", f"postgresql://127.0.0.1:{closed_port}/x")
    monkeypatch.setenv("EXPORT_PIPELINE_STORGE_URL", "s3://canary")
    done = run("up")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "Warning: EXPORT_PIPELINE_STORGE_URL sets nothing. Is EXPORT_PIPELINE_STORAGE_URL meant?\n"
    )
    assert "canary" not in done.stderr
