"""What the source says about the configured tables: names are checked against it, never trusted."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.rows import dict_row

from export_pipeline.collect.source import Snapshot, translate
from export_pipeline.errors import ConfigurationError
from export_pipeline.models import DataTypeConfig

#: Exact names first, so that upper case and spaces need no quotes; then whatever PostgreSQL understands by the text.
_RESOLVE_EXACT = """
SELECT c.oid::bigint FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND (c.relname = %(name)s AND pg_catalog.pg_table_is_visible(c.oid)
       OR n.nspname || '.' || c.relname = %(name)s)
"""
#: Newer servers take a number for the oid of whatever table; a configuration means a name.
_RESOLVE_PARSED = """
SELECT c.oid::bigint FROM pg_catalog.pg_class AS c
WHERE c.oid = pg_catalog.to_regclass(CASE WHEN %(name)s !~ '^[[:space:]]*[0-9]+[[:space:]]*$' THEN %(name)s END)
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
#: What PostgreSQL says to a text that is not even a name: there is no such table, and nothing of it was executed.
_NO_NAME = (
    psycopg.errors.SyntaxError,
    psycopg.errors.InvalidName,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.InvalidParameterValue,
)
_TABLE = """
SELECT n.nspname AS schema, c.relname AS table, c.relkind IN ('r', 'm') AS has_ctid,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE')
       AND pg_catalog.has_any_column_privilege(c.oid, 'SELECT') AS readable
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = %(oid)s
"""
#: A column's type as it is declared, and what it is underneath: see `column_types` for the names of base types.
_ATTRIBUTES = """
WITH RECURSIVE layer (number, type, modifier) AS (
    SELECT attnum, atttypid, atttypmod FROM pg_catalog.pg_attribute
    WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT layer.number, t.typbasetype, t.typtypmod
    FROM layer JOIN pg_catalog.pg_type AS t ON t.oid = layer.type WHERE t.typtype = 'd'
)
SELECT a.attname AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       CASE WHEN t.typtype = 'c' THEN 'record'
            WHEN t.oid = 'pg_catalog.numeric'::pg_catalog.regtype
            THEN pg_catalog.format_type(t.oid, layer.modifier)
            WHEN t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
            THEN pg_catalog.format_type(t.oid, NULL)
            WHEN t.typtype = 'e' THEN 'anyenum'
            WHEN t.typtype = 'r' THEN 'anyrange'
            WHEN t.typtype = 'm' THEN 'anymultirange'
            WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN 'anyarray'
            ELSE '' END AS base_type
FROM layer
JOIN pg_catalog.pg_type AS t ON t.oid = layer.type AND t.typtype <> 'd'
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = %(oid)s AND a.attnum = layer.number
ORDER BY layer.number
"""
#: The primary key, or else the smallest unique index over columns that are never NULL.
_KEY = """
SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, position)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             ORDER BY k.position) AS columns
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = %(oid)s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (attnum)
                  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                  WHERE NOT a.attnotnull)
ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1
"""
_LEADING_INDEX = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indpred IS NULL AND a.attname = %(column)s) AS indexed
"""


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """A configured table as the source has it.

    Attributes:
        schema: Its schema.
        table: Its name.
        columns: Column name → PostgreSQL type, in the table's order.
        base_types: Column name → what the type is underneath, in the words of `column_types`.
        key: Columns of the primary key or of a unique index; empty when there is none.
        has_ctid: Whether rows have a physical address, to order by when there is no key.
        readable: Whether our role may read it.
        user_column_indexed: Whether an index begins with the user column.
    """

    schema: str
    table: str
    columns: dict[str, str]
    base_types: dict[str, str]
    key: tuple[str, ...]
    has_ctid: bool
    readable: bool
    user_column_indexed: bool


def describe(snapshot: Snapshot, config: DataTypeConfig) -> SourceTable | None:
    """Look a configured table up in the source.

    Returns:
        What is there, or None when the source has no such table.

    Raises:
        ConfigurationError: The name could mean several tables, or lies in a schema that we may not look into.
        SourceError: The source cannot be asked.
    """
    oid = _resolve(snapshot, config)
    if oid is None:
        return None
    with snapshot.attempt() as connection, connection.cursor(row_factory=dict_row) as cursor:
        asked = {"oid": oid, "column": config.user_id_column}
        table = cursor.execute(_TABLE, asked).fetchone()
        attributes = cursor.execute(_ATTRIBUTES, asked).fetchall()
        key = cursor.execute(_KEY, asked).fetchone()
        index = cursor.execute(_LEADING_INDEX, asked).fetchone()
    if table is None:
        return None
    return SourceTable(
        **table,
        columns={attribute["name"]: attribute["type"] for attribute in attributes},
        base_types={attribute["name"]: attribute["base_type"] for attribute in attributes},
        key=tuple(key["columns"]) if key else (),
        user_column_indexed=bool(index and index["indexed"]),
    )


def _resolve(snapshot: Snapshot, config: DataTypeConfig) -> int | None:
    where, asked = f"Data type {config.data_type}: ", {"name": config.table_name}
    with snapshot.attempt() as connection:
        exact = connection.execute(_RESOLVE_EXACT, asked).fetchall()
    if len(exact) > 1:
        raise ConfigurationError(
            f"{where}{config.table_name} could mean {len(exact)} tables of the source.",
            hint='Quote each part of the name, as in "schema"."table".',
        )
    if exact:
        return int(exact[0][0])
    try:
        with snapshot.connection.transaction():
            parsed = snapshot.connection.execute(_RESOLVE_PARSED, asked).fetchone()
    except _NO_NAME:
        return None
    except psycopg.errors.InsufficientPrivilege:
        raise ConfigurationError(
            f"{where}the table {config.table_name} may not be read.",
            hint="GRANT USAGE on its schema and SELECT on it to the role of the source URL.",
        ) from None
    except psycopg.Error as error:
        raise translate(error) from None
    return int(parsed[0]) if parsed else None
