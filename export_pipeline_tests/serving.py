"""The API on loopback, by a real server: beside a test, or in a process of its own whose memory counts.

`python -m export_pipeline_tests.serving` serves the installation that the environment names, and prints its port.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from export_pipeline import settings, wiring
from export_pipeline.api.app import create_app


def served(services: wiring.Services) -> AbstractContextManager[int]:
    """Serve the API in a thread; gives the port."""
    return served_app(create_app(services))


@contextmanager
def served_app(app: ASGIApp) -> Iterator[int]:
    """Serve any application in a thread.

    Yields:
        The port.
    """
    listener = _listener()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def main() -> None:
    with wiring.connect(settings.load()) as services:
        listener = _listener()
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(create_app(services), lifespan="off")).run(sockets=[listener])


if __name__ == "__main__":
    main()
