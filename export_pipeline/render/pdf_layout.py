"""How rows become a table or a list of records, and how much room they take.

Widths are fixed here from a sample: letting typst measure every cell doubles the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export_pipeline.render.pdf_text import Rich, marks_in, rich, width
from export_pipeline.render.pdf_values import humanised

#: Beyond this many columns a table is unreadable on A4: each row is then printed as a list of labels and values.
MAX_TABLE_COLUMNS = 7

_PAGE_WIDTH = 487.0  # points between the margins that the template sets
_PADDING = 8.0
_LETTER = 4.4  # points, an average letter
_BOLD = 1.1  # how much wider than the plain letters
_WIDEST_WISH = 240.0
_SHORT = 130.0
_FAIR = 84.0
_LABEL_WIDTH = 130.0
_SAMPLE = 300
_LONG = 200  # characters; whatever is longer wraps anyway
_MARK_WIDTH = 42.0  # of ⟨no value⟩
#: Lines that a cell may have; longer values are printed below their row, over the whole width.
_MAX_LINES = 24

# Memory of the compiler, measured, in units of one printed character of running text (0.45 kB).
_CELL_WEIGHT = 25
_RECORD_CELL_WEIGHT = 65
_MARK_WEIGHT = 20
_LINE_WEIGHT = 8
_FOREIGN = 1.5  # a character outside ASCII, at most

Row = Sequence[str | None]


class Beginning(str):
    """A text of which only the beginning is printed; `mark` says where the rest is."""

    __slots__ = ("mark",)
    mark: str

    @classmethod
    def of(cls, text: str, characters: int, mark: str) -> Beginning:
        """Cut a text.

        Args:
            text: The whole text.
            characters: How many of its characters are printed.
            mark: Printed behind them.
        """
        beginning = cls(text[:characters])
        beginning.mark = mark
        return beginning


def mark_of(value: str | None) -> str:
    """What must be printed behind a value."""
    return value.mark if isinstance(value, Beginning) else ""


def is_table(columns: Sequence[str]) -> bool:
    """Whether rows of these columns are printed as a table; else as records."""
    return len(columns) <= MAX_TABLE_COLUMNS


def weight(row: Row, *, table: bool) -> int:
    """What a row costs the compiler in memory, in printed characters."""
    cell = _CELL_WEIGHT if table else _RECORD_CELL_WEIGHT
    return sum(cell + _value_weight(value) for value in row)


def _value_weight(value: str | None) -> int:
    if not value:
        return _MARK_WEIGHT
    if value.isascii() and value.isprintable():
        return len(value)
    return int(len(value) * _FOREIGN) + _LINE_WEIGHT * value.count("\n") + _MARK_WEIGHT * marks_in(value)


def table(columns: Sequence[str], rows: Sequence[Row], numeric: Sequence[bool]) -> dict[str, Any]:
    """Rows as a table for the template.

    Args:
        columns: Names of the columns.
        rows: Values as text.
        numeric: For each column, whether all its values are numbers: they are set to the right.
    """
    labels = [humanised(name) for name in columns]
    widths = _widths(labels, rows)
    rooms = [points - _PADDING for points in widths]
    lines: list[Any] = []
    for row in rows:
        lines.extend(_table_lines(labels, row, rooms))
    return {
        "kind": "table",
        "widths": widths,
        "right": list(numeric),
        "head": [rich(label, room=room / _BOLD) for label, room in zip(labels, rooms, strict=True)],
        "rows": lines,
    }


def _table_lines(labels: list[str], row: Row, rooms: list[float]) -> list[Any]:
    cells: list[Rich] = []
    below: list[dict[str, Rich]] = []
    for label, value, room in zip(labels, row, rooms, strict=True):
        if value and (len(value) * _LETTER > _MAX_LINES * room or value.count("\n") >= _MAX_LINES):
            cells.append({"p": [{"m": "printed below"}]})
            below.append({"label": rich(label), "value": rich(value, room=_PAGE_WIDTH - 24, suffix=mark_of(value))})
        else:
            cells.append(rich(value, room=room, suffix=mark_of(value)))
    return [cells, *below]


def _widths(labels: list[str], rows: Sequence[Row]) -> list[float]:
    """Share the page's width out among the columns."""
    sample = rows[:: 1 + len(rows) // _SAMPLE]
    wishes = [_wish(label, [row[at] for row in sample]) for at, label in enumerate(labels)]
    if sum(wishes) <= _PAGE_WIDTH:
        return [round(wish * _PAGE_WIDTH / sum(wishes), 1) for wish in wishes]
    return _shared(wishes)


def _wish(label: str, values: list[str | None]) -> float:
    longest_word = max((width(word) for word in label.split()), default=0) * _BOLD
    widths = sorted(width(value[:_LONG]) if value else _MARK_WIDTH for value in values)
    # Of long values one in twenty may wrap: an exception must not take room from the other columns.
    common = next((at for at in (widths[-1], widths[int(len(widths) * 0.95)]) if at < _SHORT), widths[-1])
    return min(max(longest_word, common) + _PADDING + 1, _WIDEST_WISH)


def _shared(wishes: list[float]) -> list[float]:
    """Give short values the width that they wish, so that dates stay on one line; the others share the rest."""
    floors = [wish if wish <= _SHORT else min(wish, _FAIR) for wish in wishes]
    if sum(floors) > _PAGE_WIDTH:
        return [round(floor * _PAGE_WIDTH / sum(floors), 1) for floor in floors]
    lacking = [wish - floor for wish, floor in zip(wishes, floors, strict=True)]
    granted = _poured(lacking, _PAGE_WIDTH - sum(floors))
    return [round(floor + more, 1) for floor, more in zip(floors, granted, strict=True)]


def _poured(lacking: list[float], left: float) -> list[float]:
    granted = [0.0] * len(lacking)
    open_columns = set(range(len(lacking)))
    while open_columns and left > 0.1:
        share = left / len(open_columns)
        filled = {at for at in open_columns if lacking[at] - granted[at] <= share}
        for at in filled or open_columns:
            more = min(share, lacking[at] - granted[at])
            granted[at] += more
            left -= more
        if not filled:
            break
        open_columns -= filled
    return granted


def records(columns: Sequence[str], rows: Sequence[Row], first: int, total: int) -> dict[str, Any]:
    """Rows as lists of labels and values for the template.

    Args:
        columns: Names of the columns.
        rows: Values as text.
        first: Number of the first row, counted from 1.
        total: Rows of this data type in all.
    """
    label_room = _LABEL_WIDTH - _PADDING
    value_room = _PAGE_WIDTH - _LABEL_WIDTH - _PADDING
    return {
        "kind": "records",
        "widths": [_LABEL_WIDTH, _PAGE_WIDTH - _LABEL_WIDTH],
        "labels": [rich(humanised(name), room=label_room) for name in columns],
        "heads": [f"Record {first + at:,} of {total:,}" for at in range(len(rows))],
        "rows": [[rich(value, room=value_room, suffix=mark_of(value)) for value in row] for row in rows],
    }
