"""The command: ``python -m benchmarks NAME [--json]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import api, data_path, faults, growth, latency, pdf, report, scene, staging
from benchmarks.measure import ContestantFailed
from export_pipeline.errors import ExportPipelineError

app = typer.Typer(
    name="benchmarks",
    help="Measure the system beside what else one could do. Run them on a quiet machine, and trust ratios.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Rows = Annotated[int, typer.Option(min=1, help="Rows of the user who is exported.")]
Rounds = Annotated[int, typer.Option(min=1, help="Runs of each contestant; medians count.")]
Home = Annotated[Path, typer.Option(help="State folder: kept, so that rows are made once.")]
Only = Annotated[list[str] | None, typer.Option(help="Let only this contestant run; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object on the last line.")]


@app.command("data-path")
def data_path_command(
    rows: Rows = 1_000_000,
    rounds: Rounds = 3,
    home: Home = scene.DEFAULT_HOME,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Export one heavy user as every format, beside psql, the specification's sketch and pandas."""
    report.last_line(data_path.run(rows=rows, rounds=rounds, home=home.absolute(), only=only or ()), as_json=as_json)


@app.command("staging")
def staging_command(
    rows: Rows = 1_000_000, rounds: Rounds = 3, home: Home = scene.DEFAULT_HOME, as_json: AsJson = False
) -> None:
    """Export one heavy user as CSV, by way of sealed parts and in one straight stream."""
    report.last_line(staging.run(rows=rows, rounds=rounds, home=home.absolute()), as_json=as_json)


@app.command("pdf")
def pdf_command(
    rows: Rows = 10_000, rounds: Rounds = 1, home: Home = scene.DEFAULT_HOME, as_json: AsJson = False
) -> None:
    """Export one heavy user as a PDF report with its data files."""
    report.last_line(pdf.run(rows=rows, rounds=rounds, home=home.absolute()), as_json=as_json)


@app.command("latency")
def latency_command(
    requests: Annotated[int, typer.Option(min=1, help="Single requests for warm and Celery workers.")] = 50,
    flood: Annotated[int, typer.Option(min=1, help="Requests at once for warm workers; Celery gets a fifth.")] = 500,
    plain_requests: Annotated[int, typer.Option(min=1, help="Both for the slow contestants.")] = 5,
    plain: Annotated[bool, typer.Option(help="Let plain Dagster take part: half a minute for each request.")] = True,
    home: Home = scene.DEFAULT_HOME,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """From INSERT to completed: plain Dagster, the in-process executor, Celery workers, warm workers."""
    found = latency.run(
        requests=requests,
        flood=flood,
        plain_requests=plain_requests,
        home=home.absolute(),
        only=only or [name for name in latency.CONTESTANTS if plain or name != "plain"],
    )
    report.last_line(found, as_json=as_json)


@app.command("growth")
def growth_command(
    requests: Annotated[int, typer.Option(min=1, help="Requests that each installation gets.")] = 15,
    home: Home = scene.DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """From INSERT to completed with a long past and with many partitions, beside an empty installation."""
    report.last_line(growth.run(requests=requests, home=home.absolute()), as_json=as_json)


@app.command("api")
def api_command(
    clients: Annotated[int, typer.Option(min=1, help="Connections that read at the same time.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="How long they read: idle, and beside exports.")] = 20,
    rows: Rows = 1_000_000,
    home: Home = scene.DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """How long a read of the API takes while a heavy user is exported."""
    report.last_line(api.run(clients=clients, seconds=seconds, rows=rows, home=home.absolute()), as_json=as_json)


@app.command("faults")
def faults_command(
    kills: Annotated[int, typer.Option(min=1, help="Deaths, one after the other.")] = 40,
    seed: Annotated[int, typer.Option(help="Decides who dies and when.")] = 1,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 2.0,
    only: Annotated[list[str] | None, typer.Option(help="Kill only this victim; may be repeated.")] = None,
    launcher: Annotated[str, typer.Option(help="How runs get a process: warm or default.")] = "warm",
    home: Home = scene.DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Kill one part of the system after the other under a steady load, and count what became of every request."""
    found = faults.run(kills=kills, seed=seed, rate=rate, only=only or (), launcher=launcher, home=home.absolute())
    report.last_line(found, as_json=as_json)


def main() -> None:
    """Run the command line; an error that was foreseen is one line."""
    try:
        app()
    except (ExportPipelineError, ContestantFailed) as error:
        report.console.print(f"Error: {error}", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
