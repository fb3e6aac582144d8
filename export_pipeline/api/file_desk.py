"""Hands files out over HTTP, whole or in pieces: to whoever has a link, and to whoever is signed in.

Nothing of a file is kept: it is decrypted in a thread of its own, a few chunks ahead of the client, and that thread
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
from typing import Annotated, Any, Protocol, TypeVar

import anyio
from fastapi import Header, Request, Response
from fastapi.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from export_pipeline.api import problems
from export_pipeline.api.byte_ranges import Piece, Unsatisfiable, http_date, piece, still_the_same
from export_pipeline.api.openapi import FILE_CONTENT, Responses
from export_pipeline.delivery import DeliveredFile, read
from export_pipeline.errors import DatabaseUnavailable, ExportPipelineError
from export_pipeline.vault.store import Vault
from export_pipeline.wiring import Services

#: A client that takes nothing for so long is gone.
_STALLED_S = 120
#: How often a running download looks whether it may go on.
_LOOK_S = 10.0
#: A redirect to the store is followed at once; nobody is to keep its address.
_REDIRECTED = timedelta(minutes=1)
_RETRY_AFTER_S = 10
#: Between two downloads of one program, its place is free a moment late.
_PATIENCE_S = 3.0
#: As many connections as download programs make for one file.
_PER_RIGHT = 16

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
    detail="Files are not fetched in advance. Open the address when you want the file.",
)
_FULL = problems.Kind(
    status=503, name="busy", title="Too many downloads", detail="Too many downloads at this moment. Try again soon."
)
_RANGE = problems.Kind(
    status=416, name="range", title="No such piece", detail="The piece begins behind the end of the file."
)

_PROBLEM = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_OF_THE_FILE = {
    "Accept-Ranges": {"description": "`bytes`.", "schema": {"type": "string"}},
    "ETag": {"description": "The file's SHA-256, in quotes; `If-Range` takes it.", "schema": {"type": "string"}},
    "Last-Modified": {"description": "When the request was completed.", "schema": {"type": "string"}},
    "Repr-Digest": {"description": "SHA-256 of the whole file (RFC 9530).", "schema": {"type": "string"}},
    "Content-Disposition": {"description": "The name to save it under.", "schema": {"type": "string"}},
}
_CONTENT_RANGE = {
    "Content-Range": {"description": "Which bytes, of how many.", "schema": {"type": "string", "pattern": "^bytes "}}
}
#: For the documentation of routes that answer by a desk.
HANDED_OUT: Responses = {
    200: {"description": "The file.", "content": FILE_CONTENT, "headers": _OF_THE_FILE},
    206: {
        "description": "The piece of it that the header Range asks for.",
        "content": FILE_CONTENT,
        "headers": _OF_THE_FILE | _CONTENT_RANGE,
    },
    416: {
        "description": "The piece begins behind the end of the file.",
        "content": _PROBLEM,
        "headers": _CONTENT_RANGE,
    },
}
LOOKED_AT: Responses = {200: {"description": "There is a file.", "headers": _OF_THE_FILE}}

Range = Annotated[
    str | None,
    Header(
        alias="Range",
        description="The piece that is wanted, one range of bytes; anything else gets the whole file.",
        examples=["bytes=1048576-"],
    ),
]
IfRange = Annotated[
    str | None,
    Header(
        alias="If-Range",
        description="ETag or Last-Modified of the file that the caller has a piece of: of another file, they get all.",
        examples=['"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"'],
    ),
]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Right(Protocol):
    """Why somebody gets a file."""

    @property
    def key(self) -> str:
        """Downloads with the same key share places: none of them takes all."""
        ...

    def record(self, *, from_start: bool) -> None:
        """Put the download into the trail, before anything of it leaves.

        Args:
            from_start: Whether the piece begins the file.
        """
        ...

    def lasts(self) -> bool:
        """Whether a running download may go on.

        Raises:
            DatabaseUnavailable: It cannot be known now.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Entitled:
    """A file, and why somebody gets it."""

    file: DeliveredFile
    right: Right


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which piece a request says that it wants.

    Attributes:
        range: The header of this name.
        if_range: The header of this name.
    """

    range: str | None = None
    if_range: str | None = None

    def of(self, file: DeliveredFile) -> Piece | None:
        """The piece; None is the whole file.

        Raises:
            Unsatisfiable: No byte of the file is in it.
        """
        same = still_the_same(self.if_range, etag=_etag(file), modified_at=file.completed_at)
        return piece(self.range, file.size) if same else None


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a request says, checked."""

    file: DeliveredFile
    right: Right
    wanted: Piece | None


class FileDesk:
    """Hands files out, to so many at the same time.

    Args:
        services: The installation's parts.
    """

    def __init__(self, services: Services) -> None:
        self._vault: Vault = services.vault()
        self._direct = services.settings.direct_downloads
        self._places = anyio.Semaphore(services.settings.max_downloads)
        self._most = services.settings.max_downloads
        self._busy: Counter[str] = Counter()
        self._threads = anyio.CapacityLimiter(services.settings.max_downloads)

    async def answer(
        self, request: Request, look: Callable[[], Entitled], wanted: Wanted, *, redirect: bool = False
    ) -> Response:
        """Look whether there is a file, then at what is wanted of it; a `HEAD` never opens the file.

        Args:
            request: What is answered.
            look: Finds the file, in a thread; raises when there is none, or not for them.
            wanted: Which piece.
            redirect: Whether the caller can be sent on to a store that hands the file out itself.
        """
        if _is_prefetch(request.headers):
            return problems.response(_PREFETCH)
        found = await anyio.to_thread.run_sync(look)
        if request.method == "HEAD":
            return Response(headers=_described(found.file, None))
        try:
            asked = _Asked(file=found.file, right=found.right, wanted=wanted.of(found.file))
        except Unsatisfiable:
            return problems.response(_RANGE, headers={"Content-Range": f"bytes */{found.file.size}"})
        if redirect and self._direct and asked.file.as_stored:
            address = await anyio.to_thread.run_sync(self._direct_address, asked)
            if address:
                return RedirectResponse(address, 307, headers={"Cache-Control": "no-store"})
        return _Download(self, asked)

    @asynccontextmanager
    async def place(self, asked: _Asked) -> AsyncIterator[bool]:
        """Take one of the places, waiting a little for one; yields whether there was one."""
        person = f"of {asked.file.metadata.user_id}"
        # However many links somebody makes to their files, and however slowly they read: others find a place.
        of_one = max(_PER_RIGHT, self._most // 2)
        wanted = Counter([asked.right.key, person])
        self._busy += wanted
        taken = False
        try:
            if self._busy[asked.right.key] <= _PER_RIGHT and self._busy[person] <= of_one:
                with anyio.move_on_after(_PATIENCE_S):
                    await self._places.acquire()
                    taken = True
            yield taken
        finally:
            if taken:
                self._places.release()
            self._busy -= wanted  # keeps nothing at zero

    def open(self, asked: _Asked) -> tuple[Iterator[bytes], bytes]:
        """Open the file, and put the download into the trail before anything of it leaves.

        Returns:
            The chunks of the piece, and the first one of them, which is good.
        """
        wanted = asked.wanted or Piece(start=0, end=asked.file.size)
        chunks = read(self._vault, asked.file, offset=wanted.start, end=wanted.end)
        first = next(chunks, b"")
        asked.right.record(from_start=wanted.start == 0)
        return chunks, first

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """Slow files wait in threads of their own: those of the other routes stay free."""
        return await anyio.to_thread.run_sync(call, *args, limiter=self._threads)

    def _direct_address(self, asked: _Asked) -> str | None:
        address = self._vault.presigned(asked.file.metadata.storage_key, _REDIRECTED)
        if address:
            asked.right.record(from_start=asked.wanted is None or asked.wanted.start == 0)
        return address


class _Download(Response):
    """Sends what the desk opens, and cuts the connection when something is wrong on the way."""

    def __init__(self, desk: FileDesk, asked: _Asked) -> None:
        super().__init__(status_code=206 if asked.wanted else 200, headers=_described(asked.file, asked.wanted))
        self._desk = desk
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open, then send; until something is sent, an error becomes a problem document."""
        async with self._desk.place(self._asked) as taken:
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
                if not await self._desk.in_thread(_lasts, self._asked.right):
                    return _log.warning("A download was cut: its link was revoked, or its file removed.")
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


def _lasts(right: Right) -> bool:
    """As far as can be known: a restart of the database cuts no download."""
    try:
        return right.lasts()
    except DatabaseUnavailable:
        return True


def _is_prefetch(headers: Mapping[str, str]) -> bool:
    """Browsers and mail programs that look at links before anybody opened them say so."""
    names = ("sec-purpose", "purpose", "x-purpose", "x-moz")
    said = " ".join(headers.get(name, "") for name in names).lower()
    return any(word in said for word in ("prefetch", "prerender", "preview"))


def _close(chunks: Iterator[bytes]) -> None:
    close = getattr(chunks, "close", None)
    if close:
        close()
