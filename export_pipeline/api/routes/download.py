"""`GET /api/exports/files/{token}`: a file, or a piece of it, by its link. The token is the permission.

Nothing of the file is kept: it is decrypted in a thread of its own, a few chunks ahead of the client, and that thread
ends when the client goes away. docs/links.md tells what clients may rely on.
"""

from __future__ import annotations

import base64
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from export_pipeline.api import problems
from export_pipeline.api.byte_ranges import Piece, Unsatisfiable, http_date, piece, still_the_same
from export_pipeline.api.openapi import FILE_CONTENT, Responses, public
from export_pipeline.db.links import IssuedLink
from export_pipeline.delivery import DeliveredFile, find, read
from export_pipeline.errors import DatabaseUnavailable, ExportPipelineError, LinkEnded, WrongStatus
from export_pipeline.links import PATH, Links
from export_pipeline.models import Actor
from export_pipeline.vault.store import Vault
from export_pipeline.wiring import Services

#: A client that takes nothing for so long is gone.
_STALLED_S = 120
#: How often a running download looks whether its link was revoked.
_LOOK_S = 10.0
#: A redirect to the store is followed at once; nobody is to keep its address.
_REDIRECTED = timedelta(minutes=1)
_RETRY_AFTER_S = 10
#: Between two downloads of one program, its place is free a moment late.
_PATIENCE_S = 3.0
#: As many connections as download programs make for one file.
_PER_LINK = 16
_MAX_USER_AGENT = 255

_HEADERS = {
    "Accept-Ranges": "bytes",
    # No proxy may keep the file, or compress it on the way: then ETag and ranges would be those of other bytes.
    "Cache-Control": "private, no-store, no-transform",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
_PREFETCH = problems.Kind(
    status=503,
    name="prefetch",
    title="Not in advance",
    detail="Files are not fetched in advance. Open the link when you want the file.",
)
_FULL = problems.Kind(
    status=503, name="busy", title="Too many downloads", detail="Too many downloads at this moment. Try again soon."
)
_RANGE = problems.Kind(
    status=416, name="range", title="No such piece", detail="The piece begins behind the end of the file."
)

_PROBLEM = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_BYTES = FILE_CONTENT
_ANSWERS: Responses = {
    200: {"description": "The file.", "content": _BYTES},
    206: {"description": "The piece of it that the header Range asks for.", "content": _BYTES},
    307: {"description": "The store itself hands it out, at the address in the header Location."},
    416: {"description": "The piece begins behind the end of the file.", "content": _PROBLEM},
}

_log = logging.getLogger(__name__)
T = TypeVar("T")


def router(services: Services) -> APIRouter:
    """Make the routes; they need `problems.install` in the application.

    Args:
        services: The installation's parts.
    """
    made = APIRouter()
    desk = _Desk(services)

    @made.get(
        PATH + "{token}",
        operation_id="get_file_by_link",
        tags=["exports"],
        response_class=Response,
        responses={**public(403, 410, 503), **_ANSWERS},
    )
    async def download_file(token: str, request: Request) -> Response:
        """The file as it was delivered; the link's signature is the permission. A `Range` gets a piece, so that an
        interrupted download goes on; the `ETag` is the file's SHA-256."""
        return await desk.answer(token, request)

    @made.head(
        PATH + "{token}",
        operation_id="look_at_file_by_link",
        tags=["exports"],
        response_class=Response,
        responses={**public(403, 410, 503), 200: {"description": "There is a file."}},
    )
    async def look_at_file(token: str, request: Request) -> Response:
        """The headers that a `GET` would have. Nothing is opened, counted or used up."""
        return await desk.answer(token, request)

    return made


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a request says, checked against the link and the file."""

    link: IssuedLink
    file: DeliveredFile
    client: Actor
    wanted: Piece | None


class _Desk:
    """Hands files out, to so many at the same time."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._vault: Vault = services.vault()
        self._links: Links = services.links
        self._direct = services.settings.direct_downloads
        self._places = anyio.Semaphore(services.settings.max_downloads)
        self._busy: Counter[str] = Counter()
        self._threads = anyio.CapacityLimiter(services.settings.max_downloads)

    async def answer(self, token: str, request: Request) -> Response:
        """Look at the link, then at what is wanted; a `HEAD` never opens the file."""
        if _is_prefetch(request.headers):
            return problems.response(_PREFETCH)
        try:
            asked = await anyio.to_thread.run_sync(self._look, token, request)
        except Unsatisfiable as error:
            return problems.response(_RANGE, headers={"Content-Range": f"bytes */{error.args[0]}"})
        if request.method == "HEAD":
            return Response(headers=_described(asked.file, None))
        if self._direct and asked.file.as_stored:
            address = await anyio.to_thread.run_sync(self._direct_address, asked)
            if address:
                return RedirectResponse(address, 307, headers={"Cache-Control": "no-store"})
        return _Download(self, asked)

    @asynccontextmanager
    async def place(self, link: IssuedLink) -> AsyncIterator[bool]:
        """Take one of the places, waiting a little for one; yields whether there was one. No link takes them all."""
        self._busy[link.link_id] += 1
        taken = False
        try:
            if self._busy[link.link_id] <= _PER_LINK:
                with anyio.move_on_after(_PATIENCE_S):
                    await self._places.acquire()
                    taken = True
            yield taken
        finally:
            if taken:
                self._places.release()
            self._busy[link.link_id] -= 1
            if not self._busy[link.link_id]:
                del self._busy[link.link_id]

    def open(self, asked: _Asked) -> tuple[Iterator[bytes], bytes]:
        """Open the file, and put the download into the trail before anything of it leaves.

        Returns:
            The chunks of the piece, and the first one of them, which is good.
        """
        wanted = asked.wanted or Piece(start=0, end=asked.file.size)
        chunks = read(self._vault, asked.file, offset=wanted.start, end=wanted.end)
        first = next(chunks, b"")
        self._links.count_download(asked.link, asked.client, from_start=wanted.start == 0)
        return chunks, first

    def is_open(self, asked: _Asked) -> bool:
        """Whether nobody took the link back, as far as can be known: a restart of the database cuts no download."""
        try:
            return self._links.is_open(asked.link)
        except DatabaseUnavailable:
            return True

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """Slow files wait in threads of their own: those of the other routes stay free."""
        return await anyio.to_thread.run_sync(call, *args, limiter=self._threads)

    def _look(self, token: str, request: Request) -> _Asked:
        link = self._links.redeem(token)
        try:
            file = find(self._database, link.request_id)
        except WrongStatus as error:  # it went away in this moment
            raise LinkEnded(error.message, hint=error.hint) from None
        wanted = None
        same = still_the_same(request.headers.get("if-range"), etag=_etag(file), modified_at=file.completed_at)
        if request.method == "GET" and same:
            try:
                wanted = piece(request.headers.get("range"), file.size)
            except Unsatisfiable:
                raise Unsatisfiable(file.size) from None
        return _Asked(link=link, file=file, client=_client(request), wanted=wanted)

    def _direct_address(self, asked: _Asked) -> str | None:
        address = self._vault.presigned(asked.file.metadata.storage_key, _REDIRECTED)
        if address:
            from_start = asked.wanted is None or asked.wanted.start == 0
            self._links.count_download(asked.link, asked.client, from_start=from_start)
        return address


class _Download(Response):
    """Sends what the desk opens, and cuts the connection when something is wrong on the way."""

    def __init__(self, desk: _Desk, asked: _Asked) -> None:
        super().__init__(status_code=206 if asked.wanted else 200, headers=_described(asked.file, asked.wanted))
        self._desk = desk
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open, then send; until something is sent, an error becomes a problem document."""
        async with self._desk.place(self._asked.link) as taken:
            if not taken:
                full = problems.response(_FULL, headers={"Retry-After": str(_RETRY_AFTER_S)})
                return await full(scope, receive, send)
            chunks, first = await self._desk.in_thread(self._desk.open, self._asked)
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await self._until_left(chunks, first, receive, send)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._desk.in_thread(_close, chunks)

    async def _until_left(self, chunks: Iterator[bytes], first: bytes, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                await self._send_all(chunks, first, send)
            except ExportPipelineError as error:
                # The length was promised: an answer that ends before is broken for every client.
                _log.error("A download was cut: %s", error.message)
            except TimeoutError:
                _log.warning("A download was cut: its client took nothing for %d s.", _STALLED_S)
            except Exception as error:
                # Its text may quote a person.
                _log.error("A download was cut by an unexpected %s.", type(error).__name__)
            group.cancel_scope.cancel()

    async def _send_all(self, chunks: Iterator[bytes], first: bytes, send: Send) -> None:
        look_at, chunk = time.monotonic() + _LOOK_S, first
        while chunk is not None:
            if chunk:
                with anyio.fail_after(_STALLED_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if time.monotonic() > look_at:
                if not await self._desk.in_thread(self._desk.is_open, self._asked):
                    return _log.warning("A download was cut: its link was revoked.")
                look_at = time.monotonic() + _LOOK_S
            chunk = await self._desk.in_thread(next, chunks, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _described(file: DeliveredFile, wanted: Piece | None) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    headers = {
        **_HEADERS,
        "Content-Type": file.media_type,
        # The name has the alphabet of request ids: nothing in it needs an escape.
        "Content-Disposition": f'attachment; filename="{file.file_name}"',
        "Content-Length": str(file.size),
        "ETag": _etag(file),
        "Last-Modified": http_date(file.completed_at),
        # Of the whole file, also with a piece (RFC 9530): who puts pieces together can check them.
        "Repr-Digest": f"sha-256=:{digest}:",
    }
    if wanted:
        headers["Content-Length"] = str(wanted.end - wanted.start)
        headers["Content-Range"] = f"bytes {wanted.start}-{wanted.end - 1}/{file.size}"
    return headers


def _etag(file: DeliveredFile) -> str:
    return f'"{file.sha256}"'


def _client(request: Request) -> Actor:
    agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))[:_MAX_USER_AGENT]
    return Actor(id="", ip_address=request.client.host if request.client else None, user_agent=agent or None)


def _is_prefetch(headers: Mapping[str, str]) -> bool:
    """Browsers and mail programs that look at links before anybody opened them say so."""
    names = ("sec-purpose", "purpose", "x-purpose", "x-moz")
    said = " ".join(headers.get(name, "") for name in names).lower()
    return any(word in said for word in ("prefetch", "prerender", "preview"))


def _close(chunks: Iterator[bytes]) -> None:
    close = getattr(chunks, "close", None)
    if close:
        close()
