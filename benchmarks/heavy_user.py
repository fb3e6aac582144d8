"""One user with very many rows: twelve columns of mixed types, about 312 bytes a row as CSV."""

from __future__ import annotations

import psycopg
from psycopg import sql

SCHEMA = "benchmarks"
USER = "user-0000001"
#: So that the condition on the user is no formality.
_ROWS_OF_OTHERS = 1000

_CREATE = """
CREATE UNLOGGED TABLE {table} (
    id bigint PRIMARY KEY,
    user_id text NOT NULL,
    occurred_at timestamptz NOT NULL,
    amount numeric(14, 4),
    payload jsonb,
    session uuid NOT NULL,
    active boolean,
    score float8,
    address inet,
    tags text[],
    title text NOT NULL,
    note text
)
"""
_FILL = """
INSERT INTO {table}
SELECT
    i,
    CASE WHEN i <= {rows} THEN {user} ELSE 'user-' || i END,
    timestamptz '2020-01-01 00:00:00+00' + i * interval '1.234567 seconds',
    CASE WHEN i % 23 > 0 THEN (h % 100000000) / 10000.0 END,
    jsonb_build_object('step', h % 100, 'from', 'page-' || h % 5000, 'tags', jsonb_build_array(i % 7, true, NULL)),
    md5(i::text)::uuid,
    CASE WHEN i % 11 > 0 THEN i % 3 = 0 END,
    sqrt(h % 1000003) * 1.0000001,
    ('10.' || h % 256 || '.' || i % 256 || '.' || h % 200)::inet,
    ARRAY['t' || h % 50, CASE WHEN i % 5 > 0 THEN 'naïve ' || h % 9 END, 'a,b'],
    'Title ' || i || ' of the day, №' || h % 1000,
    CASE i % 4
        WHEN 0 THEN NULL
        WHEN 1 THEN 'She said "yes", and left.' || E'\\n' || 'Then ' || md5((i + 1)::text)
        ELSE 'A plain remark of usual length: ' || md5((i + 2)::text) || ' ' || left(md5((i + 3)::text), 8)
    END
FROM generate_series(1, {rows} + {others}) AS i, LATERAL (SELECT abs(hashint8(i)::bigint) AS h) AS hash
"""


def data_type(rows: int) -> str:
    """Name of the data type, and of its table in `SCHEMA`."""
    return f"heavy_{rows}"


def select(rows: int) -> sql.Composed:
    """What the export selects, for those that are compared with it."""
    return sql.SQL("SELECT * FROM {table} WHERE user_id = {user} ORDER BY id").format(
        table=_table(rows), user=sql.Literal(USER)
    )


def ensure(url: str, rows: int) -> None:
    """Make the table unless it is there, and read all of it once, so that nobody finds it cold."""
    with psycopg.connect(url, autocommit=True) as connection:
        # The server's checkpoints and vacuum are not what is measured.
        if _count(connection, rows) != rows:
            _make(connection, rows)
            _count(connection, rows)


def _make(connection: psycopg.Connection, rows: int) -> None:
    names = {
        "table": _table(rows),
        "rows": sql.Literal(rows),
        "user": sql.Literal(USER),
        "others": sql.Literal(_ROWS_OF_OTHERS),
    }
    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {table}").format(**names))
    for statement in (_CREATE, _FILL, "CREATE INDEX ON {table} (user_id, id)", "VACUUM (ANALYZE, FREEZE) {table}"):
        connection.execute(sql.SQL(statement).format(**names))
    connection.execute("CHECKPOINT")


def _count(connection: psycopg.Connection, rows: int) -> int:
    """Read the whole table: count its user's rows by way of a column that no index holds."""
    try:
        row = connection.execute(
            sql.SQL("SELECT count(session) FROM {} WHERE user_id = {}").format(_table(rows), sql.Literal(USER))
        ).fetchone()
    except psycopg.errors.UndefinedTable:
        return -1
    return row[0] if row else -1


def _table(rows: int) -> sql.Identifier:
    return sql.Identifier(SCHEMA, data_type(rows))
