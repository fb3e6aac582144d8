"""How ops hand tickets to each other: as JSON in our database.

Dagster's default pickles op outputs into a local folder; a re-execution on another machine would not find them.
"""

from typing import Any

import dagster as dg

from export_pipeline.defs.lasting import outlast
from export_pipeline.defs.own_errors import own_errors
from export_pipeline.defs.process import services
from export_pipeline.errors import ExportPipelineError


class TicketIOManager(dg.IOManager):
    """Stores op outputs in `export_run_tickets`."""

    @own_errors()
    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write the ticket of one output."""
        run_id, step_key, *output = context.get_identifier()
        # The op has done its work: a connection that breaks now must not make it fail.
        outlast(lambda: services().tickets.put(run_id, step_key, "/".join(output), obj))

    @own_errors()
    def load_input(self, context: dg.InputContext) -> Any:
        """Read the ticket that an upstream step wrote, in this run or in the run that it re-executes."""
        if context.upstream_output is None:
            raise ExportPipelineError("Tickets come from ops only.")
        run_id, step_key, *output = context.upstream_output.get_identifier()
        return outlast(lambda: services().tickets.get(run_id, step_key, "/".join(output)))
