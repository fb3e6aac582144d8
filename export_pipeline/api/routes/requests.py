"""Ask for an export."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from export_pipeline.api.dependencies import Caller, ServicesDep, require
from export_pipeline.api.openapi import documented
from export_pipeline.api.schemas import Requested, RequestExport, UserId
from export_pipeline.api.verification import VerificationCode, require_verified
from export_pipeline.errors import NotAuthenticated, WrongStatus
from export_pipeline.identity import Scope
from export_pipeline.models import ExportRequest, RequestStatus, RequestType
from export_pipeline.wiring import Services

router = APIRouter(prefix="/api/exports", tags=["exports"])

_Requester = Annotated[Caller, Depends(require(Scope.REQUEST))]
_UserId = Annotated[UserId, Path(description="Whose data.", examples=["user-0004"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="A word of the caller's own: calls with the same one make one request.",
        examples=["b7a4c1"],
    ),
]
_RESPONSES = documented(400, 409, 413, 429)
_WAITS = "Export request created. It waits for approval; its status is at status_url."
_CREATED = "Export request created. Its status is at status_url."


@router.post("/request", operation_id="request_export", status_code=202, responses=_RESPONSES)
def request_export(
    asked: RequestExport,
    response: Response,
    services: ServicesDep,
    caller: _Requester,
    idempotency_key: IdempotencyKey = None,
    verification_code: VerificationCode = None,
) -> Requested:
    """Ask for an export. An identical request that is still open is given back instead of a second one."""
    caller.require(asked.user_id)
    # A call that is repeated because its answer got lost makes nothing, and its code was used up by the first one.
    if idempotency_key is None or not services.requests.used(idempotency_key, caller.actor.id):
        require_verified(services, caller, asked, verification_code)
    request = services.intake.request(
        user_id=asked.user_id,
        data_types=asked.data_types,
        actor=caller.actor,
        format=asked.format.value,
        kind=asked.request_type.value,
        anonymize=asked.anonymize,
        recipient=asked.recipient,
        idempotency_key=idempotency_key,
    )
    _require_same(request, asked)
    return _requested(request, response, services)


@router.post("/gdpr/{user_id}", operation_id="request_gdpr_export", status_code=202, responses=_RESPONSES)
def request_gdpr_export(
    user_id: _UserId,
    response: Response,
    services: ServicesDep,
    caller: _Requester,
    idempotency_key: IdempotencyKey = None,
    verification_code: VerificationCode = None,
) -> Requested:
    """Ask for everything about a person: every data type, as JSON, within the time that the law gives."""
    return _everything(user_id, response, services, caller, idempotency_key, verification_code)


@router.get(
    "/gdpr/{user_id}",
    operation_id="request_gdpr_export_by_get",
    status_code=202,
    responses=documented(400, 409, 429),
    deprecated=True,
)
def request_gdpr_export_by_get(
    request: Request,
    user_id: _UserId,
    response: Response,
    services: ServicesDep,
    caller: _Requester,
    verification_code: VerificationCode = None,
) -> Requested:
    """The same by GET, for callers of old, with a bearer token only. Use POST: what fetches links in advance would ask
    for exports.
    """
    if "authorization" not in request.headers:
        # A browser sends its cookie along with whatever picture a page of somebody else's shows.
        raise NotAuthenticated("This address needs a bearer token.")
    return _everything(user_id, response, services, caller, None, verification_code)


def _everything(
    user_id: str,
    response: Response,
    services: Services,
    caller: Caller,
    idempotency_key: str | None,
    verification_code: str | None,
) -> Requested:
    asked = RequestExport(user_id=user_id, data_types=[], request_type=RequestType.GDPR)
    return request_export(asked, response, services, caller, idempotency_key, verification_code)


def _require_same(request: ExportRequest, asked: RequestExport) -> None:
    """An idempotency key stands for one request, and not for whatever comes with it next."""
    found = (request.user_id, request.request_type, request.format, request.anonymize)
    wanted = (asked.user_id, asked.request_type.value, asked.format.value, asked.anonymize)
    types_differ = asked.request_type is not RequestType.GDPR and set(asked.data_types) != set(request.data_types)
    if found != wanted or types_differ:
        raise WrongStatus("This Idempotency-Key was used for another request.", hint="Take a new one.")


def _requested(request: ExportRequest, response: Response, services: Services) -> Requested:
    url = services.settings.address(f"/api/exports/status/{request.request_id}")
    response.headers["Location"] = url
    return Requested(
        request_id=request.request_id,
        status=request.status,
        message=_WAITS if request.status is RequestStatus.AWAITING_APPROVAL else _CREATED,
        status_url=url,
        due_at=request.due_at,
    )
