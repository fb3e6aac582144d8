"""Guards CSV against spreadsheets, which run what looks like a formula: ``=HYPERLINK(…)`` in a display name.

A value that begins with a dangerous character gets a single quote in front, and so does one that begins with a single
quote already: taking one quote away from every value that begins with one gives the original values back.
"""

from __future__ import annotations

from psycopg import sql

from export_pipeline.collect import column_types

#: Spreadsheets also read the full-width signs of CJK keyboards, and skip the white space.
_DANGEROUS = (
    "'=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)

#: `ascii` is the cheapest first look at a text (a tenth of a CSV's cost; `left(…) IN (…)` takes half), but outside of
#: UTF-8 it refuses what is not ASCII: there the first byte on its way to us is taken, 0 for an empty text.
_FIRST = (
    "CASE WHEN pg_catalog.getdatabaseencoding() = 'UTF8' THEN ascii({text})"
    " ELSE get_byte(textsend(left({text}, 1)) || '\\x00'::bytea, 0) END IN ({dangerous})"
)
_ESCAPED = "CASE WHEN {first} THEN '''' || {text} ELSE {text} END"
#: `concat` prints as COPY does where the cast to text does not; NULL would become an empty text.
_ESCAPED_AS_PRINTED = (
    "CASE WHEN {value} IS NULL THEN NULL WHEN {first} THEN concat('''', {value}) ELSE concat({value}) END"
)


def escaped(value: sql.Composable, base_type: str) -> sql.Composable:
    """Wrap the expression of a column.

    Args:
        value: The expression.
        base_type: Its base type, one that `column_types.may_begin_a_formula`.
    """
    text = sql.SQL("{value}::text").format(value=value)
    first = sql.SQL(_FIRST).format(text=text, dangerous=sql.SQL(", ").join(map(_code, _DANGEROUS)))
    if column_types.cast_prints(base_type):
        return sql.SQL(_ESCAPED).format(first=first, text=text)
    return sql.SQL(_ESCAPED_AS_PRINTED).format(first=first, value=value)


def _code(character: str) -> sql.Composable:
    return sql.Literal(ord(character))
