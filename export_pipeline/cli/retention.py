"""The command that removes what is due, for those who do not wait for the schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from export_pipeline import settings, wiring
from export_pipeline.cli.output import AsJson, print_json, print_table, refuse
from export_pipeline.errors import FileNotVerified
from export_pipeline.retention import Purge


def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files whose time is over and what crashes left; report files that are missing. Exit code 1 if some are."""
    with wiring.connect(settings.load()) as services:
        done = services.retention.purge(dry_run=dry_run)
    if as_json:
        print_json(done)
    else:
        _show(done)
    if done.missing:
        error = FileNotVerified(
            f"The store lacks the files of {len(done.missing)} completed requests.",
            hint="Restore them, or `export-pipeline delete` the requests.",
        )
        refuse(error, reported=as_json)


def _show(done: Purge) -> None:
    title = "Would be done" if done.dry_run else "Done"
    print_table(["what", "how much"], list(done.facts().items()), title=title)


COMMANDS = (purge,)
