"""What a connection may cost: headers have a size, requests have a time, answers have all the time that they need."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from export_pipeline.api import __main__, http_protocol
from export_pipeline.api.http_protocol import MAX_HEADERS, BoundedRequests

GET = b"GET / HTTP/1.1\r\nHost: here\r\n"


async def application(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Read the whole body; answer its length, after as long as the path says."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await asyncio.sleep(float(scope["path"][1:] or 0))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"%06d" % length})


@pytest.fixture
def connect() -> Iterator[Callable[[], socket.socket]]:
    """Make a connection to a server; call it again for another."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=BoundedRequests, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    made: list[socket.socket] = []

    def connected() -> socket.socket:
        made.append(socket.create_connection(listener.getsockname()[:2], timeout=30))
        return made[-1]

    yield connected
    for client in made:
        client.close()
    server.should_exit = True
    thread.join()
    listener.close()


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    came = b""
    while piece := client.recv(65536):
        came += piece
    return came


def test_headers_have_a_size(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall(GET + b"X-Large: " + b"x" * (MAX_HEADERS // 2))
    with pytest.raises(OSError):
        while True:
            client.sendall(b"x" * 65536)
    large = connect()
    large.sendall(GET + b"X-Large: " + b"x" * 60_000 + b"\r\nConnection: close\r\n\r\n")
    assert everything(large).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "begun", [b"", b"GET /", GET, b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n12345"]
)
def test_a_request_that_does_not_come_is_not_waited_for(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "LONGEST_REQUEST_S", 0.2)
    client = connect()
    client.sendall(begun)
    assert everything(client) == b""


def test_an_answer_has_all_time(connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "LONGEST_REQUEST_S", 0.1)
    client = connect()
    client.sendall(b"GET /0.5 HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    assert everything(client).endswith(b"000000")


def test_a_connection_serves_one_request_after_the_other(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    post = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000
    for _ in range(3):
        client.sendall(post)
        assert client.recv(65536).endswith(b"500000")
    client.sendall(GET + b"\r\n" + GET + b"Connection: close\r\n\r\n")
    assert everything(client).count(b"HTTP/1.1 200") == 2


def test_the_api_is_served_with_these_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda _application, **options: told.update(options))
    __main__.main()
    assert told["http"] is BoundedRequests
