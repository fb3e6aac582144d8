"""Commands around the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from export_pipeline import demo as demonstration
from export_pipeline import doctor as examination
from export_pipeline import embedded, settings, supervisor, wiring
from export_pipeline.cli.output import AsJson, cell, console, errors, human_size, print_json, print_table, refuse
from export_pipeline.cli.sign_in import link_of, print_link
from export_pipeline.errors import ConfigurationError, ExportPipelineError
from export_pipeline.models import ExportRequest
from export_pipeline.sample_source import HEAVY_USER
from export_pipeline.supervisor import Stack

_SIGNS = {"good": "[green]✓[/]", "warning": "[yellow]![/]", "bad": "[red]✗[/]"}


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    user: Annotated[str, typer.Option(help="Whose data to export.")] = HEAVY_USER,
    folder: Annotated[Path, typer.Option(help="Where the decrypted copies go.")] = Path("export-demo"),
    as_json: AsJson = False,
) -> None:
    """Show the whole system at work: sample data, one request per format through Dagster, decrypted files."""
    chosen = settings.load()
    with supervisor.stop_on_signals() as stopped, _progress(as_json) as progress:
        task = progress.add_task("Starting")
        with supervisor.start(
            chosen if keep else chosen.model_copy(update={"ui_port": 0, "api_port": 0}),
            say=lambda text: progress.update(task, description=text),
        ) as stack:
            progress.update(task, description="Making the sample data")
            demonstration.install_sample(stack.services)
            files = _demo_files(stack, user, folder, progress)
            progress.stop()
            _show_demo(stack, files, keep=keep, as_json=as_json)
            if keep:
                stopped.wait()


def up(as_json: AsJson = False) -> None:
    """Run the whole system until Ctrl-C: database, Dagster's UI and daemon, run workers."""
    chosen = settings.load()
    for name, nearest in settings.unknown_variables().items():
        meant = f" Is {nearest} meant?" if nearest else ""
        errors.print(f"[yellow]Warning:[/] {cell(name)} sets nothing.{meant}")
    with supervisor.stop_on_signals() as stopped, _progress(as_json) as progress:
        task = progress.add_task("Starting")
        with supervisor.start(chosen, say=lambda text: progress.update(task, description=text)) as stack:
            progress.stop()
            if as_json:
                print_json(
                    {
                        "api_url": stack.api_url,
                        "ui_url": stack.ui_url,
                        "sign_in_url": link_of(stack.services, stack.ui_url),
                        "home": stack.services.settings.home,
                        "logs": stack.log_folder,
                    }
                )
            else:
                _show_addresses(stack)
                print_link(stack.services, stack.ui_url)
                console.print("Stop it with Ctrl-C.")
            stopped.wait()
            if not as_json:
                console.print("Stopping.")


def worker(as_json: AsJson = False) -> None:
    """Run only workers on this machine until Ctrl-C, for a system whose `up` runs on another one."""
    chosen = settings.load()
    with supervisor.stop_on_signals() as stopped, supervisor.start_workers(chosen) as stack:
        if as_json:
            print_json({"launcher": chosen.launcher, "workers": chosen.local_workers, "logs": stack.log_folder})
        else:
            console.print(f"{chosen.local_workers} runs at a time ({chosen.launcher}). Logs: {cell(stack.log_folder)}")
            console.print("Stop it with Ctrl-C.")
        stopped.wait()
        if not as_json:
            console.print("Stopping.")


def migrate(as_json: AsJson = False) -> None:
    """Bring our tables to the newest version, and make the first key."""
    chosen = settings.load()
    applied = wiring.apply_migrations(chosen)
    if as_json:
        print_json({"applied": applied})
    else:
        console.print("\n".join(f"Applied {name}." for name in applied) or "The tables are current.")


def doctor(as_json: AsJson = False) -> None:
    """Check settings, connections, keys, store, clock, data types and indexes, and say how to mend what is wrong."""
    findings = list(examination.examine(settings.load()))
    if as_json:
        print_json({"findings": findings})
    else:
        for finding in findings:
            console.print(f"{_SIGNS[finding.verdict.value]} {cell(finding.check)}: {cell(finding.message)}")
            if finding.hint:
                console.print(f"    {cell(finding.hint)}")
    bad = [finding.check for finding in findings if finding.verdict is examination.Verdict.BAD]
    if bad:
        refuse(ExportPipelineError(f"Not ready: {', '.join(bad)}."), reported=as_json)


def database_url(as_json: AsJson = False) -> None:
    """Print the URL of our database, for psql and your application. The password stands in it: show it to nobody."""
    chosen = settings.load()
    if chosen.database_url is not None:
        url, psql = chosen.database_url.get_secret_value(), None
    elif embedded.is_running(chosen):
        url, psql = embedded.url(chosen), embedded.psql()
    else:
        raise ConfigurationError(
            "The embedded database does not run now.", hint="Start `export-pipeline up`: it runs as long as that does."
        )
    if as_json:
        print_json({"database_url": url, "psql": psql})
    else:
        typer.echo(url)


COMMANDS = (demo, up, worker, migrate, doctor, database_url)


def _progress(quiet: bool) -> Progress:
    """A spinner on the error stream, so that the output can be piped."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=errors, transient=True, disable=quiet)


def _demo_files(stack: Stack, user: str, folder: Path, progress: Progress) -> list[demonstration.DemoFile]:
    requests = demonstration.request_all(stack.services, user)
    tasks = {request.request_id: progress.add_task(f"{request.format}: pending") for request in requests}

    def changed(request: ExportRequest) -> None:
        progress.update(tasks[request.request_id], description=f"{request.format}: {request.status.value}")

    finished = demonstration.wait(stack.services, requests, changed)
    return [demonstration.fetch(stack.services, request, folder) for request in finished]


def _show_demo(stack: Stack, files: list[demonstration.DemoFile], *, keep: bool, as_json: bool) -> None:
    if as_json:
        print_json({"files": [{"format": f.request.format, "path": f.path, **_facts(f)} for f in files]})
        return
    print_table(
        ["file", "records", "size", "stored sealed", "seconds"],
        [
            [str(file.path), file.metadata.total_records, human_size(file.metadata.file_size_bytes),
             human_size(file.metadata.stored_size_bytes), f"{_seconds(file):.1f}"]
            for file in files
        ],
        title="Every record of the user, exported, encrypted, stored, and read back",
    )  # fmt: skip
    _show_addresses(stack)
    if keep:
        print_link(stack.services, stack.ui_url)
        console.print("Everything is still running. Stop it with Ctrl-C.")
    else:
        console.print("Everything was stopped; `export-pipeline up` starts it again.")


def _facts(file: demonstration.DemoFile) -> dict[str, object]:
    return {
        "request_id": file.request.request_id,
        "records": file.metadata.total_records,
        "bytes": file.metadata.file_size_bytes,
        "sha256": file.metadata.sha256,
        "seconds": _seconds(file),
    }


def _seconds(file: demonstration.DemoFile) -> float:
    done = file.request.completed_at
    return (done - file.request.requested_at).total_seconds() if done else 0.0


def _show_addresses(stack: Stack) -> None:
    console.print(f"API         {stack.api_url}/api/docs")
    console.print(f"Dagster UI  {stack.ui_url}")
    console.print(f"State       {cell(stack.services.settings.home)}")
    console.print(f"Logs        {cell(stack.log_folder)}")
