"""Signing in by browser: a link from the terminal, or a token, becomes a cookie. For every door that speaks ASGI."""

from __future__ import annotations

import html
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from export_pipeline.errors import ExportPipelineError, NotAuthenticated
from export_pipeline.identity import Principal
from export_pipeline.sign_in.gatekeeper import (
    COOKIE,
    SESSION_LIFETIME_S,
    Asking,
    Gatekeeper,
    changes,
)

SIGN_IN = "/sign-in"
SIGN_OUT = "/sign-out"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    # A link's code must not travel on.
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{head}
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:38em;margin:4em auto;padding:0 1em}}</style></head>
<body><h1>{title}</h1><p>{text}</p></body></html>"""


def asking(connection: HTTPConnection, *, changing: bool | None = None) -> Asking:
    """What of a request tells who asks.

    Args:
        connection: The request, or the handshake of a WebSocket.
        changing: Whether it may change something; None goes by the method, and a WebSocket always may.
    """
    if changing is None:
        changing = changes(connection.scope.get("method", "WEBSOCKET"))
    return Asking(
        changes=changing,
        headers=dict(connection.headers),
        ip_address=connection.client.host if connection.client else None,
    )


async def admit(gatekeeper: Gatekeeper, connection: HTTPConnection, *, changing: bool | None = None) -> Principal:
    """Tell who asks, without holding up the event loop; see `Gatekeeper.admit`."""
    asked = asking(connection, changing=changing)
    known = gatekeeper.recall(asked)
    return known if known is not None else await run_in_threadpool(gatekeeper.admit, asked)


def routes(gatekeeper: Gatekeeper) -> list[Route]:
    """The pages `/sign-in` and `/sign-out`."""

    async def sign_in(request: Request) -> Response:
        if request.method == "HEAD":  # programs that look at links must not use them up
            return HTMLResponse(headers=_HEADERS)
        try:
            if request.method == "POST":  # a token becomes a session
                principal = await admit(gatekeeper, request)
                return _with_session(
                    Response(status_code=204, headers=_HEADERS),
                    gatekeeper,
                    principal,
                    request,
                )
            code = parse_qs(request.url.query).get("code", [""])[0]
            if not code:
                return closed(gatekeeper)
            principal = await run_in_threadpool(gatekeeper.redeem, code, asking(request))
        except ExportPipelineError as error:
            return refused(error)
        # A page and not a redirect: after a redirect from elsewhere a browser would keep a strict cookie back.
        page = _page(
            "Signed in",
            '<a href="/">Go on</a>',
            head='<meta http-equiv="refresh" content="0;url=/">',
        )
        return _with_session(page, gatekeeper, principal, request)

    async def sign_out(_request: Request) -> Response:
        response = Response(status_code=204, headers=_HEADERS)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return response

    return [
        Route(SIGN_IN, sign_in, methods=["GET", "POST"]),
        Route(SIGN_OUT, sign_out, methods=["POST"]),
    ]


def refused(error: ExportPipelineError) -> Response:
    """Say to a person why they are not let in."""
    status = 401 if isinstance(error, NotAuthenticated) else 503
    return _page("Not signed in", html.escape(error.message), status=status)


def closed(gatekeeper: Gatekeeper) -> Response:
    """Say to a person how to get in."""
    text = (
        "Use the sign-in link that <code>export-pipeline up</code> printed, or make one with"
        " <code>export-pipeline sign-in</code>."
        if gatekeeper.open
        else "Nobody can sign in here yet: set EXPORT_PIPELINE_OIDC_ISSUER, or EXPORT_PIPELINE_LOCAL_TOKENS."
    )
    return _page("Sign in first", text, status=401)


def _with_session(response: Response, gatekeeper: Gatekeeper, principal: Principal, request: Request) -> Response:
    response.set_cookie(
        COOKIE,
        gatekeeper.open_session(principal),
        max_age=SESSION_LIFETIME_S,
        path="/",
        # Believed from anybody: a browser that lies gets a stricter cookie.
        secure="https" in (request.url.scheme, request.headers.get("x-forwarded-proto")),
        httponly=True,
        samesite="strict",
    )
    return response


def _page(title: str, text: str, *, head: str = "", status: int = 200) -> HTMLResponse:
    headers = _HEADERS | ({"WWW-Authenticate": 'Bearer realm="export-pipeline"'} if status == 401 else {})
    return HTMLResponse(_PAGE.format(title=title, text=text, head=head), status, headers)
