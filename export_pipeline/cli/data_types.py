"""`export-pipeline data-types …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from export_pipeline import data_type_file, settings, wiring
from export_pipeline.cli.account import me
from export_pipeline.cli.output import AsJson, console, print_json, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_data_types(as_json: AsJson = False) -> None:
    """Show which data types there are and where they live in the source."""
    with wiring.connect(settings.load()) as services:
        configs = services.data_types.all()
    if as_json:
        print_json({"data_types": configs})
        return
    print_table(
        ["data type", "table", "user column", "columns", "sensitive", "approval"],
        [
            [c.data_type, c.table_name, c.user_id_column, c.columns_to_export or "all", c.is_sensitive,
             c.requires_approval]
            for c in configs
        ],
    )  # fmt: skip


@app.command("apply")
def apply_data_types(
    file: Annotated[Path, typer.Argument(help="YAML file with a list `data_types`.")],
    prune: Annotated[bool, typer.Option(help="Remove data types that the file does not name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load the data type configuration from a YAML file, all or nothing."""
    configs = data_type_file.load(file)
    with wiring.connect(settings.load()) as services:
        changed = services.data_types.apply(configs, me(), prune=prune)
    if as_json:
        print_json({"changed": changed})
    else:
        console.print(f"Changed: {', '.join(changed)}." if changed else "Nothing had to change.")
