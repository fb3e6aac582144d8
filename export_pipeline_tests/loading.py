"""Loads delivered data back into PostgreSQL, as somebody who got the file would, and compares it with the source."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import psycopg
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from psycopg import sql

#: No JSON text holds these two characters, so a line of it is never quoted.
_JSON_LINES = sql.SQL("COPY pg_temp.lines FROM STDIN (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01')")


def rows_of(file: bytes, form: str, data_type: str) -> bytes:
    """The rows of one data type in a delivered file: CSV, JSON lines, or Parquet."""
    if form == "json":
        assert data_type in json.loads(file)["data"]
        # Python would round the numbers, so the text is taken as it stands: a row on each line.
        marker = f'"{data_type}": ['.encode()
        rows = file[file.index(marker) + len(marker) + 1 :].split(b"\n],\n", 1)[0].split(b"\n]\n", 1)[0]
        return b"" if rows.startswith(b"]") else rows.replace(b"},\n", b"}\n") + b"\n"
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return archive.read(f"{data_type}.{form}")


def load(connection: psycopg.Connection[Any], table: str, form: str, rows: bytes, *, escaped: bool = True) -> None:
    """Fill an empty table from what `rows_of` gave.

    Args:
        connection: Where the table is.
        table: Its name, on the search path.
        form: The format of the file that the rows come from.
        rows: The rows.
        escaped: Whether a leading quote must be taken away from the texts of CSV.
    """
    match form:
        case "csv" if escaped:
            _load_escaped(connection, table, rows)
        case "csv":
            _copy(connection, sql.SQL("COPY {} FROM STDIN (FORMAT csv, HEADER)").format(sql.Identifier(table)), rows)
        case "parquet":
            _load_parquet(connection, table, rows)
        case _:
            _load_json(connection, table, rows)


def differences(connection: psycopg.Connection[Any], one: str, other: str) -> tuple[int, int]:
    """Rows of one table (or query in brackets) that the other has not, and the other way round; doubles count."""
    return _missing(connection, one, other), _missing(connection, other, one)


def _missing(connection: psycopg.Connection[Any], one: str, other: str) -> int:
    statement = (
        f"SELECT count(*) FROM (SELECT r::text FROM {one} AS r EXCEPT ALL SELECT r::text FROM {other} AS r) AS x"
    )
    [[count]] = connection.execute(statement.encode()).fetchall()
    return int(count)


def _load_escaped(connection: psycopg.Connection[Any], table: str, rows: bytes) -> None:
    columns = _columns(connection, table)
    names = [sql.Identifier(name) for name, _ in columns]
    texts = sql.SQL(", ").join(sql.SQL("{} text").format(name) for name in names)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS pg_temp.texts; CREATE TEMP TABLE texts ({})").format(texts))
    _copy(connection, sql.SQL("COPY pg_temp.texts FROM STDIN (FORMAT csv, HEADER)"), rows)
    values = sql.SQL(", ").join(
        sql.SQL("(CASE WHEN left({0}, 1) = '''' THEN substr({0}, 2) ELSE {0} END)::{1}").format(name, sql.SQL(kind))
        for name, (_, kind) in zip(names, columns, strict=True)
    )
    connection.execute(sql.SQL("INSERT INTO {} SELECT {} FROM pg_temp.texts").format(sql.Identifier(table), values))


def _load_json(connection: psycopg.Connection[Any], table: str, rows: bytes) -> None:
    connection.execute("DROP TABLE IF EXISTS pg_temp.lines; CREATE TEMP TABLE lines (line text)")
    _copy(connection, _JSON_LINES, rows)
    connection.execute(
        sql.SQL(
            "INSERT INTO {0} SELECT r.* FROM pg_temp.lines, json_populate_record(NULL::{0}, line::json) AS r"
        ).format(sql.Identifier(table))
    )


def _load_parquet(connection: psycopg.Connection[Any], table: str, rows: bytes) -> None:
    text = io.BytesIO()
    pa_csv.write_csv(pa_parquet.read_table(io.BytesIO(rows)), text)
    _copy(
        connection,
        sql.SQL("COPY {} FROM STDIN (FORMAT csv, HEADER)").format(sql.Identifier(table)),
        text.getvalue(),
    )


def _columns(connection: psycopg.Connection[Any], table: str) -> list[tuple[str, str]]:
    return connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = quote_ident(%s)::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()


def _copy(connection: psycopg.Connection[Any], statement: sql.Composable, rows: bytes) -> None:
    with connection.cursor().copy(statement) as copy:
        copy.write(rows)
