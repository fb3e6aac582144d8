"""Every type of PostgreSQL, with its extreme values, comes back unchanged out of every format."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from psycopg import sql

from export_pipeline.collect import formulas
from export_pipeline.models import DataTypeConfig
from export_pipeline_tests.all_types import COLUMNS, MORE_COLUMNS, create
from export_pipeline_tests.loading import differences, load, rows_of

#: White space between the tokens of json is nobody's data: JSON keeps it on one line.
JSON_COLUMNS = ("a_json", "a_document", "a_deeper_document", "some_json", "a_pair", "some_pairs")


@pytest.fixture
def exported(tables_url: str, admin: psycopg.Connection[Any], exporter_for: Callable[..., Any]) -> Callable[..., bytes]:
    """Make the table of all types and export it: call with its columns and a format."""

    def export(columns: dict[str, tuple[str, list[str]]], form: str) -> bytes:
        admin.execute(create(columns).encode())
        exporter = exporter_for(tables_url, [DataTypeConfig(data_type="things", table_name="things")])
        return exporter.fetch(exporter.export("ada", ["things"], format=form))

    return export


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_every_value_comes_back(exported: Callable[..., bytes], admin: psycopg.Connection[Any], form: str) -> None:
    rows = rows_of(exported(COLUMNS | MORE_COLUMNS, form), form, "things")
    admin.execute("CREATE TABLE public.back (LIKE things)")
    load(admin, "back", form, rows)
    assert differences(admin, "things", "back") == (0, 0)


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_every_value_comes_back_from_json(
    exported: Callable[..., bytes], admin: psycopg.Connection[Any], form: str
) -> None:
    rows = rows_of(exported(COLUMNS, form), form, "things")
    admin.execute("CREATE TABLE public.back (LIKE things)")
    load(admin, "back", form, rows)
    columns = ", ".join(
        f"btrim(translate({name}::text, E'\\n\\r', '  '))" if name in JSON_COLUMNS else name
        for name in ["id", "user_id", *COLUMNS]
    )
    source = f"(SELECT {columns} FROM things)"
    assert differences(admin, source, source.replace("things", "back")) == (0, 0)


def test_a_value_that_a_type_cannot_hold_makes_its_column_text(exported: Callable[..., bytes]) -> None:
    rows = rows_of(exported(COLUMNS, "parquet"), "parquet", "things")
    schema = pa_parquet.read_schema(io.BytesIO(rows))
    proper = {
        "a_boolean": pa.bool_(), "a_smallint": pa.int16(), "an_integer": pa.int32(), "a_bigint": pa.int64(),
        "a_real": pa.float32(), "a_double": pa.float64(), "a_decimal": pa.decimal128(38, 12),
        "an_amount": pa.decimal128(12, 4), "a_date_of_arrow": pa.date32(), "a_time_of_arrow": pa.time64("us"),
        "a_timestamp_of_arrow": pa.timestamp("us"), "a_timestamp_0": pa.timestamp("us"),
        "a_timestamptz_of_arrow": pa.timestamp("us", tz="UTC"), "id": pa.int32(),
    }  # fmt: skip
    assert {field.name: field.type for field in schema if field.type != pa.string()} == proper


def test_parquet_says_what_each_column_is_in_postgresql(exported: Callable[..., bytes]) -> None:
    schema = pa_parquet.read_schema(io.BytesIO(rows_of(exported(COLUMNS, "parquet"), "parquet", "things")))
    types = {field.name: field.metadata[b"postgresql_type"].decode() for field in schema}
    assert (types["a_decimal"], types["a_deeper_document"], types["an_amount"], types["a_timestamp_0"]) == (
        "numeric(38,12)", "deeper", "amount", "timestamp(0) without time zone",
    )  # fmt: skip


def test_not_a_number_and_infinity_are_texts_in_json(exported: Callable[..., bytes]) -> None:
    document = json.loads(exported(COLUMNS, "json"), parse_constant=pytest.fail)
    for column in ("a_numeric", "a_double", "a_real"):
        values = [row[column] for row in document["data"]["things"]]
        assert {value for value in values if isinstance(value, str)} == {"NaN", "Infinity", "-Infinity"}


class TestFormulas:
    """CSV in a spreadsheet."""

    DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    NUMBERS_AND_TIMES = (
        "a_smallint", "an_integer", "a_bigint", "a_numeric", "a_decimal", "a_real", "a_double", "a_money",
        "a_decimal_with_nan", "a_huge_decimal", "an_amount", "a_jsonb", "a_date", "a_timestamp", "a_timestamptz",
    )  # fmt: skip

    @pytest.fixture
    def table(self, exported: Callable[..., bytes]) -> list[dict[str, str]]:
        text = rows_of(exported(COLUMNS | MORE_COLUMNS, "csv"), "csv", "things").decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def test_no_text_begins_one(self, table: list[dict[str, str]]) -> None:
        begun = {name for row in table for name, value in row.items() if value.startswith(self.DANGEROUS)}
        assert begun <= set(self.NUMBERS_AND_TIMES)

    def test_a_dangerous_text_has_a_quote_in_front(self, table: list[dict[str, str]]) -> None:
        for name in ("a_text", "a_varchar", "a_citext", "a_shout", "a_louder"):
            values = {row[name] for row in table}
            assert {"'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\uff1d1", "''", "''=1"} <= values

    def test_numbers_are_left_alone(self, table: list[dict[str, str]]) -> None:
        assert not [row[name] for row in table for name in self.NUMBERS_AND_TIMES if row[name].startswith("'")]

    def test_the_manifest_says_so(self, exported: Callable[..., bytes]) -> None:
        with zipfile.ZipFile(io.BytesIO(exported({"a": ("text", ["'=1'"])}, "csv"))) as archive:
            assert json.loads(archive.read("manifest.json"))["csv_formulas"] == "escape"

    def test_raw_leaves_every_text_as_it_is(
        self,
        monkeypatch: pytest.MonkeyPatch,
        exported: Callable[..., bytes],
        admin: psycopg.Connection[Any],
    ) -> None:
        monkeypatch.setenv("EXPORT_PIPELINE_CSV_FORMULAS", "raw")
        file = exported(COLUMNS | MORE_COLUMNS, "csv")
        admin.execute("CREATE TABLE public.back (LIKE things)")
        load(admin, "back", "csv", rows_of(file, "csv", "things"), escaped=False)
        assert differences(admin, "things", "back") == (0, 0)
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            assert json.loads(archive.read("manifest.json"))["csv_formulas"] == "raw"

    @pytest.mark.parametrize(("encoding", "text"), [("LATIN1", "\u00e9"), ("EUC_JP", "\u6f22"), ("SQL_ASCII", "e")])
    def test_databases_of_other_encodings(self, server_url: str, encoding: str, text: str) -> None:
        name = f"encoding_{encoding.lower()}"
        values = ["=", "-1", text, "", "'", None]
        escaped = formulas.escaped(sql.Identifier("value"), "text")
        as_printed = formulas.escaped(sql.Identifier("value"), "character")
        with psycopg.connect(server_url, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0".encode())
            try:
                with psycopg.connect(urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))) as connection:
                    connection.execute("SET client_encoding TO 'UTF8'")
                    connection.execute("CREATE TABLE texts AS SELECT unnest(%s::text[]) AS value", [values])
                    statement = sql.SQL("SELECT {}, {} FROM texts").format(escaped, as_printed)
                    found = connection.execute(statement).fetchall()
            finally:
                server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        assert found == [(value, value) for value in ("'=", "'-1", text, "", "''", None)]


def test_mending_line_breaks_alters_nothing_inside_a_json_text(admin: psycopg.Connection[Any]) -> None:
    """A raw line break cannot stand inside a string of JSON: PostgreSQL refuses it, so only white space is touched."""
    for kind in ("json", "jsonb"):
        for character in ("\n", "\r"):
            with pytest.raises(psycopg.errors.InvalidTextRepresentation):
                admin.execute(f"SELECT %s::{kind}".encode(), [f'["a{character}b"]'])
    # And where row_to_json makes a string, it writes an escape for every character that a text can hold.
    [[raw]] = admin.execute(
        """
        SELECT count(*) FROM (SELECT row_to_json(r)::text AS line FROM
            (SELECT chr(i) AS c, 'x' || chr(i) || 'y' AS d, ARRAY[chr(i)] AS e FROM generate_series(1, 1000) AS i) AS r
        ) AS rows WHERE line ~ E'[\\n\\r]'
        """
    ).fetchall()
    assert raw == 0
