"""A published file stays, whatever goes wrong while it is published and afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from export_pipeline.errors import DatabaseUnavailable, RunNotEntitled, StorageUnavailable
from export_pipeline.export_run import ExportRun, StoredFile
from export_pipeline.models import Actor, ExportRequest, RequestStatus
from export_pipeline.vault.store import Vault
from export_pipeline.wiring import Services

ADMIN = Actor(id="admin")
#: Ends the session of whoever publishes, when it commits: all that a killed server leaves of a transaction is nothing.
_BREAK = """
CREATE FUNCTION break_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER break_session AFTER INSERT ON export_pipeline.export_metadata DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION break_session()
"""
_MEND = "DROP TRIGGER break_session ON export_pipeline.export_metadata"


@pytest.fixture
def request_id(services: Services) -> str:
    made = services.intake.request(actor=ADMIN, user_id="user-0004", data_types=["user_profile"], kind="custom")
    services.requests.claim(10)
    return made.request_id


@pytest.fixture
def run(services: Services, request_id: str) -> Iterator[ExportRun]:
    made = services.run(request_id, "run-1", reopen=False)
    yield made
    made.close()


@pytest.fixture
def stored(run: ExportRun) -> StoredFile:
    plan = run.plan()
    return run.render_and_store(plan, [run.collect(plan, planned.data_type) for planned in plan.types], {})


def check_delivered(services: Services, finished: ExportRequest) -> None:
    assert finished.status is RequestStatus.COMPLETED
    metadata = services.requests.metadata(finished.request_id)
    assert services.vault().keys(finished.request_id) == [metadata.storage_key]
    assert b"".join(services.vault().open(metadata.storage_key))
    assert [entry.action for entry in services.requests.trail(finished.request_id)].count("export_completed") == 1


def test_the_connection_breaks_before_the_commit(services: Services, run: ExportRun, stored: StoredFile) -> None:
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute(_BREAK)
        with pytest.raises(DatabaseUnavailable):
            run.write_metadata(stored)
        assert services.requests.get(run.request_id).status is RequestStatus.PROCESSING
        connection.execute(_MEND)
    check_delivered(services, run.write_metadata(stored))


def test_the_connection_breaks_before_the_answer(
    services: Services, run: ExportRun, stored: StoredFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = run._requests.complete

    def lose_the_answer(*values: object, **named: object) -> ExportRequest:
        complete(*values, **named)
        raise DatabaseUnavailable("Our database cannot be reached.")

    monkeypatch.setattr(run._requests, "complete", lose_the_answer)
    with pytest.raises(DatabaseUnavailable):
        run.write_metadata(stored)
    check_delivered(services, run.write_metadata(stored))


def test_the_work_area_cannot_be_cleared(
    services: Services, run: ExportRun, stored: StoredFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_vault: Vault, _prefix: str) -> None:
        raise StorageUnavailable("The store is away.")

    monkeypatch.setattr(Vault, "delete_below", refuse)
    finished = run.write_metadata(stored)
    monkeypatch.undo()
    check_delivered(services, finished)


def test_a_run_that_ends_badly_after_it_published(services: Services, run: ExportRun, stored: StoredFile) -> None:
    finished = run.write_metadata(stored)
    run.fail("Something went wrong afterwards.")
    run.abandon()
    check_delivered(services, finished)


def test_a_run_that_lost_its_request_discards_its_file(services: Services, run: ExportRun, stored: StoredFile) -> None:
    services.requests.cancel(run.request_id, ADMIN)
    with pytest.raises(RunNotEntitled):
        run.write_metadata(stored)
    run.abandon()
    assert services.vault().keys(run.request_id) == []


def test_another_run_has_published(services: Services, run: ExportRun, stored: StoredFile) -> None:
    run.close()
    with psycopg.connect(services.database_url) as connection:
        connection.execute(
            "UPDATE export_pipeline.export_requests SET status = 'completed', run_id = 'run-2' WHERE request_id = %s",
            [run.request_id],
        )
    with pytest.raises(RunNotEntitled):
        run.write_metadata(stored)
    run.abandon()
    assert services.vault().keys(run.request_id) == []
