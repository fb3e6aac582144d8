"""`GET /api/exports/files/{token}`: a file, or a piece of it, by its link. The token is the permission."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from export_pipeline.api.dependencies import ServicesDep, address_of
from export_pipeline.api.file_desk import HANDED_OUT, LOOKED_AT, Entitled, FileDesk, IfRange, Range, Wanted
from export_pipeline.api.openapi import Responses, public
from export_pipeline.db.links import IssuedLink
from export_pipeline.delivery import find
from export_pipeline.errors import LinkEnded, WrongStatus
from export_pipeline.links import PATH, Links
from export_pipeline.models import Actor
from export_pipeline.wiring import Services

router = APIRouter(tags=["exports"])
_REDIRECT: Responses = {
    307: {"description": "The store itself hands it out, at the address in the header Location."},
}


@dataclass(frozen=True, kw_only=True)
class ByLink:
    """Whoever has a link gets its file.

    Attributes:
        link: The link.
        client: From where it is used.
        links: Where it is counted.
    """

    link: IssuedLink
    client: Actor
    links: Links

    @property
    def key(self) -> str:
        """The link's id."""
        return self.link.link_id

    def record(self, *, from_start: bool) -> None:
        """Count it for the link."""
        self.links.count_download(self.link, self.client, from_start=from_start)

    def lasts(self) -> bool:
        """Until somebody takes the link back."""
        return self.links.is_open(self.link)


@router.get(
    PATH + "{token}",
    operation_id="get_file_by_link",
    response_class=Response,
    responses={**public(403, 410, 503), **HANDED_OUT, **_REDIRECT},
)
async def download_file(
    token: str, request: Request, services: ServicesDep, range: Range = None, if_range: IfRange = None
) -> Response:
    """The file as it was delivered; the link's signature is the permission. A `Range` gets a piece, so that an
    interrupted download goes on; the `ETag` is the file's SHA-256."""
    desk: FileDesk = request.app.state.desk
    wanted = Wanted(range=range, if_range=if_range)
    return await desk.answer(request, lambda: _look(services, token, address_of(request)), wanted, redirect=True)


@router.head(
    PATH + "{token}",
    operation_id="look_at_file_by_link",
    response_class=Response,
    responses={**public(403, 410, 503), **LOOKED_AT},
)
async def look_at_file(token: str, request: Request, services: ServicesDep) -> Response:
    """The headers that a `GET` would have. Nothing is opened, counted or used up."""
    desk: FileDesk = request.app.state.desk
    return await desk.answer(request, lambda: _look(services, token, address_of(request)), Wanted())


def _look(services: Services, token: str, client: Actor) -> Entitled:
    links = services.links
    link = links.redeem(token)
    try:
        file = find(services.database, link.request_id)
    except WrongStatus as error:  # it went away in this moment
        raise LinkEnded(error.message, hint=error.hint) from None
    return Entitled(file=file, right=ByLink(link=link, client=client, links=links))
