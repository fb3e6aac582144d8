"""What people and machines see: tables for the ones, one JSON document for the others."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export_pipeline.errors import ExportPipelineError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]

#: A pipe has no width to fold for.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

STATUS_STYLE = {
    "completed": "green",
    "partial": "yellow",
    "failed": "red",
    "rejected": "red",
    "processing": "cyan",
    "pending": "blue",
}


def plain(value: Any) -> Any:
    """Turn our nouns into what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def print_json(value: Any) -> None:
    """Print one JSON document."""
    text = json.dumps(plain(value), ensure_ascii=False, indent=1) + "\n"
    # A path may hold bytes that are no text; JSON has a spelling for them.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())
    sys.stdout.flush()


def print_error(error: ExportPipelineError, *, as_json: bool) -> None:
    """Print one clear line about what is wrong and how to mend it."""
    if as_json:
        print_json({"error": type(error).__name__, "message": error.message, "hint": error.hint})
    else:
        errors.print(f"[bold red]Error:[/] {_escape(error.message)} {_escape(error.hint)}".rstrip())


def refuse(error: ExportPipelineError, *, reported: bool) -> NoReturn:
    """End with exit code 1 after a report of what was found.

    Args:
        error: What is wrong.
        reported: Whether the report is a JSON document already: a second one would be no JSON any more.
    """
    if reported:
        raise typer.Exit(1)
    raise error


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", fixed: int = 1) -> None:
    """Print a table; nothing in it is read as markup. The first `fixed` columns are never folded: people copy them."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number < fixed)
    for row in rows:
        table.add_row(*[cell(value) for value in row])
    console.print(table)


def cell(value: Any) -> str:
    """One value as people read it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return _escape(", ".join(map(str, value))) or "-"
    text = value.value if isinstance(value, Enum) else str(value)
    return f"[{STATUS_STYLE[text]}]{text}[/]" if text in STATUS_STYLE else _escape(text)


def human_size(size: int) -> str:
    """Bytes in a unit that people read, 1 KiB = 1024 bytes."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _escape(text: str) -> str:
    """Nothing is read as markup; what a terminal would obey, or turn around, is spelt out."""
    return escape("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))
