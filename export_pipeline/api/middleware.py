"""What surrounds every call: size limit, security headers, an answer for what nobody foresaw, figures."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export_pipeline.api import problems

MAX_BODY = 65_536  # bytes
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: An answer of the API is data: a browser must not run or load anything for it.
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
_TWO_YEARS = "max-age=63072000; includeSubDomains"
#: Told after each call: method, template of the route or "unmatched", status, seconds.
Observe = Callable[[str, str, int, float], None]


class SecurityHeaders:
    """Sets what browsers should refuse, unless the route said it itself.

    Args:
        app: The application.
        hsts: Whether browsers are told to use TLS only.
    """

    def __init__(self, app: ASGIApp, *, hsts: bool) -> None:
        self._app = app
        self._headers = {**_HEADERS, "Content-Security-Policy": _NOTHING}
        if hsts:
            self._headers["Strict-Transport-Security"] = _TWO_YEARS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/exports"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, guarded)


class BodyLimit:
    """Refuses bodies above 64 KiB: by what the caller announces, and by what comes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 15 or int(announced) > MAX_BODY:
            return await problems.response(problems.HTTP_KINDS[413])(scope, receive, send)
        came = 0

        async def limited() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > MAX_BODY:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)


class Unexpected:
    """Answers for an error that nobody foresaw. No server sees its text, which may quote a person's data."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            answer = problems.unexpected(error)
            if begun:
                # Half an answer must not look like a whole one: the server cuts the connection.
                raise ConnectionAbortedError("The answer was cut off; the reason is in the line before.") from None
            await answer(scope, receive, send)


class Figures:
    """Measures calls by the template of their route: never by a path, which holds ids.

    Args:
        app: The application.
        observe: Told after each call.
    """

    def __init__(self, app: ASGIApp, *, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, began = 500, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._observe(scope["method"], _template(scope), status, time.perf_counter() - began)


def _template(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "unmatched"))
