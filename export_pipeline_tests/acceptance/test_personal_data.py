"""Personal data is only in the source, in memory and in sealed files: canaries are looked for everywhere else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from export_pipeline.postgres.programs import find_binaries
from export_pipeline_tests.running import PATIENCE_S, Running

USER = "canary-user-5f3a91"
CANARIES = [b"canary-user-5f3a91", b"canary.mail.77@example.org", b"canary-click-0b44", b"canary \xe2\x98\x83 text"]
_ASK = """
INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, data_types, format)
VALUES (%s, 'tester', 'custom', '{user_profile}', 'json') RETURNING request_id
"""
_LONG_CLAIMED = "UPDATE export_pipeline.export_requests SET claimed_at = now() - interval '1 day' WHERE request_id = %s"
#: Refuses every change of the user's requests, and quotes a row as PostgreSQL does.
_REFUSE = """
CREATE FUNCTION export_pipeline.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE check_violation USING MESSAGE = 'no ' || OLD.user_id, DETAIL = 'Failing row contains ' || OLD.user_id;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON export_pipeline.export_requests
FOR EACH ROW WHEN (OLD.user_id LIKE 'canary%') EXECUTE FUNCTION export_pipeline.refuse();
"""


@pytest.fixture(scope="module")
def exported(running: Running) -> Iterator[None]:
    """A user whose every value is a canary, exported well, in part, and not at all."""
    with psycopg.connect(running.stack.services.source_url) as source:
        source.execute(
            "INSERT INTO users (user_id, email, is_active, created_at)"
            " VALUES (%s, 'canary.mail.77@example.org', true, now())",
            [USER],
        )
        source.execute(
            "INSERT INTO user_clicks (user_id, element_id, timestamp)"
            " SELECT %s, 'canary-click-0b44', now() FROM generate_series(1, 500)",
            [USER],
        )
        # The value stands in the text of the error that PostgreSQL gives.
        source.execute("CREATE VIEW leaking AS SELECT user_id, email::int AS value FROM users")
        source.execute("CREATE TABLE numbered (user_id int, note text)")
    with psycopg.connect(running.stack.services.database_url) as connection:
        connection.execute(
            "INSERT INTO export_pipeline.data_type_configs (data_type, table_name, columns_to_export) VALUES"
            " ('leaking', 'leaking', '{user_id,value}'), ('numbered', 'numbered', '{user_id,note}')"
        )
    asked = {
        "completed": [
            running.insert(user_id=USER, data_types=["user_profile", "user_clicks"], format=form)
            for form in ("json", "csv")
        ],
        "partial": [running.insert(user_id=USER, data_types=["user_profile", "leaking", "numbered"])],
        "failed": [
            running.insert(user_id=USER, data_types=["leaking"]),
            running.insert(user_id=USER + "x", data_types=["user_profile"]),
        ],
    }
    for status, ids in asked.items():
        for request_id in ids:
            assert running.wait(request_id).status == status
            running.finished_runs(request_id)
    yield
    with psycopg.connect(running.stack.services.database_url) as connection:
        connection.execute("DELETE FROM export_pipeline.data_type_configs WHERE data_type IN ('leaking', 'numbered')")


def test_a_tick_that_fails_says_so_without_the_text_of_the_database(running: Running, exported: None) -> None:
    """New, and long claimed without a run: one for each sensor. When nothing refuses any more, both are exported."""
    with psycopg.connect(running.stack.services.database_url, autocommit=True) as connection:
        with connection.transaction():  # no sensor sees the rows before their changes are refused
            requests = [connection.execute(_ASK, [USER]).fetchone()[0] for _ in range(2)]  # type: ignore[index]
            connection.execute(_LONG_CLAIMED, [requests[1]])
            connection.execute(_REFUSE)
        try:
            shown = {name: failed_tick(running, name) for name in ("new_export_requests", "reconcile_export_requests")}
        finally:
            connection.execute("DROP FUNCTION export_pipeline.refuse() CASCADE")
    for name, error in shown.items():
        assert name in error["message"]
        assert [cause["message"].split(" at ")[0] for cause in error["causes"]] == [
            "export_pipeline.errors.ExportPipelineError: Unexpected CheckViolation (SQLSTATE 23514)"
        ]
    for request_id in requests:
        assert running.wait(request_id).status == "completed"
        running.finished_runs(request_id)


def failed_tick(running: Running, sensor: str) -> dict[str, Any]:
    """What the UI shows of the first failed tick of a sensor, once there is one."""
    selector = {"repositoryLocationName": "export_pipeline", "repositoryName": "__repository__", "sensorName": sensor}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        ticks = running.graphql(
            """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) { ... on Sensor {
                 sensorState { ticks(statuses: [FAILURE], limit: 1) { error { message stack causes { message } } }
                 } } } }""",
            selector=selector,
        )["sensorOrError"]["sensorState"]["ticks"]
        if ticks:
            return ticks[0]["error"]
        assert time.monotonic() < deadline
        time.sleep(0.2)  # Dagster has nothing that could be waited for from outside


def test_no_canary_in_dagsters_tables_or_in_tickets(running: Running, exported: None) -> None:
    dump = pg_dump(
        running.stack.services.database_url,
        "--schema=dagster",
        "--table=export_pipeline.export_run_tickets",
    )
    assert b"collect_data_type" in dump
    assert found_in(dump) == []


def test_no_canary_in_the_state_folder(running: Running, exported: None) -> None:
    home = running.stack.services.settings.home
    files = [file for file in home.rglob("*") if file.is_file()]
    assert any(file.parent.name == "logs" for file in files)
    assert {str(file): found for file in files if (found := found_in(file.read_bytes() + bytes(file)))} == {}


def test_no_canary_in_the_server_log(running: Running, exported: None, server_url: str) -> None:
    socket_dir = Path(urlsplit(server_url).query.split("host=")[1].split("&")[0].replace("%2F", "/"))
    log = socket_dir.parent / "server.log"
    assert log.stat().st_size > 0
    assert found_in(log.read_bytes()) == []


def test_only_ids_in_our_own_tables(running: Running, exported: None) -> None:
    """The user's id stands where the specification puts it; nothing else of the person is there."""
    dump = pg_dump(running.stack.services.database_url, "--schema=export_pipeline")
    assert CANARIES[0] in dump
    assert [canary for canary in found_in(dump) if canary != CANARIES[0]] == []
    with psycopg.connect(running.stack.services.database_url) as connection:
        leaked = connection.execute(
            "SELECT count(*) FROM export_pipeline.export_requests WHERE error_message LIKE '%%canary%%'"
            " UNION ALL SELECT count(*) FROM export_pipeline.export_audit_logs WHERE detail LIKE '%%canary%%'"
            " UNION ALL SELECT count(*) FROM export_pipeline.export_metadata WHERE manifest::text LIKE '%%canary%%'"
        ).fetchall()
    assert leaked == [(0,), (0,), (0,)]


def pg_dump(url: str, *options: str) -> bytes:
    dumped = subprocess.run(
        [find_binaries() / "pg_dump", "--dbname", url, *options], capture_output=True, check=False, timeout=60
    )
    assert dumped.returncode == 0, dumped.stderr
    return dumped.stdout


def found_in(content: bytes) -> list[bytes]:
    return [canary for canary in CANARIES if canary in content]
