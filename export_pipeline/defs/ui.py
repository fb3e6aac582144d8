"""The Dagster UI behind our sign-in: ``python -m export_pipeline.defs.ui -w workspace.yaml -p 3000``.

Open-source Dagster lets in whoever reaches it. Here nothing of it answers before it is known who asks: pages, files,
GraphQL and its WebSocket alike. Operators and auditors get Dagster's own read-only view; admins launch and terminate.
"""

import argparse
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import dagster as dg
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from export_pipeline.defs.internals import MAY_CHANGE, dagster_ui
from export_pipeline.defs.own_errors import unexpected
from export_pipeline.defs.process import services
from export_pipeline.errors import ExportPipelineError, NotAllowed, NotAuthenticated
from export_pipeline.identity import Scope, allowed, require
from export_pipeline.sign_in import web
from export_pipeline.sign_in.gatekeeper import Gatekeeper

#: Tells that the server answers, and nothing else; open to all.
ALIVE = "/alive"
_DB_STATEMENT_TIMEOUT_MS = 15_000
_DB_POOL_RECYCLE_S = 3600
_DB_POOL_MAX_OVERFLOW = 20
_POLICY_VIOLATION = 1008
_TRY_AGAIN_LATER = 1013
_log = logging.getLogger(__name__)

AsgiScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]


class Gate:
    """Lets through who may look, and tells the application behind it who may change something.

    Args:
        app: Dagster's.
        gatekeeper: Tells who asks.
    """

    def __init__(self, app: AsgiApp, gatekeeper: Gatekeeper) -> None:
        self._app = app
        self._gatekeeper = gatekeeper

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request, or the handshake of a WebSocket."""
        connection = HTTPConnection(scope)
        try:
            principal = await web.admit(self._gatekeeper, connection, changing=_changing(connection))
            require(principal, Scope.READ_DAGSTER)
            scope[MAY_CHANGE] = allowed(principal, Scope.LAUNCH_DAGSTER)
            if not scope[MAY_CHANGE] and _reports(connection):
                # Dagster asks for no permission there.
                require(principal, Scope.LAUNCH_DAGSTER)
        except ExportPipelineError as error:
            await _refuse(error, connection, self._gatekeeper, receive, send)
            return
        if scope["type"] == "websocket":
            line = _Line(connection, self._gatekeeper, receive, send)
            receive, send = line.receive, line.send
        await self._app(scope, receive, send)


class _Line:
    """A WebSocket that may stay open for days: nothing goes over it, in or out, once its session or token has ended."""

    def __init__(self, connection: HTTPConnection, gatekeeper: Gatekeeper, receive: Receive, send: Send) -> None:
        self._connection = connection
        self._gatekeeper = gatekeeper
        self._receive = receive
        self._send = send
        self._closed = False

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._closed = True
            return message
        return message if await self._stands() else {"type": "websocket.disconnect", "code": _POLICY_VIOLATION}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if await self._stands():
            await self._send(message)

    async def _stands(self) -> bool:
        """Cheap: what was checked in the last seconds is not checked again."""
        if self._closed:
            return False
        try:
            await web.admit(self._gatekeeper, self._connection, changing=True)
        except ExportPipelineError as error:
            code = _POLICY_VIOLATION if isinstance(error, NotAuthenticated) else _TRY_AGAIN_LATER
            if not self._closed:  # the other direction may have found it meanwhile
                self._closed = True
                await self._send({"type": "websocket.close", "code": code})
        return not self._closed


class Discreet:
    """Answers for an error that nobody foresaw. Neither the log nor a browser gets its text, which may quote a person.

    Args:
        app: What may fail.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        begun = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            _log.error("%s", unexpected(error))
            if begun or scope["type"] != "http":
                # Half an answer must not look like a whole one: the server cuts the connection.
                raise ConnectionAbortedError("The answer was cut off; the reason is in the line before.") from None
            await JSONResponse({"detail": web.UNUSABLE}, 500)(scope, receive, send)


def gated(app: AsgiApp, gatekeeper: Gatekeeper) -> Starlette:
    """Put Dagster's application behind the gate, with the pages for signing in before it."""

    async def alive(_request: object) -> Response:
        return PlainTextResponse("alive")

    routes = [Route(ALIVE, alive), *web.routes(gatekeeper), Mount("/", Gate(app, gatekeeper))]
    return Starlette(routes=routes, middleware=[Middleware(Discreet)])


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-w", "--workspace", required=True)
    parser.add_argument("-H", "--host", default="127.0.0.1")
    parser.add_argument("-p", "--port", type=int, required=True)
    options = parser.parse_args()
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(_DB_STATEMENT_TIMEOUT_MS, _DB_POOL_RECYCLE_S, _DB_POOL_MAX_OVERFLOW)
        with dagster_ui(instance, options.workspace) as app:
            proxies = services().settings.api_trusted_proxies
            # No access log: the address of a sign-in holds its code.
            uvicorn.run(
                gated(app, services().gatekeeper),
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies or None,
                host=options.host,
                port=options.port,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=3,
            )


def _changing(connection: HTTPConnection) -> bool | None:
    """GraphQL takes changes by GET too, and by WebSocket: there a cookie alone is not enough."""
    if connection.scope["type"] == "websocket":
        return True
    asks = connection.scope["method"] in {"GET", "HEAD"} and _path(connection).endswith("/graphql")
    return True if asks and "query" in connection.query_params else None


def _reports(connection: HTTPConnection) -> bool:
    return connection.scope["type"] == "http" and "/report_asset_" in _path(connection)


def _path(connection: HTTPConnection) -> str:
    return str(connection.scope["path"]).rstrip("/").lower()


async def _refuse(
    error: ExportPipelineError, connection: HTTPConnection, gatekeeper: Gatekeeper, receive: Receive, send: Send
) -> None:
    if connection.scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    await _answer(error, connection, gatekeeper)(connection.scope, receive, send)


def _wanted(connection: HTTPConnection) -> str:
    """Where a person wanted to go, as their browser says it."""
    query = connection.scope["query_string"].decode("latin-1")
    path = connection.scope.get("raw_path", b"/").partition(b"?")[0].decode("latin-1")
    return f"{path}?{query}" if query else path


def _answer(error: ExportPipelineError, connection: HTTPConnection, gatekeeper: Gatekeeper) -> Response:
    if "text/html" in connection.headers.get("accept", ""):
        if isinstance(error, NotAuthenticated):
            return web.closed(gatekeeper, _wanted(connection))
        return web.forbidden(error) if isinstance(error, NotAllowed) else web.refused(error)
    status = 401 if isinstance(error, NotAuthenticated) else 403 if isinstance(error, NotAllowed) else 503
    headers = {"WWW-Authenticate": error.challenge} if isinstance(error, NotAuthenticated) else None
    return JSONResponse({"detail": web.told(error)}, status, headers)


if __name__ == "__main__":
    main()
