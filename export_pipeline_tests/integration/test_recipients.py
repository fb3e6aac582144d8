"""Files for one recipient: opened by their key alone, in every format, and by nothing that the installation has."""

from __future__ import annotations

import gzip
import io
import os
import pty
import select
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyrage
import pytest
from pyrage import x25519
from typer.testing import CliRunner

from export_pipeline.cli.app import app
from export_pipeline.delivery import Delivery, deliver, save
from export_pipeline.errors import FileNotVerified, InvalidRequest, SealBroken, WrongStatus
from export_pipeline.export_run import ExportRun
from export_pipeline.models import Actor, ExportFormat, ExportRequest
from export_pipeline.settings import Settings
from export_pipeline.vault import keys, signing
from export_pipeline.verify import verify
from export_pipeline.wiring import Services, key_file, signing_key_file
from export_pipeline_tests.exporting import execute

ME = Actor(id="tester")
USER = "user-0004"
SCRIPT = Path(__file__).parents[2] / "docs" / "verify_export.py"
needs_age = pytest.mark.skipif(not shutil.which("age"), reason="the age command is not installed")


@dataclass(frozen=True, kw_only=True)
class Person:
    """A key pair."""

    identity: x25519.Identity
    public_key: str

    def opened(self, file: bytes) -> bytes:
        content = pyrage.decrypt(file, [self.identity])
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


@pytest.fixture
def person() -> Person:
    identity = x25519.Identity.generate()
    return Person(identity=identity, public_key=str(identity.to_public()))


@contextmanager
def run_of(services: Services, request: ExportRequest, run_id: str = "run-1") -> Iterator[ExportRun]:
    services.requests.claim(10)
    run = services.run(request.request_id, run_id, reopen=False)
    try:
        yield run
    finally:
        run.close()


def export(services: Services, recipient: str | None, form: str = "json") -> ExportRequest:
    request = services.intake.request(
        user_id=USER, data_types=["user_clicks", "user_errors"], actor=ME, format=form, recipient=recipient
    )
    return execute(services, request.request_id)


def fetch(services: Services, request: ExportRequest) -> Delivery:
    return deliver(services.database, services.vault(), request.request_id, ME)


@pytest.mark.parametrize("form", ExportFormat)
class TestEveryFormat:
    """What holds for each."""

    def test_only_the_recipient_opens_it(self, services: Services, person: Person, form: str, tmp_path: Path) -> None:
        request = export(services, person.public_key, form)
        delivery = fetch(services, request)
        extension = "json.gz" if form == "json" else "zip"
        assert delivery.file_name == f"export-{request.request_id}.{extension}.age"
        file = b"".join(delivery.chunks)
        assert len(file) == delivery.metadata.file_size_bytes == delivery.metadata.stored_size_bytes
        with pytest.raises(pyrage.DecryptError, match="No matching keys"):
            pyrage.decrypt(file, list(keys.load(key_file(services.settings)).identities))
        with pytest.raises(SealBroken, match="not sealed for any of"):
            list(services.vault().open(delivery.metadata.storage_key))
        export_file = tmp_path / "export"
        export_file.write_bytes(person.opened(file))
        [signer] = signing.facts(signing_key_file(services.settings))
        found = verify(export_file, [signer.public_key])
        assert found.user_id == USER
        assert sum(part.rows for part in found.parts.values()) == delivery.metadata.total_records > 0

    def test_it_is_the_only_object_and_no_part_is_left(self, services: Services, person: Person, form: str) -> None:
        request = export(services, person.public_key, form)
        assert services.vault().keys() == [f"{request.request_id}/run-1/export.age"]
        assert services.work().keys() == []

    def test_the_script_verifies_it(self, services: Services, person: Person, form: str, tmp_path: Path) -> None:
        file = tmp_path / "export"
        # As `age -d` gives it: JSON still gzipped.
        content = b"".join(fetch(services, export(services, person.public_key, form)).chunks)
        file.write_bytes(pyrage.decrypt(content, [person.identity]))
        [signer] = signing.facts(signing_key_file(services.settings))
        assert "Signed by the key that you trust" in checked(file, "--key", signer.public_key)
        assert "Unchanged since it was signed by " + signer.public_key in checked(file)
        assert verify(file).signer is not None

    def test_a_changed_file_is_bad_for_both(self, services: Services, form: str, tmp_path: Path) -> None:
        """A byte of the rows, of the counts, of the user: whatever is changed, somebody notices."""
        file = tmp_path / "export"
        save(fetch(services, export(services, None, form)), file)
        checked(file)
        for changed in changes(file.read_bytes(), form):
            file.write_bytes(changed)
            with pytest.raises(FileNotVerified):
                verify(file)
            checked(file, fails=True)


def changes(content: bytes, form: str) -> Iterator[bytes]:
    if form == "json":
        yield content.replace(b'"user_id": "user-0004",\n', b'"user_id": "user-0005",\n', 1)
        yield content.replace(b'"request_type": "custom"', b'"request_type": "audit"')
        yield content.replace(
            b'"data_type": "user_clicks"', b'"data_type": "user_clicks",\n   "data_type": "user_clicks"'
        )
        yield content.replace(b"user-0004", b"user-0005")
        yield content[:-200]
        return
    yield rezipped(
        content, lambda name, text: text.replace(b"user-0004", b"user-0005") if name == "manifest.json" else text
    )
    yield rezipped(
        content, lambda name, text: text.replace(b'"custom"', b'"audit"') if name == "manifest.json" else text
    )
    yield rezipped(content, lambda name, text: text[:-1] if name.startswith("user_clicks.") else text)
    yield content[:-200]


def rezipped(content: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def checked(file: Path, *options: str, fails: bool = False) -> str:
    """Run the script as people do, without our package."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, file, *options], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode != 0) == fails, done
    assert not fails or done.stderr.startswith("BAD: "), done
    return done.stdout


def test_nothing_that_the_run_seals_opens_with_our_keys(services: Services, person: Person) -> None:
    """Not even in the middle, nor for a run that dies there."""
    request = services.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME, recipient=person.public_key)
    with run_of(services, request) as run:
        plan = run.plan()
        part = run.collect(plan, "user_clicks")
        stored = run.render_and_store(plan, [part], {})
        assert services.work().keys() == [part.key]
        for vault, key in ((services.work(), part.key), (services.vault(), stored.key)):
            with pytest.raises(SealBroken, match="not sealed for any of"):
                list(vault.open(key))
        assert person.opened(b"".join(services.vault().sealed(stored.key)))


def test_a_run_that_goes_on_elsewhere_collects_again(services: Services, person: Person) -> None:
    """Another process cannot open the parts, even when they show the same moment; it must not fall back to anything."""
    request = services.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME, recipient=person.public_key)
    with run_of(services, request) as first:
        plan = first.plan()
        part = first.collect(plan, "user_clicks")
    with run_of(services, request) as second:
        second._begin()
        same_moment = replace(part, snapshot_id=second._take_snapshot().info.id)
        done = second.write_metadata(second.render_and_store(plan, [same_moment], {}))
    assert b'"user_clicks": [\n{' in person.opened(b"".join(fetch(services, done).chunks))


@pytest.mark.parametrize("recipient", ["", "age1", "nonsense", "ssh-ed25519 AAAA", "AGE-SECRET-KEY-1QQ"])
def test_a_bad_key_is_refused_at_intake_and_in_the_run(services: Services, recipient: str) -> None:
    with pytest.raises(InvalidRequest, match="recipient"):
        services.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME, recipient=recipient)
    assert services.requests.search() == []
    with services.database.connect() as connection:
        connection.execute(
            "INSERT INTO export_pipeline.export_requests"
            " (request_id, user_id, requested_by, request_type, data_types, format, recipient)"
            " VALUES ('r', %s, 'psql', 'custom', '{user_clicks}', 'json', %s)",
            [USER, recipient],
        )
    with run_of(services, services.requests.get("r")) as run:
        for step in (run.plan, run.plan):
            with pytest.raises(InvalidRequest, match="recipient"):
                step()
        with pytest.raises(InvalidRequest, match="recipient"):
            run.render_and_store(Any, [], {})  # type: ignore[arg-type]
    assert services.vault().keys() == services.work().keys() == []


def test_the_installation_is_no_recipient(services: Services) -> None:
    [own] = keys.facts(key_file(services.settings))
    request = services.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME, recipient=own.public_key)
    with run_of(services, request) as run, pytest.raises(InvalidRequest, match="installation itself"):
        run.plan()


@pytest.mark.parametrize("changed", [None, "age1other"])
def test_nobody_changes_the_recipient_of_a_request(services: Services, person: Person, changed: str | None) -> None:
    request = services.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME, recipient=person.public_key)
    with pytest.raises(psycopg.errors.CheckViolation), services.database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_requests SET recipient = %s", [changed])
    assert services.requests.get(request.request_id).recipient == person.public_key


def test_requests_for_different_recipients_are_different(services: Services, person: Person) -> None:
    def ask(**asked: Any) -> ExportRequest:
        return services.intake.request(user_id=USER, data_types=["user_clicks"], actor=ME, **asked)

    open_one, sealed = ask(), ask(recipient=person.public_key)
    assert open_one.request_id != sealed.request_id
    assert ask(recipient=person.public_key).request_id == sealed.request_id
    ask(idempotency_key="once", format="csv")
    with pytest.raises(WrongStatus, match="another recipient"):
        ask(idempotency_key="once", format="csv", recipient=person.public_key)


def test_an_expired_file_is_not_handed_out_before_the_purge(services: Services, person: Person) -> None:
    for recipient in (None, person.public_key):
        request = export(services, recipient)
        metadata = services.requests.metadata(request.request_id)
        assert metadata.expires_at - request.completed_at == timedelta(days=7)
        fetch(services, request)
        with services.database.connect() as connection:
            connection.execute("UPDATE export_pipeline.export_metadata SET expires_at = now()")
        with pytest.raises(WrongStatus, match="it has expired"):
            fetch(services, request)


# --- with the age command


def opened_by_age(file: Path, identity: Path, *, passphrase: str = "") -> bytes:
    """Run `age -d` on a terminal of its own, because it asks for passphrases there."""
    out = file.with_suffix(".out")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("age", ["age", "-d", "-i", str(identity), "-o", str(out), str(file)])
    said = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            said += os.read(terminal, 4096)
        except OSError:
            break
        if passphrase and said.rstrip().endswith(b":"):
            os.write(terminal, passphrase.encode() + b"\n")
            passphrase = ""
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, said
    return out.read_bytes()


@needs_age
@pytest.mark.parametrize("kind", ["age", "ed25519", "rsa"])
def test_the_age_command_opens_it(services: Services, tmp_path: Path, kind: str) -> None:
    identity = tmp_path / "key"
    if kind == "age":
        subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
        public = subprocess.run(["age-keygen", "-y", identity], check=True, capture_output=True, text=True).stdout
    elif shutil.which("ssh-keygen"):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "ada@example.org", "-f", identity], check=True)
        public = identity.with_suffix(".pub").read_text()
    else:
        pytest.skip("ssh-keygen is not installed")
    request = export(services, public)
    assert "ada@" not in request.recipient
    save(fetch(services, request), tmp_path / "export.age")
    assert verify_bytes(opened_by_age(tmp_path / "export.age", identity), tmp_path)


@needs_age
def test_a_passphrase_makes_a_key_that_only_the_person_opens(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passphrase = "four words are enough"
    as_in(services.settings, monkeypatch)
    asked = CliRunner().invoke(
        app,
        ["request", "-u", USER, "-t", "user_clicks", "--passphrase", "--key-out", str(tmp_path / "key.age")],
        input=f"{passphrase}\n{passphrase}\n",
    )
    assert asked.exit_code == 0, asked
    [request] = services.requests.search()
    assert request.recipient.startswith("age1")
    assert (tmp_path / "key.age").stat().st_mode & 0o777 == 0o600
    save(fetch(services, execute(services, request.request_id)), tmp_path / "export.age")
    content = opened_by_age(tmp_path / "export.age", tmp_path / "key.age", passphrase=passphrase)
    assert verify_bytes(content, tmp_path)


def verify_bytes(content: bytes, folder: Path) -> bool:
    (folder / "opened").write_bytes(content)
    return bool(verify(folder / "opened").parts)


# --- the command line


def as_in(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(settings.home))
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", settings.database_url.get_secret_value())


@pytest.mark.parametrize(
    ("options", "typed"),
    [
        (["--passphrase"], "too short\ntoo short\n"),
        (["--passphrase", "--recipient", "age1"], ""),
        (["--key-out", "x"], ""),
        (["--recipient", "nonsense"], ""),
        (["--recipient", "@nowhere"], ""),
        (["--recipient", ""], ""),
        (["--passphrase", "-t", "unknown"], "four words are enough\nfour words are enough\n"),
    ],
)
def test_what_is_wrong_leaves_no_request_and_no_key(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], typed: str
) -> None:
    as_in(services.settings, monkeypatch)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(app, ["request", "-u", USER, "-t", "user_clicks", *options], input=typed)
    assert done.exit_code != 0
    assert services.requests.search() == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_recipient_may_stand_in_a_file(
    services: Services, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_in(services.settings, monkeypatch)
    (tmp_path / "key.pub").write_text(f"# mine\n\n{person.public_key}\n")
    done = CliRunner().invoke(
        app, ["request", "-u", USER, "-t", "user_clicks", "--recipient", f"@{tmp_path / 'key.pub'}"]
    )
    assert done.exit_code == 0, done
    assert [request.recipient for request in services.requests.search()] == [person.public_key]
    (tmp_path / "key.pub").write_text(f"{person.public_key}\n{person.public_key}\n")
    done = CliRunner().invoke(app, ["request", "-u", USER, "--recipient", f"@{tmp_path / 'key.pub'}"])
    assert isinstance(done.exception, InvalidRequest)
