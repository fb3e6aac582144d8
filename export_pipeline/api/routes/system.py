"""For machines that look after this one: is it alive, can it work, how is it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from export_pipeline import __version__
from export_pipeline.api.authentication import authenticate
from export_pipeline.api.dependencies import ServicesDep, require
from export_pipeline.api.metrics import CONTENT_TYPE
from export_pipeline.api.openapi import Responses, documented, public
from export_pipeline.api.schemas import Health, Ready
from export_pipeline.db.migrate import require_current
from export_pipeline.errors import ExportPipelineError
from export_pipeline.identity import Scope
from export_pipeline.wiring import Services

router = APIRouter(tags=["system"])
#: Anybody may ask: the stores are looked at this often at most.
_FRESH_S = 3.0
_READY: Responses = {503: {"description": "Something is missing; `checks` says what.", "model": Ready}}
_TEXT: Responses = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/health", operation_id="health", responses=public())
async def health() -> Health:
    """The process lives. It looks at nothing else."""
    return Health(version=__version__)


@router.get("/ready", operation_id="ready", responses={**public(), **_READY})
def ready(request: Request) -> JSONResponse:
    """Everything that a request needs is there: database, tables, key, store."""
    answer: Ready = request.app.state.readiness()
    return JSONResponse(
        answer.model_dump(), 200 if answer.status == "ready" else 503, headers={"Cache-Control": "no-store"}
    )


async def _scraper(request: Request, services: ServicesDep) -> None:
    if not services.settings.api_public_metrics:
        authenticated = request.app.dependency_overrides.get(authenticate, authenticate)
        await require(Scope.READ_METRICS, everybody=True)(request, await authenticated(request))


_scraper.scope = Scope.READ_METRICS  # type: ignore[attr-defined]


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={**documented(), **_TEXT},
    dependencies=[Depends(_scraper)],
)
def metrics(request: Request) -> Response:
    """Figures for Prometheus: the queue, requests by status and format, answers and their times by route."""
    return Response(request.app.state.metrics.exposition(), media_type=CONTENT_TYPE)


def readiness(services: Services) -> Callable[[], Ready]:
    """Make the check, which keeps its answer for a moment.

    While somebody looks, all others get the answer of before: a store that hangs must not hold up a thread for each of
    the strangers that ask.
    """
    lock = threading.Lock()
    kept, until = Ready(status="not ready", checks={}), 0.0

    def check() -> Ready:
        nonlocal kept, until
        if time.monotonic() < until or not lock.acquire(blocking=not kept.checks):
            return kept
        try:
            kept, until = _look(services), time.monotonic() + _FRESH_S
        finally:
            lock.release()
        return kept

    return check


def _look(services: Services) -> Ready:
    checks = {
        "database": _holds(lambda: _ask(services)),
        "migrations": _holds(lambda: _current(services)),
        "key": _holds(lambda: services.vault().require_key()),
        "store": _holds(lambda: services.vault().keys("ready")),
    }
    return Ready(status="ready" if all(checks.values()) else "not ready", checks=checks)


def _holds(check: Callable[[], object]) -> bool:
    try:
        check()
    except ExportPipelineError:
        return False
    return True


def _ask(services: Services) -> None:
    with services.database.connect() as connection:
        connection.execute("SELECT 1")


def _current(services: Services) -> None:
    with services.database.connect() as connection:
        require_current(connection)
