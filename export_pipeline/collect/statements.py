"""SQL for the source, composed with the driver's own quoting: nothing is ever interpolated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Any

from psycopg import sql

from export_pipeline.collect import column_types, formulas, policies
from export_pipeline.collect.source import literal


class RowEncoding(StrEnum):
    """How PostgreSQL renders a row for us: a format asks for the one that it can frame."""

    CSV = "csv"
    JSON = "json"
    NDJSON = "ndjson"
    PARQUET = "parquet"


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Which rows of which table, in which order.

    Attributes:
        schema: Schema in the source.
        table: Table or view.
        columns: Columns in the order of the delivered file.
        user_id_column: The column that is compared with the user's id.
        order_by: Columns that order the rows; ``("ctid",)`` with `by_address` orders by the physical address.
        by_address: Order by the row's address because the table has no key.
        matchable: False when the user's id cannot be a value of the user column, so that no row can match.
        policies: Columns that are altered before they leave the source.
        types: PostgreSQL type of each column once it is altered; only Parquet needs to know.
        base_types: What each column is underneath once it is altered, in the words of `column_types`; a column
            without one is guarded against everything.
        escape_formulas: Whether CSV must be safe to open in a spreadsheet.
    """

    schema: str
    table: str
    columns: tuple[str, ...]
    user_id_column: str
    order_by: tuple[str, ...] = ()
    by_address: bool = False
    matchable: bool = True
    policies: tuple[policies.ColumnPolicy, ...] = ()
    types: tuple[str, ...] = ()
    base_types: tuple[str, ...] = ()
    escape_formulas: bool = False

    @property
    def typed_columns(self) -> tuple[tuple[str, str], ...]:
        """Each column with its base type."""
        return tuple(zip_longest(self.columns, self.base_types, fillvalue=column_types.UNKNOWN))

    @classmethod
    def from_ticket(cls, ticket: dict[str, Any]) -> Extract:
        """Read what `dataclasses.asdict` and JSON made of it."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in ticket.items()
        }
        values["policies"] = tuple(map(policies.from_ticket, values["policies"]))
        return cls(**values)


def count(extract: Extract, user_id: str) -> sql.Composed:
    """How many rows there are, by a statement that has nothing in common with the one that reads them."""
    return sql.SQL("SELECT count(*) FROM {table} WHERE {match}").format(
        table=_table(extract), match=_match(extract, user_id)
    )


def exists(extract: Extract, user_id: str) -> sql.Composed:
    """Whether there is any row."""
    return sql.SQL("SELECT EXISTS (SELECT FROM {table} WHERE {match})").format(
        table=_table(extract), match=_match(extract, user_id)
    )


def unfit(extract: Extract, user_id: str, ranges: Mapping[str, str]) -> sql.Composed:
    """One row that says of each of some columns whether it holds a value outside of a range.

    Args:
        extract: Which rows.
        user_id: Whose rows.
        ranges: Column → the end of a condition, such as ``< '24:00'``: SQL of ours, never configuration.
    """
    misfits = [
        sql.SQL("coalesce(bool_or(NOT ({value} {range})), false)").format(
            value=_value(extract, column), range=sql.SQL(values)
        )
        for column, values in ranges.items()
    ]
    return sql.SQL("SELECT {misfits} FROM {table} WHERE {match}").format(
        misfits=sql.SQL(", ").join(misfits), table=_table(extract), match=_match(extract, user_id)
    )


def comparable(column_type: str, user_id: str) -> sql.Composed:
    """Whether a row can have this id, as the source writes it; fails when the id is no value of the type at all.

    An id names one person: what PostgreSQL would also read as 7 (' 7', '07', '0x7') names nobody, and neither does a
    text that a type cuts short. A uuid may be in capitals. `column_type` must come from the catalogue.
    """
    return sql.SQL("SELECT {value}::{type}::text = {written}").format(
        value=literal(user_id),
        type=sql.SQL(column_type),  # format_type() of the catalogue, not configuration
        written=literal(user_id.lower() if column_type == "uuid" else user_id),
    )


def copy_out(extract: Extract, user_id: str, encoding: RowEncoding) -> sql.Composed:
    """The statement that streams the rows, one line each."""
    return _COPY[encoding](extract, _select(extract, user_id, encoding))


def _copy_csv(extract: Extract, select: sql.Composed) -> sql.Composed:
    return sql.SQL("COPY ({select}) TO STDOUT WITH (FORMAT csv, HEADER, ENCODING 'UTF8')").format(select=select)


def _copy_plain_csv(extract: Extract, select: sql.Composed) -> sql.Composed:
    return sql.SQL("COPY ({select}) TO STDOUT WITH (FORMAT csv, ENCODING 'UTF8')").format(select=select)


def _copy_json(extract: Extract, select: sql.Composed) -> sql.Composed:
    """One JSON object a row, as binary COPY sends a text: as it is, so that nothing is escaped on either side.

    JSON text holds no raw newline but for a value of type json, which may bring some as white space between its
    tokens: they become spaces. (`replace` twice costs a tenth of `translate`, which walks through every character.)
    """
    row = sql.SQL("row_to_json({alias})::text")
    if any(column_types.may_hold_raw_json(base_type) for _, base_type in extract.typed_columns):
        row = sql.SQL("replace(replace(row_to_json({alias})::text, E'\\n', ' '), E'\\r', ' ')")
    alias = sql.Identifier(_unused("r", extract.columns))
    return sql.SQL("COPY (SELECT {row} FROM ({select}) AS {alias}) TO STDOUT WITH (FORMAT binary)").format(
        row=row.format(alias=alias), alias=alias, select=select
    )


_COPY = {
    RowEncoding.CSV: _copy_csv,
    RowEncoding.JSON: _copy_json,
    RowEncoding.NDJSON: _copy_json,
    RowEncoding.PARQUET: _copy_plain_csv,
}


def _select(extract: Extract, user_id: str, encoding: RowEncoding) -> sql.Composed:
    return sql.SQL("SELECT {columns} FROM {table} WHERE {match}{order}").format(
        columns=sql.SQL(", ").join(
            _column(extract, column, base_type, encoding) for column, base_type in extract.typed_columns
        ),
        table=_table(extract),
        match=_match(extract, user_id),
        order=_order(extract),
    )


def _column(extract: Extract, column: str, base_type: str, encoding: RowEncoding) -> sql.Composable:
    """What stands in the SELECT for one column."""
    name = sql.Identifier(column)
    value = _value(extract, column)
    if encoding is RowEncoding.CSV and extract.escape_formulas and column_types.may_begin_a_formula(base_type):
        value = formulas.escaped(value, base_type)
    return name if value == name else sql.SQL("{value} AS {name}").format(value=value, name=name)


def _value(extract: Extract, column: str) -> sql.Composable:
    """The column, altered where a policy says so."""
    for policy in extract.policies:
        if policy.column == column:
            return policies.expression(policy)
    return sql.Identifier(column)


def _table(extract: Extract) -> sql.Identifier:
    return sql.Identifier(extract.schema, extract.table)


def _match(extract: Extract, user_id: str) -> sql.Composable:
    if not extract.matchable:
        return sql.SQL("false")
    return sql.SQL("{column} = {user_id}").format(
        column=sql.Identifier(extract.user_id_column), user_id=literal(user_id)
    )


def _order(extract: Extract) -> sql.Composable:
    if extract.by_address:
        return sql.SQL(" ORDER BY ctid")
    if not extract.order_by:
        return sql.SQL("")
    # With the table's name: a bare name would mean the altered column of the SELECT.
    columns = (sql.Identifier(extract.schema, extract.table, column) for column in extract.order_by)
    return sql.SQL(" ORDER BY {columns}").format(columns=sql.SQL(", ").join(columns))


def _unused(name: str, taken: tuple[str, ...]) -> str:
    """A row alias that is no column: `row_to_json(t)` means the column where there is one named t."""
    while name in taken:
        name += "_"
    return name
