"""Live changes of a request, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from export_pipeline.api import problems
from export_pipeline.api.changes import Changes
from export_pipeline.api.dependencies import Target, export
from export_pipeline.api.openapi import Responses, documented
from export_pipeline.api.schemas import Export
from export_pipeline.errors import DatabaseUnavailable
from export_pipeline.identity import Scope
from export_pipeline.models import RequestStatus

router = APIRouter(prefix="/api/exports", tags=["exports"])
#: Proxies cut what is silent for a minute.
HEARTBEAT_S = 15.0
#: Then the client comes back, and its token is looked at again.
_LONGEST_S = 300.0
MOST = 1000
#: So that nobody keeps everybody else out.
MOST_OF_ONE = 50
_RETRY_AFTER_S = 30
_FULL = problems.Kind(
    status=503, name="busy", title="Too many listeners", detail="Too many listen at this moment. Ask for the status."
)
_MOVING = frozenset({RequestStatus.AWAITING_APPROVAL, RequestStatus.PENDING, RequestStatus.PROCESSING})
_STREAM: Responses = {
    200: {
        "description": "An event `status` now and after each change, its data like the answer of"
        " `GET /status/{request_id}`; comments between them keep the connection. It ends when the request has ended,"
        " and after five minutes in any case: connect again.",
        "content": {"text/event-stream": {}},
    }
}
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get(
    "/status/{request_id}/events",
    operation_id="follow_export",
    response_class=StreamingResponse,
    responses={**documented(404), **_STREAM},
)
async def follow_export(request: Request, target: Annotated[Target, Depends(export(Scope.READ))]) -> Response:
    """Follow the status of a request until it has ended."""
    changes: Changes = request.app.state.changes
    if changes.waiting >= MOST or changes.waiting_for(target.caller.principal.id) >= MOST_OF_ONE:
        return problems.response(_FULL, headers={"Retry-After": str(_RETRY_AFTER_S)})
    return StreamingResponse(_events(changes, target), media_type="text/event-stream", headers=_HEADERS)


async def _events(changes: Changes, target: Target) -> AsyncIterator[str]:
    ends = time.monotonic() + _LONGEST_S
    shown = ""
    yield "retry: 2000\n\n"
    async with changes.of(target.request_id, person=target.caller.principal.id) as changed:
        while True:
            changed.clear()
            try:
                export = Export.of(await run_in_threadpool(target.again), target.services.settings)
            except DatabaseUnavailable:
                return  # the client connects again, and hears by the status code what is the case
            if (text := export.model_dump_json()) != shown:
                shown = text
                yield f"event: status\ndata: {text}\n\n"
            if export.status not in _MOVING or time.monotonic() > ends:
                return
            if not await _heard(changed):
                yield ": still here\n\n"


async def _heard(changed: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
    except TimeoutError:
        return False
    return True
