"""Serves the API: `python -m export_pipeline.api`. `up` keeps it running; any other ASGI server serves as well."""

from __future__ import annotations

import sys

import uvicorn

from export_pipeline import settings
from export_pipeline.api.http_protocol import BoundedRequests
from export_pipeline.errors import ExportPipelineError

_GRACE_S = 5


def main() -> None:
    """Serve until the process is asked to end. Calls in progress get a moment; who follows a request connects again."""
    try:
        chosen = settings.load()
    except ExportPipelineError as error:
        sys.exit(str(error))
    uvicorn.run(
        "export_pipeline.api.app:application",
        factory=True,
        host=chosen.api_host,
        port=chosen.api_port,
        http=BoundedRequests,
        server_header=False,
        # Paths hold the ids of people; the figures count calls by route instead.
        access_log=False,
        # `client_address` decides whom to believe.
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
    )


if __name__ == "__main__":
    main()
