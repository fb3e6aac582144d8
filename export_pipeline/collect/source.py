"""A connection to the source, protected: read-only, with time limits, and with settings that keep every value exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from export_pipeline.errors import SourceError, SourceRefused, SourceUnavailable

_CONNECT_TIMEOUT_S = 10

#: What PostgreSQL prints must not depend on the role's or the server's settings.
_SESSION = {
    "default_transaction_read_only": "on",
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "xmloption": "content",
    # In SQL of ours a backslash inside quotes is a backslash.
    "standard_conforming_strings": "on",
    # Shared sequential scans start anywhere in the table: without an index the order of rows would vary.
    "synchronize_seqscans": "off",
    # A policy that hides rows would make an incomplete export look complete: with this, PostgreSQL refuses instead.
    "row_security": "off",
    # The snapshot is idle while a part is stored and the file is made.
    "idle_in_transaction_session_timeout": "0",
    # When our machine dies the snapshot must not hold up the source's clean-up for two hours.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
#: The snapshot is one transaction for as long as the run takes. Servers before 17 have no such limit.
_UNLIMITED = "SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'"


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """The one moment that an export shows.

    Attributes:
        id: PostgreSQL's name of the snapshot; equal for everything that saw the same data.
        taken_at: Server time of the transaction.
        lsn: Position in the write-ahead log, where the server lets us see it.
    """

    id: str
    taken_at: datetime
    lsn: str | None


class Snapshot:
    """A REPEATABLE READ, READ ONLY transaction on the source.

    Args:
        connection: The connection that holds the transaction open.
        info: What to say about it in the manifest.
    """

    def __init__(self, connection: psycopg.Connection, info: SnapshotInfo) -> None:
        self.connection = connection
        self.info = info

    def set(self, settings: Mapping[str, str]) -> None:
        """Set session settings for the statements of this snapshot; values are bound.

        Raises:
            SourceError: The source went away.
        """
        with self.attempt() as connection:
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", [name, value])

    @contextmanager
    def attempt(self) -> Iterator[psycopg.Connection]:
        """Run statements that may fail: an error leaves the snapshot usable for the next data type.

        Raises:
            SourceError: In place of the driver's error, whose text may hold values.
        """
        try:
            with self.connection.transaction():
                yield self.connection
        except psycopg.Error as error:
            raise translate(error) from None


class Source:
    """The database where users' data lives.

    Args:
        url: PostgreSQL URL.
        statement_timeout_s: Longest statement, in seconds; 0 means no limit.
        lock_timeout_s: Longest wait for a lock, in seconds; 0 means no limit.
    """

    def __init__(self, url: str, *, statement_timeout_s: int = 3600, lock_timeout_s: int = 10) -> None:
        self._url = url
        self._limits = {
            "statement_timeout": f"{statement_timeout_s}s",
            "lock_timeout": f"{lock_timeout_s}s",
        }

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Open one snapshot; it ends with the block.

        Raises:
            SourceUnavailable: The server does not answer.
        """
        connection = self._connect()
        try:
            yield Snapshot(connection, _begin(connection))
        finally:
            connection.close()

    def _connect(self) -> psycopg.Connection:
        try:
            connection = psycopg.connect(
                self._url,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="export-pipeline source",
                autocommit=True,
            )
        except psycopg.Error as error:
            raise translate(error) from None
        try:
            # In one statement: a role may have a short statement_timeout for its default.
            wanted = [word for pair in {**_SESSION, **self._limits}.items() for word in pair]
            calls = ", ".join(["set_config(%s, %s, false)"] * (len(wanted) // 2))
            connection.execute(f"SELECT {calls}".encode(), wanted)
            connection.execute(_UNLIMITED)
        except psycopg.Error as error:
            connection.close()
            raise translate(error) from None
        return connection


def _begin(connection: psycopg.Connection) -> SnapshotInfo:
    """Open the transaction by hand: savepoints inside it keep it alive when one data type fails."""
    try:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = connection.execute("SELECT pg_current_snapshot()::text, transaction_timestamp()").fetchone()
        lsn = _lsn(connection)
    except psycopg.Error as error:
        raise translate(error) from None
    if row is None:
        raise SourceRefused("The source did not say which snapshot it gave.")
    return SnapshotInfo(id=row[0], taken_at=row[1], lsn=lsn)


def _lsn(connection: psycopg.Connection) -> str | None:
    """The position in the log, on a primary or a standby; some managed servers hide it."""
    try:
        with connection.transaction():
            row = connection.execute(
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"
            ).fetchone()
    except psycopg.Error:
        return None
    return row[0] if row else None


#: What another attempt, with a new snapshot, may well get through.
_PASSING = {
    "40001": "The source ended the snapshot: a standby may have had to go on",
    "40P01": "The source ended a deadlock by our statement",
    "53300": "The source has no connection left",
}
#: SQLSTATE or its class → what a person can act on. Texts of the driver are never passed on: they quote values.
_REFUSALS = {
    "42501": (
        "The source refused the permission to read.",
        "GRANT SELECT on the table to the role of the source URL; where row-level security applies, also BYPASSRLS.",
    ),
    "57014": (
        "The source cancelled a statement: it took too long.",
        "Raise EXPORT_PIPELINE_SOURCE_STATEMENT_TIMEOUT_S, or index the user column.",
    ),
    "55P03": (
        "The source kept a table locked for too long.",
        "Retry when the lock is gone, or raise EXPORT_PIPELINE_SOURCE_LOCK_TIMEOUT_S.",
    ),
    "42P01": ("A configured table vanished while the run was reading.", "Check `export-pipeline data-types list`."),
    "42703": ("A configured column vanished while the run was reading.", "Check `export-pipeline data-types list`."),
    "53": ("The source is out of resources (memory, disk or connections).", "Retry later."),
}


def translate(error: psycopg.Error) -> SourceError:
    """Turn a driver's error into ours, without its text."""
    state = error.sqlstate
    if state is None or state[:2] in ("08", "28", "3D") or state.startswith("57P"):
        return SourceUnavailable(
            "The source database cannot be reached" + (f" (SQLSTATE {state})." if state else "."),
            hint="Check EXPORT_PIPELINE_SOURCE_URL and run `export-pipeline doctor`.",
        )
    if state in _PASSING:
        return SourceUnavailable(f"{_PASSING[state]} (SQLSTATE {state}).", hint="Retry the request.")
    message, hint = _REFUSALS.get(state) or _REFUSALS.get(state[:2]) or ("The source refused a statement.", "")
    return SourceRefused(f"{message[:-1]} (SQLSTATE {state}).", hint=hint)


def literal(value: str) -> sql.Composable:
    """Quote a value for a statement that takes no parameters (COPY), typed by its context so that an index serves.

    Raises:
        SourceRefused: The value holds a NUL character, which PostgreSQL has no place for.
    """
    if "\0" in value:
        raise SourceRefused("A user id with a NUL character cannot exist in PostgreSQL.")
    return sql.Literal(value)
