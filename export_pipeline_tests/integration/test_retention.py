"""The purge: what goes, what stays, and that it may be killed at every point."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from obstore.store import LocalStore
from typer.testing import CliRunner

from export_pipeline.cli.app import app
from export_pipeline.db.files import FileStore, HeldRequest
from export_pipeline.defs import retention as door
from export_pipeline.delivery import deliver
from export_pipeline.errors import FileNotVerified, WrongStatus
from export_pipeline.models import Actor, AuditAction, ExportMetadata, ExportRequest, RequestStatus
from export_pipeline.retention import Purge, Retention
from export_pipeline.settings import Settings
from export_pipeline.vault.store import Vault
from export_pipeline.wiring import Services
from export_pipeline_tests import past

ME = Actor(id="tester")
LONG_AGO = timedelta(days=40)
_numbers = itertools.count(1)


class Installation:
    """Requests with files, made without a source."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.vault, self.work = services.vault(), services.work()
        self.root = services.settings.home / "storage"

    def completed(self, *, kind: str = "custom") -> ExportRequest:
        services = self.services
        request = services.intake.request(
            user_id=f"user-{next(_numbers)}", data_types=["user_clicks"], actor=ME, kind=kind
        )
        services.requests.claim(100)
        services.requests.start(request.request_id, "run", reopen=False)
        stored = self.vault.store(f"{request.request_id}/run/export.age", [b"text"])
        return services.requests.complete(
            ExportMetadata(
                request_id=request.request_id, user_id=request.user_id, total_records=1, data_types_included=(),
                export_date=request.requested_at, file_size_bytes=4, format="json", stored_size_bytes=stored.size,
                sha256="", storage_key=stored.key, content_encoding="identity", sealed_for=stored.sealed_for,
                manifest={"data_types": ["user_clicks"], "not_exported": []},
            ),
            run_id="run", file_url=stored.url, partial="", retention=services.settings.retention(kind),
        )  # fmt: skip

    def over(self, request: ExportRequest) -> str:
        self.execute("UPDATE export_pipeline.export_metadata SET expires_at = now() WHERE request_id = %s", request)
        return request.request_id

    def execute(self, statement: str, request: ExportRequest) -> None:
        with self.services.database.connect() as connection:
            connection.execute(statement.encode(), [request.request_id])

    def age(self, by: timedelta = LONG_AGO) -> None:
        """Make everything that is stored older."""
        for root in (self.root, self.services.settings.home / "work"):
            for path in root.rglob("*"):
                before = path.stat().st_mtime - by.total_seconds()
                os.utime(path, (before, before))

    def purge(self, **options: Any) -> Purge:
        return self.services.retention.purge(**options)

    def status(self, request: ExportRequest) -> str:
        return self.services.requests.get(request.request_id).status.value

    def trail(self, request: ExportRequest) -> list[str]:
        return [entry.action for entry in self.services.requests.trail(request.request_id)]


@pytest.fixture
def made(services: Services) -> Installation:
    return Installation(services)


def test_a_file_goes_when_its_time_is_over(made: Installation) -> None:
    over, kept = made.completed(), made.completed()
    made.over(over)
    done = made.purge()
    assert (done.expired, done.removed, done.missing, done.leftovers) == ([over.request_id], [over.request_id], [], 0)
    assert done.freed_bytes > 0
    assert (made.status(over), made.status(kept)) == ("expired", "completed")
    assert made.vault.keys() == [f"{kept.request_id}/run/export.age"]
    assert made.trail(over)[-2:] == ["export_expired", "file_removed"]
    metadata = made.services.requests.metadata(over.request_id)
    assert metadata.removed_at is not None
    assert made.services.requests.get(over.request_id).file_url is None
    with pytest.raises(WrongStatus, match="the request is expired"):
        deliver(made.services.database, made.vault, over.request_id, ME)


def test_nothing_to_do_does_nothing(made: Installation) -> None:
    kept = made.completed()
    first = made.purge()
    assert first == made.purge() == Purge(dry_run=False)
    assert made.trail(kept)[-1] == "export_completed"


def test_each_request_type_has_its_time(services: Services, settings: Settings) -> None:
    chosen = settings.model_copy(update={"retention_days_backup": 30, "retention_days": 3})
    made = Installation(replace(services, settings=chosen))
    lasting = {}
    for kind in ("backup", "audit"):
        request = made.completed(kind=kind)
        expires_at = services.requests.metadata(request.request_id).expires_at
        lasting[kind] = (expires_at - request.completed_at).days
    assert lasting == {"backup": 30, "audit": 3}
    assert chosen.longest_retention == timedelta(days=30)


def test_looking_changes_nothing(made: Installation) -> None:
    over, lost = made.completed(), made.completed()
    made.over(over)
    made.vault.delete_below(lost.request_id)
    made.vault.store(f"{over.request_id}/dead/export.age", [b"x"])
    made.age()
    before = (made.trail(over), made.trail(lost), made.vault.keys())
    looked = made.purge(dry_run=True)
    assert (made.trail(over), made.trail(lost), made.vault.keys()) == before
    assert made.status(over) == "completed"
    done = made.purge()
    assert replace(looked, dry_run=False) == done
    assert (done.leftovers, done.missing) == (1, [lost.request_id])


@pytest.mark.parametrize("status", ["failed", "cancelled", "rejected", "expired", "deleted"])
def test_what_requests_that_ended_left_goes(made: Installation, status: str) -> None:
    request = made.completed()
    made.execute(f"UPDATE export_pipeline.export_requests SET status = '{status}' WHERE request_id = %s", request)
    made.work.store(f"{request.request_id}/dead/user_clicks.part", [b"x"])
    made.age()
    made.purge()
    assert made.vault.keys() == made.work.keys() == []


def test_parts_of_a_run_that_died_after_completing_go_and_its_file_stays(made: Installation) -> None:
    request = made.completed()
    made.work.store(f"{request.request_id}/run/user_clicks.part", [b"x"])
    assert made.purge().leftovers == 0
    made.age()
    assert made.purge().leftovers == 1
    assert made.work.keys() == []
    assert made.vault.keys() == [f"{request.request_id}/run/export.age"]


def test_half_an_upload_goes(made: Installation) -> None:
    request = made.completed()
    folder = made.root / request.request_id / "dead"
    folder.mkdir()
    (folder / "export.age#7").write_bytes(b"half")
    assert made.purge().leftovers == 0, "it is young: a run may be writing it"
    made.age()
    assert made.purge().leftovers == 1
    assert not folder.exists()
    assert made.vault.keys() == [f"{request.request_id}/run/export.age"]


@pytest.mark.parametrize("status", ["awaiting_approval", "pending", "processing"])
def test_what_a_run_may_be_making_stays(made: Installation, status: str) -> None:
    request = made.services.intake.request(user_id="user", data_types=["user_clicks"], actor=ME)
    made.execute(f"UPDATE export_pipeline.export_requests SET status = '{status}' WHERE request_id = %s", request)
    made.vault.store(f"{request.request_id}/run/export.age", [b"x"])
    made.work.store(f"{request.request_id}/run/user_clicks.part", [b"x"])
    made.age()
    assert made.purge() == Purge(dry_run=False)
    assert len(made.vault.keys() + made.work.keys()) == 2


def test_what_a_live_run_holds_stays_whatever_the_status(made: Installation) -> None:
    """A run whose request was cancelled finds out at its next step, and clears up itself."""
    request = made.completed()
    made.over(request)
    run = made.services.run(request.request_id, "run", reopen=False)
    run._lease.acquire()
    try:
        done = made.purge()
        assert (done.expired, done.removed, done.busy) == ([request.request_id], [], [request.request_id])
        assert made.vault.keys()
    finally:
        run.close()
    assert made.purge().removed == [request.request_id]
    assert made.vault.keys() == []


def test_young_leftovers_stay(made: Installation) -> None:
    request = made.completed()
    made.execute("UPDATE export_pipeline.export_requests SET status = 'failed' WHERE request_id = %s", request)
    made.execute("DELETE FROM export_pipeline.export_metadata WHERE request_id = %s", request)
    assert made.purge() == Purge(dry_run=False)
    assert made.vault.keys()


def test_objects_of_unknown_requests_go_when_no_promise_lasts_so_long(made: Installation) -> None:
    """Another installation may share the store, or our tables may be older than it."""
    made.vault.store("unknown/run/export.age", [b"x"])
    made.age(timedelta(days=7, hours=23))
    assert made.purge().foreign == 1
    made.age(timedelta(hours=2))
    done = made.purge()
    assert (done.leftovers, done.foreign, made.vault.keys()) == (1, 0, [])


@pytest.mark.parametrize(
    "name", ["notes.txt", "a/b", "a/b/c/export.age", "a/b/export.age.bak", "doctor-1/probe", "a/b/x.exe"]
)
def test_what_is_not_ours_is_never_touched(made: Installation, name: str) -> None:
    file = made.root / name
    made.vault.keys()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"precious")
    made.age()
    assert made.purge().foreign == 1
    assert file.read_bytes() == b"precious"


def test_a_probe_of_doctor_goes(made: Installation) -> None:
    made.vault.store("doctor-0123456789abcdef/probe", [b"x"])
    made.age()
    assert made.purge().leftovers == 1
    assert made.vault.keys() == []


def test_a_missing_file_is_reported_once_in_the_trail_and_each_time_to_who_asks(made: Installation) -> None:
    request = made.completed()
    made.vault.delete_below(request.request_id)
    for _ in range(3):
        assert made.purge().missing == [request.request_id]
    assert made.trail(request).count("file_missing") == 1
    assert made.status(request) == "completed"
    made.over(request)
    assert made.purge().missing == []
    assert made.trail(request)[-2:] == ["export_expired", "file_removed"]


@pytest.mark.parametrize("removed", [True, False], ids=["at once", "by the purge"])
def test_of_a_deleted_request_the_trail_says_once_that_its_file_went(made: Installation, removed: bool) -> None:
    request = made.completed()
    if removed:
        made.services.intake.delete(request.request_id, ME)
    else:  # its store was away
        made.services.requests.delete(request.request_id, ME)
    expected = [] if removed else ["file_removed"]
    assert made.purge().removed == ([] if removed else [request.request_id])
    assert made.purge().removed == []
    trail = made.trail(request)
    assert trail[trail.index("export_deleted") + 1 :] == expected
    assert made.services.requests.metadata(request.request_id).removed_at is not None
    assert made.vault.keys() == []


def test_a_file_that_is_completed_meanwhile_is_not_missing(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def listing(self: Vault, own: Callable[[Vault], Any] = Vault.listing) -> Any:
        found = own(self)
        requests.append(made.completed())
        return found

    monkeypatch.setattr(Vault, "listing", listing)
    assert made.purge() == Purge(dry_run=False)
    assert [made.status(request) for request in requests] == ["completed"] * 2


def test_a_request_that_is_taken_up_again_meanwhile_keeps_what_it_makes(
    made: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = made.completed()
    made.execute("UPDATE export_pipeline.export_requests SET status = 'failed' WHERE request_id = %s", request)
    made.execute("DELETE FROM export_pipeline.export_metadata WHERE request_id = %s", request)
    made.age()
    hold = FileStore.hold

    def retried(self: FileStore, request_id: str) -> Any:
        with suppress(WrongStatus):
            made.services.intake.retry(request_id, ME)
        return hold(self, request_id)

    monkeypatch.setattr(FileStore, "hold", retried)
    made.purge()
    assert made.vault.keys(), "its next run clears what is old"


# --- killed


class Killed(BaseException):
    """As a kill would: no handler of ours may do anything about it."""


def killing(monkeypatch: pytest.MonkeyPatch, countdown: int) -> None:
    """Die at the n-th call of anything that changes something: before it, and after it."""
    left = [countdown]

    def guarded(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            die(left)
            answer = own(*args, **kwargs)
            die(left)
            return answer

        return call

    for owner, name in ((FileStore, "expire"), (FileStore, "missing"), (HeldRequest, "removed"), (Vault, "delete")):
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))


def die(left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise Killed


def moments() -> Iterator[int]:
    yield from range(60)


def test_it_may_be_killed_anywhere(made: Installation) -> None:
    """After every death: no file of a request that is not expired is gone; one more purge settles everything."""
    survived = False
    for moment in moments():
        over, kept, failed, lost = (made.completed() for _ in range(4))
        made.over(over)
        made.execute("UPDATE export_pipeline.export_requests SET status = 'failed' WHERE request_id = %s", failed)
        made.vault.store(f"{kept.request_id}/dead/export.age", [b"x"])
        made.vault.delete_below(lost.request_id)
        made.age()
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, moment)
            try:
                made.purge()
                survived = True
            except Killed:
                pass
        there = made.vault.keys()
        assert f"{kept.request_id}/run/export.age" in there
        assert made.status(over) == "expired" or f"{over.request_id}/run/export.age" in there
        made.purge()
        assert made.status(over) == "expired"
        assert made.trail(over).count("export_expired") == made.trail(over).count("file_removed") == 1
        assert made.trail(lost).count("file_missing") == 1
        assert made.vault.keys(over.request_id) == made.vault.keys(failed.request_id) == []
        assert made.vault.keys(kept.request_id) == [f"{kept.request_id}/run/export.age"]
        with made.services.database.connect() as connection:
            connection.execute("UPDATE export_pipeline.export_requests SET status = 'deleted'")
        made.purge()
        if survived:
            break
    assert survived
    assert moment > 10


# --- by command and schedule


def test_the_command(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(made.services.settings.home))
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", made.services.database_url)
    over, lost = made.completed(), made.completed()
    made.over(over)
    looked = CliRunner().invoke(app, ["purge", "--dry-run"])
    assert looked.exit_code == 0, looked
    assert made.status(over) == "completed"
    made.vault.delete_below(lost.request_id)
    done = CliRunner().invoke(app, ["purge", "--json"])
    assert f'"removed": [\n  "{over.request_id}"' in done.stdout
    assert f'"missing": [\n  "{lost.request_id}"' in done.stdout
    assert (done.exit_code, json.loads(done.stdout)["missing"]) == (1, [lost.request_id])
    shown = CliRunner().invoke(app, ["purge"])
    assert isinstance(shown.exception, FileNotVerified)


def test_a_store_in_the_cloud_is_swept_alike(made: Installation, tmp_path: Path) -> None:
    """By the library's listing, as an S3 store gives it, instead of a walk through the folder."""
    over = made.completed()
    vault = made.services.vault()
    vault._folder = None
    vault.__dict__["_store"] = LocalStore(made.root)
    made.over(over)
    retention = Retention(database=made.services.database, vault=vault, work=made.work, longest=timedelta(days=7))
    assert retention.purge().removed == [over.request_id]
    assert made.vault.keys() == []


def test_statuses_of_requests_without_files_are_left_alone(made: Installation) -> None:
    request = made.services.intake.request(user_id="user", data_types=["user_clicks"], actor=ME)
    made.execute(
        "UPDATE export_pipeline.export_requests SET requested_at = '2020-01-01' WHERE request_id = %s", request
    )
    made.purge()
    assert made.services.requests.get(request.request_id).status is RequestStatus.PENDING


def test_two_purges_at_once_do_it_once(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    over = made.completed()
    made.over(over)
    delete, second = Vault.delete, []

    def deleting(self: Vault, found: Any) -> None:
        monkeypatch.setattr(Vault, "delete", delete)
        second.append(made.purge())
        delete(self, found)

    monkeypatch.setattr(Vault, "delete", deleting)
    first = made.purge()
    assert (first.removed, second[0].removed, second[0].busy) == ([over.request_id], [], [over.request_id])
    assert made.trail(over).count("file_removed") == 1


def test_a_database_that_refuses_names_no_file(made: Installation) -> None:
    """The audit row and the move are one statement: without the one there is not the other."""
    over = made.completed()
    made.over(over)
    with made.services.database.connect() as connection:
        connection.execute(
            "ALTER TABLE export_pipeline.export_audit_logs"
            " ADD CONSTRAINT never CHECK (action <> 'export_expired') NOT VALID"
        )
    with pytest.raises(psycopg.errors.CheckViolation):
        made.purge()
    assert made.status(over) == "completed"
    assert made.vault.keys()


def test_the_schedule_does_it_and_says_what_it_did(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    over, lost = made.completed(), made.completed()
    made.over(over)
    made.vault.delete_below(lost.request_id)
    monkeypatch.setattr(door, "services", lambda: made.services)
    with dg.DagsterInstance.ephemeral() as instance:
        result = door.purge_expired.execute_in_process(instance=instance)
    [output] = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_OUTPUT]
    metadata = {name: value.value for name, value in output.event_specific_data.metadata.items()}
    assert (metadata["expired requests"], metadata["removed files"]) == (1, 1)
    assert metadata["missing files"] == [lost.request_id]
    assert made.status(over) == "expired"
    assert door.purge_expired_hourly.default_status is dg.DefaultScheduleStatus.RUNNING


def test_a_store_that_is_another_one_does_not_flood_dagster(
    made: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hour it would lack every file anew."""
    lost = [made.completed() for _ in range(3)]
    for request in lost:
        made.vault.delete_below(request.request_id)
    monkeypatch.setattr(door, "services", lambda: made.services)
    monkeypatch.setattr(door, "_NAMED", 2)
    with dg.DagsterInstance.ephemeral() as instance:
        result = door.purge_expired.execute_in_process(instance=instance)
        told = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == logging.ERROR]
    assert [" is not in the store" in line for line in told] == [True, True, False]
    assert told[2].startswith("3 files are not in the store.")
    [output] = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_OUTPUT]
    assert len(output.event_specific_data.metadata["missing files"].value) == 2


def test_every_file_of_a_store_that_is_another_one_is_missed_and_said_once(made: Installation) -> None:
    """More than are asked for by one statement; the purge comes back every hour."""
    with psycopg.connect(made.services.database.url) as connection:
        past.add_requests(connection, range(1, 1202), ended="now()")
        connection.execute("UPDATE export_pipeline.export_requests SET status = 'deleted' WHERE request_id = 'past-7'")
    for _ in range(2):
        assert sorted(made.purge().missing) == sorted(f"past-{number}" for number in range(1, 1202) if number != 7)
    with made.services.database.connect() as connection:
        query = "SELECT count(*), count(DISTINCT detail) FROM export_pipeline.export_audit_logs WHERE action = %s"
        assert connection.execute(query, [AuditAction.FILE_MISSING]).fetchone() == (1200, 1200)


def test_a_file_that_moved_on_is_not_missed(made: Installation) -> None:
    """Between the look at the tables and the word in the trail a request may be deleted, or have another file."""
    deleted, another, lost = made.completed(), made.completed(), made.completed()
    files = FileStore(made.services.database)
    seen = [state for state in files.tracked() if state.has_file]
    made.execute("UPDATE export_pipeline.export_requests SET status = 'deleted' WHERE request_id = %s", deleted)
    made.execute("UPDATE export_pipeline.export_metadata SET storage_key = 'other' WHERE request_id = %s", another)
    assert files.missing(seen) == [lost.request_id]
