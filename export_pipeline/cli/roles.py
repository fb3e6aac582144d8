"""The roles of an installation in PostgreSQL."""

from __future__ import annotations

import sys

from export_pipeline.cli.output import AsJson, print_json
from export_pipeline.db.migrate import roles_sql


def roles(as_json: AsJson = False) -> None:
    """Print the SQL that makes the least-privilege roles; a superuser runs it once, `migrate` grants the rest."""
    if as_json:
        print_json({"sql": roles_sql()})
    else:
        sys.stdout.write(roles_sql())
