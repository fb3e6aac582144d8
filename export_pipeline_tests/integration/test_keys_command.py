"""`export-pipeline keys`: made, shown, rotated while exports run; private halves are never printed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from pydantic import SecretStr
from pyrage import x25519
from typer.testing import CliRunner

from export_pipeline import settings as settings_module
from export_pipeline.cli.account import account
from export_pipeline.cli.app import app
from export_pipeline.delivery import deliver
from export_pipeline.errors import ConfigurationError, KeyUnusable
from export_pipeline.models import Actor, ExportRequest
from export_pipeline.vault import keys, signing
from export_pipeline.verify import verify
from export_pipeline.wiring import Services, key_file, signing_key_file

ME = Actor(id="tester")


@pytest.fixture
def here(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The command works on this installation."""
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(services.settings.home))
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", services.settings.database_url.get_secret_value())
    return services


def call(*words: str) -> Result:
    done = CliRunner().invoke(app, ["keys", *words])
    assert "AGE-SECRET" not in done.output
    assert "SIGNING-KEY-1" not in done.output
    return done


def listed() -> Any:
    done = call("list", "--json")
    assert done.exit_code == 0, done
    return json.loads(done.stdout)


def export(services: Services, run_id: str = "run-1", *, between: Any = None) -> ExportRequest:
    request = services.intake.request(user_id="user-0004", data_types=["user_clicks"], actor=ME, request_id=run_id)
    services.requests.claim(10)
    run = services.run(request.request_id, run_id, reopen=False)
    try:
        plan = run.plan()
        parts = [run.collect(plan, "user_clicks")]
        if between:
            between()
        return run.write_metadata(run.render_and_store(plan, parts, {}))
    finally:
        run.close()


def fetch(services: Services, request: ExportRequest) -> bytes:
    return b"".join(deliver(services.database, services.vault(), request.request_id, ME).chunks)


def test_the_list_tells_what_each_key_is_needed_for(here: Services) -> None:
    first = export(here, "a")
    [old] = listed()["keys"]
    assert (old["seals"], old["files"]) == (True, 1)
    assert json.loads(call("rotate", "--json").stdout)["public_key"] != old["public_key"]
    second = export(here, "b")
    new, kept = listed()["keys"]
    assert [(key["seals"], key["files"]) for key in (new, kept)] == [(True, 1), (False, 1)]
    assert kept["public_key"] == old["public_key"]
    assert new["created"]
    assert all(fetch(here, request) for request in (first, second))
    shown = call("list").stdout
    assert new["public_key"] in shown
    assert "seals and opens" in shown


def test_a_rotation_stands_in_the_trail(here: Services) -> None:
    sealing = json.loads(call("rotate", "--json").stdout)
    signing = json.loads(call("rotate", "--signing", "--json").stdout)
    assert (sealing["in_trail"], signing["in_trail"]) == (True, True)
    with here.database.connect() as connection:
        rows = connection.execute(
            "SELECT action, actor, detail FROM export_pipeline.export_audit_logs ORDER BY log_id"
        ).fetchall()
    assert rows == [
        ("key_rotated", account(), f"{sealing['public_key']} seals"),
        ("key_rotated", account(), f"{signing['public_key']} signs"),
    ]


def test_a_key_is_rotated_also_where_the_database_is_away(here: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    before = keys.facts(key_file(here.settings))
    done = call("rotate")
    assert done.exit_code == 0
    assert "does not stand in the audit trail" in done.stdout
    assert len(keys.facts(key_file(here.settings))) == len(before) + 1


def test_files_whose_key_is_gone_are_told(here: Services) -> None:
    request = export(here)
    file = key_file(here.settings)
    file.write_text(f"{x25519.Identity.generate()}\n")
    assert listed()["files_without_key"] == 1
    assert "nobody can open" in call("list").stdout
    with pytest.raises(Exception, match=r"not sealed for any of this installation's keys\. Restore the key file"):
        fetch(here, request)


def test_rotation_in_the_middle_of_an_export(here: Services) -> None:
    """Its parts open with the old key, its file is for the new one."""
    request = export(here, between=lambda: call("rotate"))
    new, old = listed()["keys"]
    assert (new["files"], old["files"]) == (1, 0)
    assert fetch(here, request)


def test_rotations_while_exports_run(here: Services, tmp_path: Path) -> None:
    ended, failures, done = threading.Event(), [], []

    def work() -> None:
        try:
            for number in range(6):
                done.append(export(here, f"r{number}"))
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    rotations = 0
    while not ended.is_set():
        assert call("rotate").exit_code == 0
        assert call("rotate", "--signing").exit_code == 0
        rotations += 1
    thread.join()
    assert failures == []
    assert rotations > 1
    trusted = [key["public_key"] for key in listed()["signing_keys"]]
    for request in done:
        file = tmp_path / request.request_id
        file.write_bytes(fetch(here, request))
        assert verify(file, trusted).signer is not None


def test_a_file_of_a_retired_signing_key_is_believed_for_that_key(here: Services, tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_bytes(fetch(here, export(here)))
    [before] = signing.facts(signing_key_file(here.settings))
    assert call("rotate", "--signing").exit_code == 0
    new, old = listed()["signing_keys"]
    assert (new["signs"], old["signs"], old["public_key"]) == (True, False, before.public_key)
    for key, code in ((old, 0), (new, 1)):
        assert CliRunner().invoke(app, ["verify", str(file), "--key", key["public_key"]]).exit_code == code
    done = CliRunner().invoke(app, ["verify", str(file), "--json"])
    assert json.loads(done.stdout)["signature"] == {
        "key_id": before.key_id,
        "public_key": before.public_key,
        "trusted": False,
    }


def test_a_first_key_is_made_where_there_is_none(
    here: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_KEY_FILE", str(tmp_path / "mine" / "age.txt"))
    with pytest.raises(KeyUnusable):
        keys.load(tmp_path / "mine" / "age.txt")
    assert call("new").exit_code == 0
    assert keys.load(tmp_path / "mine" / "age.txt")
    assert isinstance(call("new").exception, ConfigurationError)


def test_an_identity_for_the_environment(here: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("new", "-o", str(tmp_path / "id")).exit_code == 0
    monkeypatch.setenv("EXPORT_PIPELINE_KEYS", (tmp_path / "id").read_text())
    [key] = listed()["keys"]
    assert key["public_key"] == str(keys.load(tmp_path / "id").recipient)
    for words in (["rotate"], ["new"]):
        assert isinstance(call(*words).exception, ConfigurationError)


def test_two_sources_of_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = str(x25519.Identity.generate())
    monkeypatch.setenv("EXPORT_PIPELINE_KEYS", secret)
    monkeypatch.setenv("EXPORT_PIPELINE_KEY_FILE", "/somewhere")
    with pytest.raises(ConfigurationError, match=r"Settings are wrong: .*EXPORT_PIPELINE_KEYS excludes") as caught:
        settings_module.load()
    assert secret not in str(caught.value)


def test_keys_are_listed_without_a_database(here: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert [key["files"] for key in listed()["keys"]] == [None]


def test_an_export_with_keys_of_the_environment(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = x25519.Identity.generate()
    chosen = services.settings.model_copy(update={"keys": SecretStr(str(identity))})
    key_file(services.settings).unlink()
    monkeypatch.setattr(services, "settings", chosen)
    assert fetch(services, export(services))
    services.__dict__.pop("keys", None)
    monkeypatch.setattr(services, "settings", chosen.model_copy(update={"keys": None}))
    with pytest.raises(KeyUnusable, match="does not exist"):
        export(services, "again")
