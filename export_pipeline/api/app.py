"""The application: routes, what surrounds them, and how a process comes by its parts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import ExitStack

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from export_pipeline import __version__, settings, wiring
from export_pipeline.api import docs_page, openapi, problems
from export_pipeline.api.changes import Changes
from export_pipeline.api.client_address import ClientAddress
from export_pipeline.api.file_desk import FileDesk
from export_pipeline.api.metrics import Metrics
from export_pipeline.api.middleware import BodyLimit, Figures, SecurityHeaders, Unexpected
from export_pipeline.api.routes import (
    audit,
    data_types,
    decisions,
    download,
    events,
    exports,
    files,
    links,
    requests,
    system,
    verification,
)
from export_pipeline.db.pool import Bounds, Database
from export_pipeline.sign_in import web

#: Calls that use the database at the same time; one more waits for its turn.
_CONNECTIONS = 10
#: Nobody waits longer at a web address for a database that is away.
_PATIENCE_S = 3.0
#: A call that a lock holds up gives its place back before those who wait for the place lose their patience. A statement
#: takes milliseconds; the longest is the count of every request for `/metrics`.
_BOUNDS = Bounds(statement_s=30.0, lock_s=2.0)
#: Headers that pages of other origins may send, and see.
_ASKED = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "If-Range", "Range", "Verification-Code")
_TOLD = ("Accept-Ranges", "Content-Disposition", "Content-Range", "ETag", "Location", "Repr-Digest", "Retry-After")
#: Addresses that are words of the path come before those that take an id there.
_ROUTERS = (download.router, system.router, requests.router, data_types.router, events.router, exports.router,
            files.router, links.router, decisions.router, audit.router, verification.router)  # fmt: skip


def create_app(services: wiring.Services) -> FastAPI:
    """Make the application over an installation's parts, which the caller closes.

    Args:
        services: The parts.
    """
    app = FastAPI(
        title="export-pipeline",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.services = services
    app.state.changes = Changes(services.database)
    app.state.metrics = Metrics(services.database)
    app.state.readiness = system.readiness(services)
    app.state.held = ExitStack()
    app.state.desk = FileDesk(services)
    for router in _ROUTERS:
        app.include_router(router)
    app.router.routes.extend(web.routes(services.gatekeeper, services.settings.public_url))
    docs_page.install(app)
    openapi.install(app, _ROUTERS)
    problems.install(app, _ROUTERS)
    _surround(app, services.settings)
    return app


def application() -> FastAPI:
    """Make the application from the environment, for any ASGI server: `uvicorn --factory
    export_pipeline.api.app:application`. It closes its parts when the server stops.

    Raises:
        ExportPipelineError: Settings, database or tables are not usable.
    """
    services = wiring.connect(settings.load(), connections=_CONNECTIONS, patience_s=_PATIENCE_S, bounds=_BOUNDS)
    app = create_app(services)
    app.state.held.enter_context(services)
    return app


def openapi_document() -> dict[str, object]:
    """The OpenAPI document, without an installation."""
    parts = wiring.Services(
        settings=settings.Settings(_env_file=None),
        database_url="",
        database=Database(""),
        _held=ExitStack(),
    )
    return create_app(parts).openapi()


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    with app.state.held:
        yield


def _surround(app: FastAPI, chosen: settings.Settings) -> None:
    """From the inside out: what comes last sees a call first."""
    app.add_middleware(Unexpected)
    app.add_middleware(BodyLimit)
    if origins := settings.words(chosen.api_cors_origins):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=_ASKED,
            expose_headers=_TOLD,
        )
    app.add_middleware(SecurityHeaders, hsts=chosen.api_hsts)
    app.add_middleware(Figures, observe=app.state.metrics.observe)
    app.add_middleware(ClientAddress, trusted=settings.networks(chosen.api_trusted_proxies))
