"""The demo's source database: six tables of an imaginary product, the same on every machine.

The rows are in ``sample_source.sql``. They hold what real tables hold and what breaks exporters: many
scripts, line breaks, quotes, spreadsheet formulas, infinity, arrays with NULL, a person with 250,000 rows and
one with none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from export_pipeline.errors import ConfigurationError, SourceRefused, SourceUnavailable

HEAVY_USER = "user-0001"
EMPTY_USER = "user-0002"
HOSTILE_USER = "user-0003"
USERS = 300

TABLES = ("users", "user_sessions", "user_clicks", "user_workflow_usage", "user_errors", "user_feedback")

#: The comment on each of our tables: without it, a table is somebody's own and stays as it is.
MARK = "export_pipeline sample data, version 1"
_MARK_OF_ANY_VERSION = "export_pipeline sample data, version "

#: Two that install or remove at the same time take turns; the number only has to be the same in each release.
_LOCK = 7_305_804_402

_Cursor = psycopg.Cursor[tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class SampleCounts:
    """Rows in each of the sample's tables."""

    users: int
    user_sessions: int
    user_clicks: int
    user_workflow_usage: int
    user_errors: int
    user_feedback: int


def install(connection: psycopg.Connection[Any]) -> SampleCounts:
    """Create and fill the sample's tables in schema ``public``; leave them as they are when they are there.

    All or nothing: one transaction, or a savepoint of the caller's open one, which the caller then commits.

    Args:
        connection: To the source, PostgreSQL 14 or newer, UTF-8.

    Returns:
        How many rows each table has now.

    Raises:
        ConfigurationError: A table of one of these names is not ours; or the account may not create tables,
            the database is not UTF-8, or what is there is incomplete or of another version.
        SourceRefused: The server refused a statement.
        SourceUnavailable: The server cannot be reached, or did not answer within its time limits.
    """
    with _turn(connection) as cursor:
        present = _present(cursor)
        _refuse_foreign(present)
        if not present:
            _create(cursor)
        elif present != dict.fromkeys(TABLES, MARK):
            raise ConfigurationError(
                "The sample data in schema public is incomplete or of another version.",
                hint="Remove it and install it again.",
            )
        return _count(cursor)


def remove(connection: psycopg.Connection[Any]) -> None:
    """Drop the tables that :func:`install` made, of any version, and nothing else.

    One transaction, or a savepoint of the caller's open one, which the caller then commits.

    Args:
        connection: To the source.

    Raises:
        ConfigurationError: Something outside of the sample depends on its tables, or the account may not drop
            them.
        SourceRefused: The server refused the statement.
        SourceUnavailable: The server cannot be reached, or did not answer within its time limits.
    """
    with _turn(connection) as cursor:
        ours = [name for name, comment in _present(cursor).items() if _is_ours(comment)]
        if ours:
            tables = sql.SQL(", ").join(_table(name) for name in ours)
            cursor.execute(sql.SQL("DROP TABLE {}").format(tables))


@contextmanager
def _turn(connection: psycopg.Connection[Any]) -> Iterator[_Cursor]:
    """A cursor in a transaction that no other install or remove shares; driver errors leave it as ours."""
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            yield cursor
    except psycopg.Error as error:
        raise _in_our_words(error) from None


def _in_our_words(error: psycopg.Error) -> Exception:
    """The driver's text may quote values, so only its class is read."""
    match error:
        case psycopg.errors.InsufficientPrivilege() | psycopg.errors.ReadOnlySqlTransaction():
            return ConfigurationError(
                "This account may not create or drop the sample data's tables in schema public.",
                hint="Connect as the owner, or GRANT it CREATE on the schema and TEMPORARY on the database.",
            )
        case psycopg.errors.InvalidSchemaName():
            return ConfigurationError("The source has no schema public.", hint="CREATE SCHEMA public.")
        case psycopg.errors.DependentObjectsStillExist():
            return ConfigurationError(
                "Something outside of the sample data depends on its tables.",
                hint="Drop the views or foreign keys on them first.",
            )
        case psycopg.OperationalError():
            return SourceUnavailable("The source cannot be reached, or did not answer in time.")
    return SourceRefused(f"The source refused a statement on the sample data (SQLSTATE {error.sqlstate}).")


def _present(cursor: _Cursor) -> dict[str, str | None]:
    """Which of our names schema ``public`` has already, as relation or type, with the comment on each."""
    cursor.execute(
        """
        SELECT relname, obj_description(oid, 'pg_class') FROM pg_catalog.pg_class
        WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%(names)s)
        UNION ALL
        SELECT typname, NULL FROM pg_catalog.pg_type
        WHERE typnamespace = 'public'::regnamespace AND typname = ANY(%(names)s) AND typrelid = 0
        """,
        {"names": list(TABLES)},
    )
    return dict(cursor.fetchall())


def _is_ours(comment: str | None) -> bool:
    return (comment or "").startswith(_MARK_OF_ANY_VERSION)


def _refuse_foreign(present: dict[str, str | None]) -> None:
    foreign = [name for name in TABLES if name in present and not _is_ours(present[name])]
    if foreign:
        raise ConfigurationError(
            f"Schema public already has {', '.join(foreign)}, which the sample data did not create.",
            hint="Install the sample data into an empty database: it never touches tables of others.",
        )


def _create(cursor: _Cursor) -> None:
    cursor.execute("SELECT current_setting('server_encoding'), current_setting('client_encoding')")
    if cursor.fetchone() != ("UTF8", "UTF8"):
        raise ConfigurationError(
            "The sample data needs a database and a connection whose encoding is UTF8.",
            hint="CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and unset PGCLIENTENCODING.",
        )
    cursor.execute(files(__package__).joinpath("sample_source.sql").read_bytes())
    for name in TABLES:
        cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(_table(name), sql.Literal(MARK)))


def _count(cursor: _Cursor) -> SampleCounts:
    counts = (sql.SQL("(SELECT count(*) FROM {})").format(_table(name)) for name in TABLES)
    cursor.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(counts)))
    [row] = cursor.fetchall()
    return SampleCounts(**dict(zip(TABLES, row, strict=True)))


def _table(name: str) -> sql.Identifier:
    return sql.Identifier("public", name)
