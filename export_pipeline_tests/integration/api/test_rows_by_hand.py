"""Rows that somebody wrote by hand: refused, or read and worked on like any other. None stands in another's way."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta

import psycopg
import pytest
from typer.testing import CliRunner

from export_pipeline.cli.app import app
from export_pipeline_tests.integration.api.conftest import SUBJECT, Api

#: Column → what a program of ours never writes there.
STRANGE = {
    "attempt": ["2147483647", "1000000", "-1"],
    "claimed_at": ["'infinity'", "'-infinity'", "'9000-01-01'", "'1999-01-01'"],
    "started_at": ["'infinity'", "'-infinity'", "'0044-03-15 BC'"],
    "completed_at": ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'12000-01-01'", "'9000-01-01'"],
    "warned_at": ["'infinity'"],
    "due_at": ["'9000-01-01'"],
    "requested_at": ["'9000-01-01'", "'0001-01-02 UTC'"],
    "run_id": ["''", "'no run of Dagster''s'", "repeat('x', 255)"],
    "sameness": ["''", "'mine'"],
    "idempotency_key": ["''", "'mine'"],
    "decided_by": ["''", "'somebody'"],
    "request_type": ["''", "'surprise'"],
    "format": ["''", "'surprise'"],
    "data_types": ["'{}'", "'{\"\"}'", "'{no such type}'"],
    "anonymize": ["''", "'no such profile'"],
    "recipient": ["''", "'no key'"],
    "file_url": ["''", "'nowhere'"],
    "error_message": ["''", "'two\nlines'"],
}
STATUSES = ("pending", "processing", "completed", "failed")
_INSERT = """
INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, {columns})
VALUES ('strange', %s, 'by hand', {values})
"""
_METADATA = """
INSERT INTO export_pipeline.export_metadata (request_id, user_id, stored_size_bytes, sha256, storage_key,
    content_encoding, manifest, {column}) VALUES ('strange', 'u', 1, '', '', 'identity', '{{}}', {value})
"""


def write(api: Api, status: str, column: str, value: str) -> None:
    """Insert the row, if the table takes it."""
    written = {"request_type": "'custom'", "format": "'json'", "status": f"'{status}'", column: value}
    statement = _INSERT.format(columns=", ".join(written), values=", ".join(written.values()))
    with psycopg.connect(api.services.database_url) as connection, suppress(psycopg.errors.CheckViolation):
        connection.execute(statement.encode(), [SUBJECT])


def reads(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, who in (("/api/exports", "auditor"), (f"/api/exports/user/{SUBJECT}/history", "subject")):
        assert api("GET", path, by=who).status_code == 200, path
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(api.services.settings.home))
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", api.services.database_url)
    listed = CliRunner().invoke(app, ["list", "--json"])
    assert listed.exit_code == 0
    assert json.loads(listed.stdout)["requests"]


@pytest.mark.parametrize(("column", "value"), [(name, value) for name, some in STRANGE.items() for value in some])
def test_no_row_stands_in_the_way_of_another(
    column: str, value: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, beside = api.services.requests, ""
    for status in STATUSES:
        write(api, status, column, value)
        # Whoever asks is the next one; and the one who comes after.
        beside = api.ask(by="operator", user_id="user-0001")
        assert beside in {claim.request_id for claim in store.claim(10)}, status
        if status in ("pending", "completed"):
            reads(api, monkeypatch)
        for stalled in store.stalled(grace=timedelta(0)):
            store.requeue(stalled, max_attempts=10, detail="nobody works on it")
        assert beside in {claim.request_id for claim in store.claim(10)}, status
        with psycopg.connect(api.services.database_url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("DELETE FROM export_pipeline.export_requests")


@pytest.mark.parametrize("status", ["awaiting_approval", "pending", "processing"])
def test_nobody_has_begun_what_was_not_there_before(api: Api, status: str) -> None:
    """Whatever the row says: else it would count as in flight, and nobody would ever look at it."""
    write(api, status, "claimed_at, started_at, attempt, run_id", "'9000-01-01', '9000-01-01', 7, 'run'")
    found = api.services.requests.get("strange")
    assert (found.attempt, found.run_id) == (0, None)
    waiting = status == "awaiting_approval"
    assert found.status == (status if waiting else "pending")
    assert [(claim.request_id, claim.attempt) for claim in api.services.requests.claim(10)] == (
        [] if waiting else [("strange", 1)]
    )


def test_a_claim_of_the_future_is_no_claim(api: Api) -> None:
    request_id = api.ask()
    with psycopg.connect(api.services.database_url) as connection:
        connection.execute("UPDATE export_pipeline.export_requests SET claimed_at = '9000-01-01', attempt = 1000000")
    [stalled] = api.services.requests.stalled(grace=timedelta(seconds=20))
    api.services.requests.requeue(stalled, max_attempts=2_000_000, detail="nobody works on it")
    assert [(claim.request_id, claim.attempt) for claim in api.services.requests.claim(10)] == [(request_id, 1)]


@pytest.mark.parametrize("column", ["export_date", "expires_at", "removed_at"])
@pytest.mark.parametrize("value", ["'infinity'", "'-infinity'", "'0044-03-15 BC'"])
def test_times_of_files_are_those_of_a_calendar(api: Api, column: str, value: str) -> None:
    write(api, "completed", "completed_at", "now()")
    with psycopg.connect(api.services.database_url) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(_METADATA.format(column=column, value=value).encode())
