"""Our tables: the same by every way that leads to them, and with the specification's names and types."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from export_pipeline.db import migrate as module
from export_pipeline.db.migrate import Migration, migrate, migrations, require_current
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import RequestStore
from export_pipeline.errors import ConfigurationError, NotMigrated
from export_pipeline.postgres.programs import find_binaries

NEWEST = migrations()[-1].version

#: The specification's tables, with what differs from it on purpose in the comments.
SPECIFIED = {
    "export_requests": {
        "request_id": "character varying(255)",
        "user_id": "character varying(255)",
        "requested_by": "character varying(255)",
        "request_type": "character varying(20)",
        "data_types": "text[]",
        "format": "character varying(10)",
        "status": "character varying(20)",
        "requested_at": "timestamp with time zone",
        "completed_at": "timestamp with time zone",
        "file_url": "text",
        "error_message": "text",
    },
    "export_metadata": {
        "request_id": "character varying(255)",
        "user_id": "character varying(255)",
        "total_records": "bigint",  # INTEGER there: exports are not capped
        "data_types_included": "text[]",
        "export_date": "timestamp with time zone",
        "file_size_bytes": "bigint",
        "format": "character varying(10)",
    },
    "data_type_configs": {
        "data_type": "character varying(100)",
        "table_name": "character varying(255)",  # 100 there: schema and table may have 63 bytes each
        "user_id_column": "character varying(100)",
        "columns_to_export": "text[]",
        "is_sensitive": "boolean",
        "requires_approval": "boolean",
    },
    "export_audit_logs": {
        "log_id": "bigint",  # SERIAL there
        "request_id": "character varying(255)",
        "user_id": "character varying(255)",
        "action": "character varying(50)",
        "timestamp": "timestamp with time zone",
        "ip_address": "character varying(45)",
        "user_agent": "text",
    },
}
INDEXES = {
    "idx_export_user": ("export_requests", "(user_id)"),
    "idx_export_status": ("export_requests", "(status)"),
    "idx_audit_request": ("export_audit_logs", "(request_id)"),
}
DEFAULTS = {
    "user_profile": ("users", ["user_id", "email", "created_at"], True),
    "user_sessions": ("user_sessions", ["session_id", "user_id", "start_time", "end_time"], False),
    "user_clicks": ("user_clicks", ["user_id", "element_id", "timestamp"], False),
    "user_workflows": ("user_workflow_usage", ["user_id", "workflow_id", "timestamp"], False),
    "user_errors": ("user_errors", ["user_id", "error_message", "timestamp"], False),
    "user_feedback": (
        "user_feedback",
        ["feedback_id", "user_id", "rating", "comment", "tags", "details", "created_at"],
        False,
    ),
}


@pytest.fixture(scope="module")
def newest_schema(server_url: str, migrated_template: str) -> str:
    """What an empty database becomes."""
    return schema_of(urlunsplit(urlsplit(server_url)._replace(path=f"/{migrated_template}")))


def schema_of(url: str) -> str:
    dumped = subprocess.run(
        [find_binaries() / "pg_dump", "--schema-only", "--no-owner", url], capture_output=True, text=True, check=True
    ).stdout
    # pg_dump frames its output with a random word.
    return "\n".join(line for line in dumped.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def defaults_of(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT c.*::text, m.name, m.sha256 FROM export_pipeline.data_type_configs AS c"
            " CROSS JOIN export_pipeline.schema_migrations AS m ORDER BY 1, 2"
        ).fetchall()


# --- the ways


@pytest.mark.parametrize("version", [migration.version for migration in migrations()])
def test_every_older_version_becomes_what_an_empty_database_becomes(
    version: int, pg_url: str, tables_url: str, newest_schema: str
) -> None:
    with psycopg.connect(pg_url) as connection:
        first = migrate(connection, up_to=version)
        connection.execute(
            "INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, format)"
            " VALUES ('old', 'u', 'u', 'gdpr', 'json')"
        )
        connection.commit()
        rest = migrate(connection)
        kept = connection.execute("SELECT status FROM export_pipeline.export_requests").fetchall()
    assert [migration.version for migration in (*first, *rest)] == [migration.version for migration in migrations()]
    assert kept == [("pending",)]
    assert schema_of(pg_url) == newest_schema
    assert defaults_of(pg_url) == defaults_of(tables_url)


def test_migrating_again_changes_nothing(tables_url: str) -> None:
    before = schema_of(tables_url)
    with psycopg.connect(tables_url) as connection:
        assert migrate(connection) == []
    assert schema_of(tables_url) == before


def test_versions_are_numbered_without_gaps() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, NEWEST + 1))


def test_of_many_at_once_one_applies(pg_url: str) -> None:
    def one(_: int) -> int:
        with psycopg.connect(pg_url) as connection:
            return len(migrate(connection))

    with psycopg.connect(pg_url, autocommit=True) as gate, ThreadPoolExecutor(4) as threads:
        gate.execute("SELECT pg_advisory_lock(%s)", [module._LOCK])
        applied = threads.map(one, range(4))
        wait_for_waiters(gate, 4)
        gate.execute("SELECT pg_advisory_unlock(%s)", [module._LOCK])
        assert sorted(applied) == [0, 0, 0, len(migrations())]


def wait_for_waiters(connection: psycopg.Connection, number: int) -> None:
    for _ in range(1000):
        row = connection.execute(
            "SELECT count(*), pg_sleep(0.01) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
            " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
        ).fetchone()
        if row and row[0] == number:
            return
    pytest.fail("nobody waits for the lock")


def test_a_failing_migration_leaves_nothing(pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = migrations()
    broken = Migration(version=NEWEST + 1, name="broken", sql="CREATE TABLE export_pipeline.half (); SELECT 1 / 0")
    before = schema_of(pg_url)
    monkeypatch.setattr(module, "migrations", lambda: [*known, broken])
    with psycopg.connect(pg_url) as connection, pytest.raises(psycopg.errors.DivisionByZero):
        migrate(connection)
    assert schema_of(pg_url) == before


# --- strangers


def test_a_changed_file_is_refused_and_nothing_is_applied(pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as connection:
        migrate(connection, up_to=1)
        connection.execute("UPDATE export_pipeline.schema_migrations SET sha256 = 'other' WHERE version = 1")
        before = schema_of(pg_url)
        with pytest.raises(ConfigurationError, match="Migration 1 was changed"):
            migrate(connection)
    assert schema_of(pg_url) == before


def test_a_newer_database_is_refused(migrated_url: str) -> None:
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO export_pipeline.schema_migrations (version, name, sha256) VALUES (%s, 'future', '')",
            [NEWEST + 1],
        )
        with pytest.raises(ConfigurationError, match=f"version {NEWEST + 1} by a newer") as refused:
            migrate(connection)
        with pytest.raises(NotMigrated):
            require_current(connection)
    assert refused.value.hint == "Upgrade this installation."


# --- the check at the start of every process


def test_an_empty_database_is_not_migrated(pg_url: str) -> None:
    with psycopg.connect(pg_url) as connection, pytest.raises(NotMigrated, match="at version 0") as refused:
        require_current(connection)
    assert refused.value.hint == "Run `export-pipeline migrate`."


def test_an_older_database_is_not_migrated(pg_url: str) -> None:
    with psycopg.connect(pg_url) as connection:
        migrate(connection, up_to=1)
        with pytest.raises(NotMigrated, match=f"at version 1, this program needs {NEWEST}"):
            require_current(connection)


def test_the_check_writes_nothing(pg_url: str, tables_url: str) -> None:
    before = schema_of(pg_url)
    with psycopg.connect(pg_url) as connection, pytest.raises(NotMigrated):
        require_current(connection)
    with psycopg.connect(tables_url) as connection:
        connection.read_only = True
        require_current(connection)
    assert schema_of(pg_url) == before


# --- the specification


def columns_of(connection: psycopg.Connection, table: str) -> dict[str, str]:
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = to_regclass('export_pipeline.' || %s) AND attnum > 0 AND NOT attisdropped",
        [table],
    ).fetchall()
    return dict(rows)


@pytest.mark.parametrize("table", SPECIFIED)
def test_the_specified_columns_are_there(table: str, admin: psycopg.Connection) -> None:
    found = columns_of(admin, table)
    assert {name: found.get(name) for name in SPECIFIED[table]} == SPECIFIED[table]


def test_no_column_is_a_timestamp_without_a_zone(admin: psycopg.Connection) -> None:
    naive = admin.execute(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'export_pipeline' AND data_type = 'timestamp without time zone'"
    ).fetchall()
    assert naive == []


def test_the_specified_indexes_are_there(admin: psycopg.Connection) -> None:
    rows = admin.execute(
        "SELECT indexname, tablename, substring(indexdef FROM '\\([^)]*\\)') FROM pg_indexes"
        " WHERE schemaname = 'export_pipeline'"
    ).fetchall()
    found = {name: (table, columns) for name, table, columns in rows}
    assert {name: found.get(name) for name in INDEXES} == INDEXES


def test_the_specified_keys_and_references_are_there(admin: psycopg.Connection) -> None:
    rows = admin.execute(
        "SELECT relname, replace(pg_get_constraintdef(k.oid), 'export_pipeline.', '') FROM pg_constraint AS k"
        " JOIN pg_class AS c ON c.oid = conrelid"
        " WHERE contype IN ('p', 'f') AND connamespace = 'export_pipeline'::regnamespace"
    ).fetchall()
    reference = "FOREIGN KEY (request_id) REFERENCES export_requests(request_id)"
    expected = {
        ("export_requests", "PRIMARY KEY (request_id)"),
        ("export_metadata", "PRIMARY KEY (request_id)"),
        ("data_type_configs", "PRIMARY KEY (data_type)"),
        ("export_audit_logs", "PRIMARY KEY (log_id)"),
        ("export_metadata", reference),
        ("export_audit_logs", reference),
    }
    assert expected <= set(rows)


def test_the_default_configurations_are_there(admin: psycopg.Connection) -> None:
    rows = admin.execute(
        "SELECT data_type, table_name, columns_to_export, is_sensitive FROM export_pipeline.data_type_configs"
        " WHERE user_id_column = 'user_id' AND NOT requires_approval"
    ).fetchall()
    assert {name: (table, columns, sensitive) for name, table, columns, sensitive in rows} == DEFAULTS


def test_our_tables_stay_in_their_schema(new_database: Callable[..., str]) -> None:
    url = new_database()
    with psycopg.connect(url) as connection:
        migrate(connection)
        schemas = connection.execute(
            "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
    assert schemas == [("export_pipeline",)]


#: What a plain INSERT could write and no program of ours could read: column and value.
UNREADABLE = [
    ("data_types", "ARRAY['user_clicks', NULL]"),
    ("data_types", "ARRAY[['user_clicks', 'user_errors'], ['user_profile', NULL]]"),
    ("requested_at", "'infinity'::timestamptz"),
    ("requested_at", "'-infinity'::timestamptz"),
    ("requested_at", "'0044-03-15 BC'::timestamptz"),
    ("requested_at", "'12000-01-01'::timestamptz"),
    ("due_at", "'infinity'::timestamptz"),
    ("completed_at", "'infinity'::timestamptz"),
    ("completed_at", "'-infinity'::timestamptz"),
    ("completed_at", "'12000-01-01'::timestamptz"),
    ("warned_at", "'infinity'::timestamptz"),
]
#: What a plain INSERT could write and the sensors stumbled over.
UNWORKABLE = {
    "attempt": "2147483647",
    "claimed_at": "'infinity'",
    "started_at": "'infinity'",
    "completed_at": "'-infinity'",
    "warned_at": "'infinity'",
}
PLAIN = (
    "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, format, {column})"
    " VALUES ('u', 'u', 'custom', 'json', {value})"
)


@pytest.mark.parametrize(("column", "value"), UNREADABLE)
def test_a_plain_insert_that_nobody_could_read_is_refused(admin: psycopg.Connection, column: str, value: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        admin.execute(PLAIN.format(column=column, value=value).encode())


def test_rows_that_nobody_could_read_are_mended(pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as connection:
        migrate(connection, up_to=12)
        for column, value in UNREADABLE:
            connection.execute(PLAIN.format(column=column, value=value).encode())
        connection.execute(PLAIN.format(column="data_types", value="'{}'").encode())
        migrate(connection)
        rows = connection.execute("SELECT data_types FROM export_pipeline.export_requests").fetchall()
        types = [["user_clicks"], ["user_clicks", "user_errors", "user_profile"], *[[]] * (len(UNREADABLE) - 1)]
        assert sorted(row[0] or [] for row in rows) == sorted(types)
        # Reads them with their times.
        store = RequestStore(database := Database(pg_url))
        assert len(store.search()) == len(types)
        assert len(store.claim(100)) == len(types)
        database.close()


def test_rows_that_stopped_the_queue_are_mended(pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as connection:
        migrate(connection, up_to=15)
        for column, value in UNWORKABLE.items():
            connection.execute(PLAIN.format(column=column, value=value).encode())
        connection.execute(PLAIN.format(column="status, started_at", value="'processing', 'infinity'").encode())
        connection.execute(
            "INSERT INTO export_pipeline.export_metadata (request_id, user_id, stored_size_bytes, sha256, storage_key,"
            " content_encoding, manifest, export_date, expires_at, removed_at) SELECT request_id, user_id, 1, '', '',"
            " 'identity', '{}', '-infinity', 'infinity', 'infinity' FROM export_pipeline.export_requests LIMIT 1"
        )
        migrate(connection)
        [(with_file,)] = connection.execute("SELECT request_id FROM export_pipeline.export_metadata").fetchall()
    store = RequestStore(database := Database(pg_url))
    assert len(store.search()) == len(UNWORKABLE) + 1
    assert len(store.claim(100)) == len(UNWORKABLE)
    assert len(store.stalled(grace=timedelta(0))) == len(UNWORKABLE) + 1
    metadata = store.metadata(with_file)
    assert metadata is not None
    assert (metadata.expires_at.year, metadata.expired) == (9999, False), "who was promised a file for ever keeps it"
    database.close()
