"""What people see, and the last line for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

#: Beside the figures of `--json`: progress and tables go to standard error, so that the output stays a document.
console = Console(stderr=True, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print figures, numbers to the right."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        made.add_row(*[_cell(value) for value in row])
    # Where nobody sees it (a pipe, a log), it need not be narrow.
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(made)


def last_line(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the figures: one JSON object on one line, or one a line."""
    if as_json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name:>20}  {'-' if value is None else value}\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
