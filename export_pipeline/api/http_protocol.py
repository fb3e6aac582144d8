"""HTTP with bounds: the parser that is used by default takes headers of any size, and waits for them for ever.

A proxy before the API has bounds of its own, but not everybody who can reach the API comes through it.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes of the line of the request and its headers; more than the asyncio transport hands over at once.
MAX_HEADERS = 512 * 1024
#: Seconds from the first byte of a request, or the connection, to the last byte of the request. Answers have all time.
LONGEST_REQUEST_S = 60.0


class BoundedRequests(HttpToolsProtocol):
    """One connection: a request that is too large is refused, one that does not come is no longer waited for."""

    _came = 0
    _in_headers = True
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        if self._deadline is None:
            self._expect()
        if self._in_headers:
            self._came += len(data)
            if self._came > MAX_HEADERS:
                return self.send_400_response("The headers are too large.")
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The body follows; the application bounds it."""
        self._in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._rest()
        super().on_message_complete()

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(LONGEST_REQUEST_S, self.transport.close)

    def _rest(self) -> None:
        self._came, self._in_headers = 0, True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
