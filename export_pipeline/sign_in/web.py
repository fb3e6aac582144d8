"""Signing in by browser: a link from the terminal, a token, or a sign-in at the identity provider becomes a cookie. For
every door that speaks ASGI.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from export_pipeline.errors import ExportPipelineError, IdentityProviderUnavailable, NotAllowed, NotAuthenticated
from export_pipeline.identity import Principal
from export_pipeline.sign_in.code_flow import LIFETIME as FLOW_LIFETIME
from export_pipeline.sign_in.gatekeeper import (
    COOKIE,
    SESSION_LIFETIME_S,
    Asking,
    Gatekeeper,
    changes,
    foreign,
)

SIGN_IN = "/sign-in"
CALLBACK = "/sign-in/callback"
SIGN_OUT = "/sign-out"
#: What a browser keeps while its person is at the identity provider.
NOTE = "export_pipeline_sign_in"
#: Calls to the provider at the same time: strangers who make us ask hold up nobody else.
_AT_PROVIDER = 8
_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
_log = logging.getLogger(__name__)
#: What a stranger is told of whatever is wrong inside.
UNUSABLE = "Something that the service needs cannot be used now. Try again later."
_LOCAL_PATH = re.compile(r"/(?![/\\])[!-~]{0,999}")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
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


def routes(gatekeeper: Gatekeeper, address: str | None = None) -> list[Route]:
    """The pages `/sign-in`, `/sign-in/callback` and `/sign-out`.

    Args:
        gatekeeper: Tells who asks.
        address: At which people reach this server; None is what their browser calls it.
    """
    pages = _Pages(gatekeeper, address)
    return [
        Route(SIGN_IN, pages.sign_in, methods=["GET", "POST"]),
        Route(CALLBACK, pages.callback, methods=["GET"]),
        Route(SIGN_OUT, pages.sign_out, methods=["GET", "POST"]),
    ]


def local_path(text: str) -> str | None:
    """A path on this server, as it came; None for everything that a browser could take for another place."""
    return text if _LOCAL_PATH.fullmatch(text) and "\\" not in text else None


def refused(error: ExportPipelineError, title: str = "Not signed in") -> Response:
    """Say to a person why they are not let in, or out; and to operators, when it is for them to mend.

    Args:
        error: Why.
        title: Of the page.
    """
    if isinstance(error, NotAuthenticated):
        return _page(title, f"{html.escape(error.message)} {_AGAIN}", status=401)
    _log.error("%s: %s", title, error)
    return _page(title, html.escape(told(error)), status=503)


def told(error: ExportPipelineError) -> str:
    """What a stranger is told: what is wrong inside may name files of ours, and is for the log."""
    if isinstance(error, NotAuthenticated | NotAllowed | IdentityProviderUnavailable):
        return error.message
    return UNUSABLE


def forbidden(error: NotAllowed) -> Response:
    """Say to a person that they are signed in as somebody who may not see this."""
    text = f'{html.escape(error.message)} <a href="{SIGN_OUT}">Sign out</a> to come as somebody else.'
    return _page("Not for this account", text, status=403)


def closed(gatekeeper: Gatekeeper, to: str = "") -> Response:
    """Say to a person how to get in.

    Args:
        gatekeeper: Knows the ways.
        to: Where they wanted to go.
    """
    ways = [_by_provider(to)] if gatekeeper.by_browser else []
    if gatekeeper.local or not ways:
        ways.append(_BY_LINK if gatekeeper.open else _BY_NOTHING)
    return _page("Sign in first", "</p><p>".join(ways), status=401)


_BY_LINK = (
    "Use the sign-in link that <code>export-pipeline up</code> printed, or make one with"
    " <code>export-pipeline sign-in</code>."
)
_BY_NOTHING = "Nobody can sign in here yet: set EXPORT_PIPELINE_OIDC_ISSUER, or EXPORT_PIPELINE_LOCAL_TOKENS."
_AGAIN = f'<a href="{SIGN_IN}">Begin again</a>.'
T = TypeVar("T")


def _by_provider(to: str) -> str:
    wanted = f"?to={quote(to, safe='')}" if local_path(to) else ""
    return f'<a href="{html.escape(SIGN_IN + wanted)}">Sign in with your account</a>.'


class _Pages:
    """What the routes do."""

    def __init__(self, gatekeeper: Gatekeeper, address: str | None) -> None:
        self._gatekeeper = gatekeeper
        self._address = address
        self._places = anyio.CapacityLimiter(_AT_PROVIDER)

    async def sign_in(self, request: Request) -> Response:
        if request.method == "HEAD":  # programs that look at links must not use them up
            return HTMLResponse(headers=_HEADERS)
        try:
            if request.method == "POST":  # a token becomes a session; a session becomes none, else it would never end
                if not request.headers.get("authorization"):
                    raise NotAuthenticated("A session begins with a bearer token.")
                principal = await admit(self._gatekeeper, request)
                return await self._with_session(Response(status_code=204, headers=_HEADERS), principal, request)
            code = _query(request).get("code", "")
            if code:
                principal = await run_in_threadpool(self._gatekeeper.redeem, code, asking(request))
                return await self._signed_in(principal, self._home, request)
            return await self._leave(request) if self._gatekeeper.by_browser else closed(self._gatekeeper)
        except ExportPipelineError as error:
            return refused(error)

    async def callback(self, request: Request) -> Response:
        """The browser comes back from the provider. Whatever comes of it, what it kept has served its time."""
        name = _note_name(request)
        if request.method == "HEAD" or not self._gatekeeper.by_browser:
            return closed(self._gatekeeper)
        try:
            finished = await self._at_provider(
                self._gatekeeper.finish, request.cookies.get(name), _query(request), asking(request)
            )
            answer = await self._signed_in(finished.principal, local_path(finished.to) or self._home, request)
        except ExportPipelineError as error:
            answer = refused(error)
        answer.delete_cookie(name, path="/", secure=_is_https(request), httponly=True, samesite="lax")
        return answer

    async def sign_out(self, request: Request) -> Response:
        """The session of this browser ends, also where its cookie was copied to. A page asks first: a link alone must
        not sign anybody out. While it cannot end, the browser keeps it, to try again.
        """
        if request.method != "POST":
            page = _page("Sign out", _SIGN_OUT_FORM)
            # Of a page that tells nobody where it is, browsers send a form as if it came from nowhere.
            page.headers["Referrer-Policy"] = "same-origin"
            return page
        if foreign(request.headers):
            return _page("Not signed out", "The call does not come from a page of this server.", status=403)
        try:
            await run_in_threadpool(self._gatekeeper.sign_out, asking(request))
        except ExportPipelineError as error:
            return refused(error, "Not signed out")
        answer = Response(status_code=204, headers=_HEADERS)
        if "text/html" in request.headers.get("accept", ""):
            address = self._gatekeeper.provider_sign_out()
            elsewhere = f' <a href="{html.escape(address)}">Sign out of your account, too</a>.' if address else ""
            answer = _page("Signed out", f'<a href="{SIGN_IN}">Sign in again</a>.{elsewhere}')
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    @property
    def _home(self) -> str:
        return urlsplit(self._address or "").path + "/"

    async def _leave(self, request: Request) -> Response:
        """Send the browser to the provider."""
        query = _query(request)
        base = self._address or _origin(request)
        begun = await self._at_provider(
            lambda: self._gatekeeper.begin(
                redirect_uri=base + CALLBACK, to=local_path(query.get("to", "")) or self._home, again="again" in query
            )
        )
        answer = RedirectResponse(begun.url, 303, headers=_HEADERS)
        answer.set_cookie(
            _note_name(request),
            begun.note,
            max_age=int(FLOW_LIFETIME.total_seconds()),
            path="/",
            secure=_is_https(request),
            httponly=True,
            # The way back from the provider comes from another site.
            samesite="lax",
        )
        return answer

    async def _at_provider(self, call: Callable[..., T], *args: Any) -> T:
        return await anyio.to_thread.run_sync(call, *args, limiter=self._places)

    async def _signed_in(self, principal: Principal, to: str, request: Request) -> Response:
        """A page and not a redirect: after a redirect from elsewhere a browser would keep a strict cookie back."""
        place = html.escape(to)
        page = _page(
            "Signed in",
            f'<a href="{place}">Go on</a>',
            head=f'<meta http-equiv="refresh" content="0;url={place}">',
        )
        return await self._with_session(page, principal, request)

    async def _with_session(self, response: Response, principal: Principal, request: Request) -> Response:
        """A session of its own for each sign-in, in the place of whatever the browser had."""
        response.set_cookie(
            COOKIE,
            await run_in_threadpool(self._gatekeeper.open_session, principal),
            max_age=SESSION_LIFETIME_S,
            path="/",
            secure=_is_https(request),
            httponly=True,
            samesite="strict",
        )
        return response


_SIGN_OUT_FORM = f'<form method="post" action="{SIGN_OUT}"><button>Sign out of this browser</button></form>'


def _query(request: Request) -> dict[str, str]:
    """The first value of each name."""
    found = parse_qs(request.url.query, keep_blank_values=True)
    return {name: values[0] for name, values in found.items()}


def _is_https(request: Request) -> bool:
    """Believed from anybody: a browser that lies gets a stricter cookie."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))


def _note_name(request: Request) -> str:
    """Behind TLS, a name under which no server beside this one can put something into the browser."""
    return f"__Host-{NOTE}" if _is_https(request) else NOTE


def _origin(request: Request) -> str:
    """What the browser calls this server."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise NotAuthenticated("This server is not called by a name that it could be reached by.")
    return f"{request.url.scheme}://{host}"


def _page(title: str, text: str, *, head: str = "", status: int = 200) -> HTMLResponse:
    headers = _HEADERS | ({"WWW-Authenticate": 'Bearer realm="export-pipeline"'} if status == 401 else {})
    return HTMLResponse(_PAGE.format(title=title, text=text, head=head), status, headers)
