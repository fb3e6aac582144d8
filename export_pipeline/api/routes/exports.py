"""Follow exports, fetch them, end them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from export_pipeline.api import pages
from export_pipeline.api.conditional import NOT_MODIFIED, IfNoneMatch, conditional
from export_pipeline.api.dependencies import Caller, ServicesDep, Target, export, require
from export_pipeline.api.openapi import documented
from export_pipeline.api.schemas import Deleted, Download, Export, Exports, History, Manifest, UserId
from export_pipeline.db.listing import Listing, Place
from export_pipeline.errors import WrongStatus
from export_pipeline.identity import Scope
from export_pipeline.models import ExportFormat, RequestStatus, RequestType

router = APIRouter(prefix="/api/exports", tags=["exports"])

_Reader = Annotated[Caller, Depends(require(Scope.READ))]
_Readable = Annotated[Target, Depends(export(Scope.READ))]
_Downloadable = Annotated[Target, Depends(export(Scope.DOWNLOAD))]


@router.get("", operation_id="list_exports", responses=documented(400))
def list_exports(
    services: ServicesDep,
    caller: _Reader,
    status: Annotated[RequestStatus | None, Query(description="Only with this status.")] = None,
    user_id: Annotated[UserId | None, Query(description="Only of this person.", examples=["user-0004"])] = None,
    request_type: Annotated[RequestType | None, Query(description="Only of this type.")] = None,
    format: Annotated[ExportFormat | None, Query(description="Only in this format.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="At most so many on a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=600, description="next_cursor of the page before.")] = None,
) -> Exports:
    """Exports, newest first, page by page; those who may see only their own get their own."""
    if user_id is None and not caller.may(None):
        user_id = caller.principal.id
    caller.require(user_id)
    found = Listing(services.database).page(
        limit=limit + 1,
        after=None if cursor is None else pages.place(cursor),
        status=status,
        user_id=user_id,
        request_type=request_type,
        format=format,
    )
    shown = found[:limit]
    more = pages.cursor(Place.of(shown[-1].request)) if len(found) > limit else None
    return Exports(exports=[Export.of(one, services.settings) for one in shown], count=len(shown), next_cursor=more)


@router.get("/user/{user_id}/history", operation_id="get_history", responses=documented(400))
def get_history(
    user_id: Annotated[UserId, Path(description="Whose exports.", examples=["user-0004"])],
    services: ServicesDep,
    caller: _Reader,
    limit: Annotated[int, Query(ge=1, le=50, description="At most so many.")] = 10,
) -> History:
    """A person's exports, newest first."""
    caller.require(user_id)
    found = Listing(services.database).page(limit=limit, user_id=user_id)
    return History(user_id=user_id, exports=[Export.of(one, services.settings) for one in found], count=len(found))


@router.get(
    "/status/{request_id}",
    operation_id="get_status",
    response_model=Export,
    responses={**documented(400, 404), **NOT_MODIFIED},
)
async def get_status(target: _Readable, if_none_match: IfNoneMatch = None) -> Response:
    """One export request: where it stands."""
    return conditional(Export.of(target.listed, target.services.settings), if_none_match)


@router.get(
    "/{request_id}/manifest",
    operation_id="get_manifest",
    response_model=Manifest,
    responses={**documented(400, 404, 409, 410), **NOT_MODIFIED},
)
def get_manifest(target: _Readable, if_none_match: IfNoneMatch = None) -> Response:
    """What the file holds, with counts and hashes, and what is missing and why."""
    target.require_file()
    metadata = target.services.requests.metadata(target.request_id)
    if metadata is None:
        raise WrongStatus("There is no file.")
    return conditional(Manifest.model_validate(metadata.manifest), if_none_match)


@router.get("/download/{request_id}", operation_id="get_download", responses=documented(404, 409, 410))
def get_download(target: _Downloadable) -> Download:
    """Get an address from which whoever has it can fetch the file, for a while and without a token."""
    target.require_file()
    link = target.services.links.issue(target.request_id, target.caller.actor)
    left = link.expires_at - datetime.now(UTC)
    url = target.services.settings.address(link.url_path)
    return Download(download_url=url, expires_in=max(0, round(left.total_seconds())), link_id=link.link_id)


@router.delete("/{request_id}", operation_id="delete_export", responses=documented(404))
def delete_export(target: Annotated[Target, Depends(export(Scope.DELETE))]) -> Deleted:
    """Remove the file for good, and end the run if there is one; the row and its trail stay. Harmless when repeated."""
    deleted = target.services.intake.delete(target.request_id, target.caller.actor)
    return Deleted(message="Export deleted successfully", request_id=deleted.request_id, status=deleted.status)


@router.post("/{request_id}/cancel", operation_id="cancel_export", responses=documented(404, 409))
def cancel_export(target: Annotated[Target, Depends(export(Scope.CANCEL))]) -> Export:
    """End a request that has no file yet, and its run."""
    target.services.intake.cancel(target.request_id, target.caller.actor)
    return Export.of(target.again(), target.services.settings)


@router.post("/{request_id}/retry", operation_id="retry_export", responses=documented(404, 409, 429))
def retry_export(target: Annotated[Target, Depends(export(Scope.RETRY))]) -> Export:
    """Put a failed or cancelled request back into the queue."""
    target.services.intake.retry(target.request_id, target.caller.actor)
    return Export.of(target.again(), target.services.settings)
