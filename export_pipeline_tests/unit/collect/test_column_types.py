"""What each type's text can hold: unknown types are guarded, known ones are not paid for."""

from __future__ import annotations

import pytest
from psycopg import sql

from export_pipeline.collect import formulas
from export_pipeline.collect.column_types import cast_prints, may_begin_a_formula, may_hold_raw_json
from export_pipeline.collect.statements import Extract, RowEncoding, copy_out


@pytest.mark.parametrize("base_type", ["json", "json[]", "record", "anyarray", "anyenum", "anyrange", "", "mood"])
def test_what_may_bring_raw_json_is_mended(base_type: str) -> None:
    assert may_hold_raw_json(base_type)
    assert "replace(" in statement(RowEncoding.NDJSON, base_type)


@pytest.mark.parametrize("base_type", ["text", "text[]", "numeric(12,4)", "jsonb[]", "int4range", "xml", '"char"'])
def test_what_cannot_is_not(base_type: str) -> None:
    assert not may_hold_raw_json(base_type)
    assert "replace(" not in statement(RowEncoding.JSON, base_type)


@pytest.mark.parametrize("base_type", ["text", "character", "json", "xml", "anyenum", "tsvector", "name", "", "mood"])
def test_what_may_begin_a_formula_is_escaped_in_csv_alone(base_type: str) -> None:
    assert may_begin_a_formula(base_type)
    assert "CASE" in statement(RowEncoding.CSV, base_type)
    for encoding in set(RowEncoding) - {RowEncoding.CSV}:
        assert "CASE" not in statement(encoding, base_type)
    assert "CASE" not in statement(RowEncoding.CSV, base_type, escape_formulas=False)


@pytest.mark.parametrize(
    "base_type",
    ["integer", "numeric(12,4)", "money", "date", "interval", "uuid", "text[]", "record", "bytea"],
)
def test_numbers_times_and_brackets_are_not(base_type: str) -> None:
    assert not may_begin_a_formula(base_type)
    assert "CASE" not in statement(RowEncoding.CSV, base_type)


def test_rows_are_ordered_by_the_column_and_not_by_its_escape() -> None:
    assert statement(RowEncoding.CSV, "text").count('ORDER BY "s"."t"."c"') == 1


def test_types_whose_cast_is_not_what_they_print_are_printed() -> None:
    assert not cast_prints("character")
    assert "concat(" in formulas.escaped(sql.Identifier("c"), "character").as_string()
    assert "concat(" not in formulas.escaped(sql.Identifier("c"), "text").as_string()


def statement(encoding: RowEncoding, base_type: str, *, escape_formulas: bool = True) -> str:
    extract = Extract(
        schema="s", table="t", columns=("c",), user_id_column="u", order_by=("c",),
        base_types=(base_type,), escape_formulas=escape_formulas,
    )  # fmt: skip
    return copy_out(extract, "ada", encoding).as_string()
