"""Commands around the audit trail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from export_pipeline import audit, settings, wiring
from export_pipeline.audit import AuditReport
from export_pipeline.cli.output import AsJson, console, print_json
from export_pipeline.delivery import write
from export_pipeline.errors import InvalidRequest, TrailBroken

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def verify(
    kept_head: Annotated[
        str | None, typer.Option("--head", metavar="HASH", help="A head that you kept: it must still be in the chain.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the hash of every row of the trail again; exit code 1 when one was changed, removed or moved."""
    with wiring.connect(settings.load()) as services:
        report = audit.verify(services.database, kept_head=kept_head)
    if as_json:
        print_json({"intact": report.intact, **_plain(report)})
        if not report.intact:
            raise typer.Exit(1)
        return
    _show(report)
    if not report.intact:
        first = report.breaks[0]
        place = "" if first.log_id is None else f"Row {first.log_id}: "
        raise TrailBroken(f"The audit trail is not what it was. {place}{first.why}")


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; unset means standard output.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only rows from then on, in ISO 8601; without offset it is UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only rows before then.")] = None,
    request_id: Annotated[str | None, typer.Option("--request", help="Only rows of this request.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the trail as NDJSON, one line a row, so that it can be kept and verified elsewhere."""
    with wiring.connect(settings.load()) as services:
        lines = audit.export(services.database, since=_moment(since), until=_moment(until), request_id=request_id)
        if output is None:
            sys.stdout.buffer.writelines(_as_document(lines) if as_json else lines)
            sys.stdout.buffer.flush()
            return
        counted = _Counted(lines)
        write(counted, output)
    if as_json:
        print_json({"file": output, "rows": counted.rows})
    else:
        console.print(f"{output}: {counted.rows:,} rows", markup=False)


@app.command()
def head(as_json: AsJson = False) -> None:
    """Print the hash of the newest row and how many rows there are: keep it where the database's owner cannot write."""
    with wiring.connect(settings.load()) as services:
        newest = audit.head(services.database)
    if as_json:
        print_json(newest)
    else:
        console.print(f"{newest.hash}  {newest.rows:,} rows")


class _Counted:
    """Lines that are counted while they pass."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self.rows = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.rows += 1
            yield line


def _as_document(lines: Iterator[bytes]) -> Iterator[bytes]:
    """One JSON document instead of a line each, as it comes."""
    start = b'{"rows": [\n'
    for line in lines:
        yield start + line.rstrip(b"\n")
        start = b",\n"
    yield b"\n]}\n" if start == b",\n" else b'{"rows": []}\n'


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            "This is no time in ISO 8601.", hint="For example 2026-11-24 or 2026-11-24T06:00:00Z."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _plain(report: AuditReport) -> dict[str, object]:
    return {
        "rows": report.rows,
        "head": report.head.hash,
        "waiting": report.waiting,
        "breaks": report.breaks,
        "more_breaks": report.more,
    }


def _show(report: AuditReport) -> None:
    for found in report.breaks:
        console.print(f"row {found.log_id or '-'}: {found.kind.value}. {found.why}", markup=False)
    if report.more:
        console.print(f"and {report.more:,} more")
    if report.waiting:
        console.print(f"{report.waiting:,} rows wait to be chained: an open transaction keeps the chain.")
    if report.intact:
        console.print(f"{report.rows:,} rows, unbroken. Head: {report.head.hash}")
