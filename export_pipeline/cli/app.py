"""The command's frame: groups the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from export_pipeline import __version__
from export_pipeline.cli import audit, data_types, keys, links, output, requests, retention, roles, sign_in, system
from export_pipeline.errors import ExportPipelineError

app = typer.Typer(
    name="export-pipeline",
    help="Give people their data: every request is one Dagster run, every file is encrypted and provably complete.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(audit.app, name="audit", help="Verify and export the audit trail.")
app.add_typer(keys.app, name="keys", help="Make, show and rotate the keys that seal and sign.")
app.add_typer(data_types.app, name="data-types", help="Show and load the data type configuration.")
for command in (
    *system.COMMANDS,
    *sign_in.COMMANDS,
    roles.roles,
    *requests.COMMANDS,
    *retention.COMMANDS,
    *links.COMMANDS,
):
    app.command()(command) if command.__name__ != "list_requests" else app.command(name="list")(command)


@app.command()
def version(as_json: output.AsJson = False) -> None:
    """Print the version."""
    if as_json:
        output.print_json({"version": __version__})
    else:
        typer.echo(__version__)


def main() -> None:
    """Run the command line; exit code 0 is success, 1 an error that was explained, 2 a wrong call, 130 Ctrl-C."""
    as_json = "--json" in sys.argv[1:]
    try:
        app(standalone_mode=True)
    except ExportPipelineError as error:
        output.print_error(error, as_json=as_json)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("EXPORT_PIPELINE_DEBUG"):
            traceback.print_exc()
        unexpected = ExportPipelineError(
            f"Unexpected {type(error).__name__}.", hint="Set EXPORT_PIPELINE_DEBUG=1 to see where, and report it."
        )
        output.print_error(unexpected, as_json=as_json)
        sys.exit(1)
