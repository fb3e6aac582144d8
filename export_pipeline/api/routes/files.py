"""A file, or a piece of it, for whoever is signed in and may have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from export_pipeline.api.dependencies import Target, export
from export_pipeline.api.file_desk import HANDED_OUT, LOOKED_AT, Entitled, FileDesk, IfRange, Range, Wanted
from export_pipeline.api.openapi import documented
from export_pipeline.db.downloads import count_download
from export_pipeline.delivery import find, is_there
from export_pipeline.identity import Scope

router = APIRouter(prefix="/api/exports", tags=["exports"])
_Downloadable = Annotated[Target, Depends(export(Scope.DOWNLOAD))]


@dataclass(frozen=True, kw_only=True)
class BySignIn:
    """Whoever may get the file of a request by their roles.

    Attributes:
        target: The request, and who asks.
    """

    target: Target

    @property
    def key(self) -> str:
        """The request and the person."""
        return f"{self.target.request_id} {self.target.caller.principal.id}"

    def record(self, *, from_start: bool) -> None:
        """Write it into the trail under their own name."""
        actor = self.target.caller.actor
        count_download(self.target.services.database, self.target.request_id, actor, from_start=from_start)

    def lasts(self) -> bool:
        """As long as there is the file."""
        return is_there(self.target.services.database, self.target.request_id)


@router.get(
    "/{request_id}/file",
    operation_id="get_file",
    response_class=Response,
    responses={**documented(404, 409, 410), **HANDED_OUT},
)
async def get_file(target: _Downloadable, request: Request, range: Range = None, if_range: IfRange = None) -> Response:
    """Fetch the decrypted file with the token instead of a link. A `Range` gets a piece, so that an interrupted
    download goes on; the `ETag` is the file's SHA-256. A damaged file ends before its announced length."""
    desk: FileDesk = request.app.state.desk
    return await desk.answer(request, lambda: _look(target), Wanted(range=range, if_range=if_range))


@router.head(
    "/{request_id}/file",
    operation_id="look_at_file",
    response_class=Response,
    responses={**documented(404, 409, 410), **LOOKED_AT},
)
async def look_at_file(target: _Downloadable, request: Request) -> Response:
    """The headers that a `GET` would have. Nothing is opened or counted."""
    desk: FileDesk = request.app.state.desk
    return await desk.answer(request, lambda: _look(target), Wanted())


def _look(target: Target) -> Entitled:
    target.require_file()
    return Entitled(file=find(target.services.database, target.request_id), right=BySignIn(target=target))
