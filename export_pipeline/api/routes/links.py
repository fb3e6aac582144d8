"""Download links of a request: which there are, and taking them back. `GET /download/{request_id}` issues them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from export_pipeline.api.dependencies import Target, export
from export_pipeline.api.openapi import documented
from export_pipeline.api.schemas import DownloadLink, DownloadLinks, LinksRevoked
from export_pipeline.identity import Scope

router = APIRouter(prefix="/api/exports", tags=["exports"])
_LinkId = Annotated[
    str,
    Path(description="The id of the link.", pattern="^[0-9a-f]{32}$", examples=["0123456789abcdef0123456789abcdef"]),
]
_Readable = Annotated[Target, Depends(export(Scope.READ))]
_Revocable = Annotated[Target, Depends(export(Scope.REVOKE))]


@router.get("/{request_id}/links", operation_id="list_links", responses=documented(400, 404))
def list_links(
    target: _Readable, limit: Annotated[int, Query(ge=1, le=100, description="At most so many.")] = 50
) -> DownloadLinks:
    """Download links of a request, the newest first: who got them, until when, how often they were used. None of this
    opens anything."""
    found = target.services.links.latest(target.request_id, limit + 1)
    shown = [DownloadLink.of(one) for one in found[:limit]]
    return DownloadLinks(request_id=target.request_id, links=shown, count=len(shown), more=len(found) > limit)


@router.delete("/{request_id}/links/{link_id}", operation_id="revoke_link", responses=documented(400, 404))
def revoke_link(target: _Revocable, link_id: _LinkId) -> DownloadLink:
    """End one download link, and what is being downloaded by it. Harmless when repeated."""
    revoked = target.services.links.revoke(link_id, target.caller.actor, request_id=target.request_id)
    return DownloadLink.of(revoked)


@router.delete("/{request_id}/links", operation_id="revoke_links", responses=documented(404))
def revoke_links(target: _Revocable) -> LinksRevoked:
    """End every download link of a request. Its file stays, and new links can be made."""
    revoked = target.services.links.revoke_all(target.request_id, target.caller.actor)
    return LinksRevoked(request_id=target.request_id, revoked=revoked)
