"""Live changes: told at once, by one connection for all who listen, and to the end."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest
import uvicorn

from export_pipeline.api.changes import Changes
from export_pipeline.api.routes import events
from export_pipeline.db.pool import Database
from export_pipeline.models import SYSTEM
from export_pipeline_tests.integration.api.conftest import Api

_LISTENERS = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"


@pytest.fixture
def address(api: Api) -> Iterator[str]:
    """The application behind a real server: the test client would wait for the end of a stream."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(api.app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


class Stream:
    """Reads events, one after the other."""

    def __init__(self, api: Api, address: str, request_id: str, *, by: str = "subject") -> None:
        url = f"{address}/api/exports/status/{request_id}/events"
        self.response = urlopen(Request(url, headers={"Authorization": f"Bearer {api.tokens[by]}"}), timeout=30)

    def lines(self) -> Iterator[str]:
        for line in self.response:
            yield line.decode().rstrip("\n")

    def next_status(self) -> str | None:
        for line in self.lines():
            if line.startswith("data: "):
                return json.loads(line[6:])["status"]
        return None


def listening(api: Api) -> int:
    with api.services.database.connect() as connection:
        return connection.execute(_LISTENERS).fetchone()[0]  # type: ignore[index]


def test_each_change_is_told_and_the_stream_ends_with_the_request(api: Api, address: str) -> None:
    request_id = api.ask()
    stream = Stream(api, address, request_id)
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert stream.response.headers["cache-control"] == "no-store"
    assert stream.next_status() == "pending"
    api.export(request_id)
    told = list(iter(stream.next_status, None))
    # A change that is over before it is read may be left out, the last one never is.
    assert told[-1] == "completed" and set(told) <= {"pending", "processing", "completed"}


def test_many_listeners_share_one_connection(api: Api, address: str) -> None:
    request_id = api.ask()
    streams = [Stream(api, address, request_id) for _ in range(12)]
    assert [stream.next_status() for stream in streams] == ["pending"] * 12
    assert listening(api) == 1
    api.services.requests.cancel(request_id, SYSTEM)
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(Stream.next_status, streams)) == ["cancelled"] * 12


def test_a_request_that_has_ended_is_told_once(api: Api, address: str) -> None:
    request_id = api.ask()
    api.services.requests.cancel(request_id, SYSTEM)
    stream = Stream(api, address, request_id)
    assert (stream.next_status(), stream.next_status()) == ("cancelled", None)


def test_silence_has_a_heartbeat(api: Api, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    stream = Stream(api, address, api.ask())
    assert ": still here" in stream.lines()
    stream.response.close()


def test_nobody_follows_what_is_not_theirs(api: Api, address: str) -> None:
    request_id = api.ask(by="operator", user_id="user-0001")
    with pytest.raises(HTTPError) as refused:
        Stream(api, address, request_id)
    assert refused.value.code == 404
    refused.value.close()


def test_nobody_takes_every_place(
    api: Api, address: str, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    monkeypatch.setattr(events, "MOST_OF_ONE", 2)
    request_id = api.ask()
    mine = [Stream(api, address, request_id) for _ in range(2)]
    assert [stream.next_status() for stream in mine] == ["pending"] * 2
    with pytest.raises(HTTPError) as refused:
        Stream(api, address, request_id)
    assert (refused.value.code, refused.value.headers["retry-after"]) == (503, "30")
    assert json.load(refused.value)["type"] == "urn:export-pipeline:problem:busy"
    refused.value.close()
    others = Stream(api, address, request_id, by="operator")
    assert others.next_status() == "pending"
    api.services.requests.cancel(request_id, SYSTEM)
    for stream in (*mine, others):
        assert (stream.next_status(), stream.next_status()) == ("cancelled", None)
    later: list[Stream] = []

    def admitted() -> bool:
        """The server gives a place back a moment after its stream has ended."""
        try:
            later.append(Stream(api, address, request_id))
        except HTTPError as error:
            error.close()
        return bool(later)

    wait_until(admitted)
    assert (later[0].next_status(), later[0].next_status()) == ("cancelled", None)


def test_a_lost_connection_is_made_again_and_nothing_is_missed(migrated_url: str) -> None:
    async def follow() -> None:
        changes = Changes(Database(migrated_url))
        async with changes.of("any", person="anna") as changed:
            await asyncio.wait_for(changed.wait(), 10)  # it listens now
            changed.clear()
            with psycopg.connect(migrated_url, autocommit=True) as connection:
                killed: list[Any] = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
                ).fetchall()
            assert len(killed) == 1
            await asyncio.wait_for(changed.wait(), 10)  # told to look again
            changed.clear()
            with psycopg.connect(migrated_url, autocommit=True) as connection:
                connection.execute("SELECT pg_notify('export_requests', 'other'), pg_notify('export_requests', 'any')")
            await asyncio.wait_for(changed.wait(), 10)
            assert changes.waiting_for("anna") == 1
        assert changes.waiting == changes.waiting_for("anna") == 0

    asyncio.run(follow())
