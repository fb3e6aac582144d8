"""SQL for the source: exactly what is expected, whatever stands in names and values."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from psycopg import sql

from export_pipeline.collect import policies, statements
from export_pipeline.collect.statements import Extract, RowEncoding
from export_pipeline.errors import SourceRefused

CLICKS = Extract(schema="app", table="clicks", columns=("id", "at"), user_id_column="user_id", order_by=("id",))
HOSTILE = ['a"; DROP TABLE x; --', '"', '""', "{0}", "{table}", "%s", "%(a)s", "$1", "a.b", "select", "É", "a\nb", "\\"]

CSV_OPTIONS = "TO STDOUT WITH (FORMAT csv, HEADER, ENCODING 'UTF8')"
JSON_OPTIONS = "TO STDOUT WITH (FORMAT binary)"


def text(statement: sql.Composable) -> str:
    return statement.as_string(None)


def quoted(name: str) -> str:
    """An identifier by PostgreSQL's own rule."""
    return '"' + name.replace('"', '""') + '"'


def test_count() -> None:
    assert text(statements.count(CLICKS, "ada")) == """SELECT count(*) FROM "app"."clicks" WHERE "user_id" = 'ada'"""


def test_exists() -> None:
    expected = """SELECT EXISTS (SELECT FROM "app"."clicks" WHERE "user_id" = 'ada')"""
    assert text(statements.exists(CLICKS, "ada")) == expected


def select(order: str) -> str:
    return f"""SELECT "id", "at" FROM "app"."clicks" WHERE "user_id" = 'ada'{order}"""


@pytest.mark.parametrize(
    ("extract", "order"),
    [
        (CLICKS, ' ORDER BY "app"."clicks"."id"'),
        (replace(CLICKS, order_by=("at", "id")), ' ORDER BY "app"."clicks"."at", "app"."clicks"."id"'),
        (replace(CLICKS, order_by=(), by_address=True), " ORDER BY ctid"),
        (replace(CLICKS, order_by=()), ""),
    ],
    ids=["key", "two columns", "address", "none"],
)
def test_rows_come_in_a_stated_order(extract: Extract, order: str) -> None:
    assert text(statements.copy_out(extract, "ada", RowEncoding.CSV)) == f"COPY ({select(order)}) {CSV_OPTIONS}"


def test_json() -> None:
    """One object a line: newlines, which a column of type json may bring, are replaced."""
    inner = select(' ORDER BY "app"."clicks"."id"')
    statement = text(statements.copy_out(CLICKS, "ada", RowEncoding.JSON))
    assert statement.startswith("COPY (SELECT ")
    assert statement.endswith(f' FROM ({inner}) AS "r") {JSON_OPTIONS}')
    rendering = statement.removesuffix(f' FROM ({inner}) AS "r") {JSON_OPTIONS}')
    assert 'row_to_json("r")::text' in rendering
    assert "\\n" in rendering
    assert "\\r" in rendering


@pytest.mark.parametrize(
    ("columns", "alias"), [(("id",), "r"), (("r",), "r_"), (("r_", "r"), "r__"), (("R",), "r"), (("r_",), "r")]
)
def test_the_rows_alias_is_no_column(columns: tuple[str, ...], alias: str) -> None:
    """`row_to_json(r)` would mean a column named r."""
    statement = text(statements.copy_out(replace(CLICKS, columns=columns), "ada", RowEncoding.JSON))
    assert f'row_to_json("{alias}")' in statement
    assert f') AS "{alias}") TO STDOUT' in statement


@pytest.mark.parametrize("encoding", [RowEncoding.CSV, RowEncoding.JSON])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_quoted_wherever_they_stand(name: str, encoding: RowEncoding) -> None:
    extract = Extract(schema=name, table=name, columns=(name,), user_id_column=name, order_by=(name,))
    table = f"{quoted(name)}.{quoted(name)}"
    inner = f"SELECT {quoted(name)} FROM {table} WHERE {quoted(name)} = 'ada' ORDER BY {table}.{quoted(name)}"
    assert f"({inner})" in text(statements.copy_out(extract, "ada", encoding))
    assert text(statements.count(extract, "ada")) == f"SELECT count(*) FROM {table} WHERE {quoted(name)} = 'ada'"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", "''"),
        ("ada", "'ada'"),
        ("o'brien", "'o''brien'"),
        ("'; DROP TABLE x; --", "'''; DROP TABLE x; --'"),
        ("''", "''''''"),
        ("{user_id}", "'{user_id}'"),
        ("{0}{table}", "'{0}{table}'"),
        ("100%s %(x)s", "'100%s %(x)s'"),
        ("$1", "'$1'"),
        ("é漢\U0001f600", "'é漢\U0001f600'"),
        ("a\nb\x01\x02", "'a\nb\x01\x02'"),
        ("7", "'7'"),
    ],
)
def test_values_are_quoted_and_take_the_type_of_their_column(value: str, written: str) -> None:
    """No cast: an integer or uuid column keeps its index."""
    for statement in (
        statements.count(CLICKS, value),
        statements.exists(CLICKS, value),
        statements.copy_out(CLICKS, value, RowEncoding.CSV),
        statements.copy_out(CLICKS, value, RowEncoding.JSON),
    ):
        assert f'WHERE "user_id" = {written}' in text(statement)
        assert not text(statement).split(f'"user_id" = {written}')[1].startswith(":")


def test_a_backslash_cannot_escape_the_quote() -> None:
    assert text(statements.count(CLICKS, "\\' OR true --")).endswith("E'\\\\'' OR true --'")


def test_an_id_that_no_row_can_have_is_not_sent() -> None:
    extract = replace(CLICKS, matchable=False)
    assert text(statements.count(extract, "canary")) == 'SELECT count(*) FROM "app"."clicks" WHERE false'
    for encoding in (RowEncoding.CSV, RowEncoding.JSON):
        assert "canary" not in text(statements.copy_out(extract, "canary", encoding))
        assert "WHERE false" in text(statements.copy_out(extract, "canary", encoding))


def test_an_id_with_nul_is_refused_and_not_repeated() -> None:
    for make in (statements.count, statements.exists, lambda *args: statements.copy_out(*args, RowEncoding.CSV)):
        with pytest.raises(SourceRefused, match="NUL") as caught:
            make(CLICKS, "canary\0")
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("column_type", ["bigint", "uuid", "character varying(10)", 'app."my type"', "numeric(10,2)"])
def test_comparing_with_a_type_of_the_catalogue(column_type: str) -> None:
    statement = text(statements.comparable(column_type, "o'brien {type} %s"))
    assert f"'o''brien {{type}} %s'::{column_type}" in statement
    with pytest.raises(SourceRefused):
        statements.comparable(column_type, "a\0")


@pytest.mark.parametrize("name", HOSTILE)
def test_an_altered_column_keeps_its_name_and_its_place(name: str) -> None:
    policy = policies.ColumnPolicy(column=name, policy=policies.Policy.REPLACE, argument="o'brien {0} %s")
    extract = replace(CLICKS, columns=("id", name), policies=(policy,))
    expression = f"CASE WHEN {quoted(name)} IS NOT NULL THEN 'o''brien {{0}} %s'::text END AS {quoted(name)}"
    assert f'(SELECT "id", {expression} FROM "app"' in text(statements.copy_out(extract, "ada", RowEncoding.CSV))
    assert Extract.from_ticket(json.loads(json.dumps(asdict(extract)))) == extract


def test_every_encoding_has_its_statement() -> None:
    for encoding in RowEncoding:
        assert "'ada'" in text(statements.copy_out(CLICKS, "ada", encoding))


@pytest.mark.parametrize(
    "extract", [CLICKS, replace(CLICKS, order_by=(), by_address=True, matchable=False), replace(CLICKS, columns=("é",))]
)
def test_an_extract_survives_the_way_through_json(extract: Extract) -> None:
    assert Extract.from_ticket(json.loads(json.dumps(asdict(extract)))) == extract
    assert Extract.from_ticket(asdict(extract)) == extract
