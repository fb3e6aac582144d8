"""The API beside a heavy export: how long people wait for a read while somebody's million rows are collected.

Every client is one connection that reads again and again, as a page that follows its exports does. A read counts from
the moment when it was due, not from when the client came round to sending it: whoever waits behind a slow answer waits
all the same.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from benchmarks import heavy_user, report
from benchmarks.scene import ACTOR
from export_pipeline import demo, supervisor
from export_pipeline.db.watch import follow
from export_pipeline.identity import Principal, Role
from export_pipeline.models import DataTypeConfig
from export_pipeline.settings import Settings
from export_pipeline.supervisor import Stack

#: Each client reads once in so many seconds.
EVERY_S = 1.0
_REQUESTS = 40
_PATIENCE_S = 300.0
_ROUNDS_AT_ONCE = 20


@dataclass(frozen=True, kw_only=True)
class Waits:
    """How long reads took, in milliseconds."""

    reads: int
    p50_ms: float
    p99_ms: float
    worst_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Waits:
        """Sum up single reads."""
        ordered = sorted(seconds)

        def at(part: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000, 2)

        return cls(reads=len(ordered), p50_ms=at(0.5), p99_ms=at(0.99), worst_ms=at(1.0))


def run(*, clients: int, seconds: float, rows: int, home: Path) -> dict[str, object]:
    """Measure, print the table, and return the figures of the contract.

    Args:
        clients: Connections that read at the same time.
        seconds: How long they read on an idle system, and at least so long beside exports.
        rows: Rows of the user who is exported meanwhile.
        home: State folder, kept so that the rows are made once.
    """
    with _installation(home / "api", rows) as (stack, reads):
        asyncio.run(reads.paced(clients, _after(2.0)))  # the first ones warm caches everywhere
        idle = asyncio.run(reads.paced(clients, _after(seconds)))
        at_once = asyncio.run(reads.at_once(clients, _ROUNDS_AT_ONCE))
        with _exporting(stack, rows, seconds) as exporting:
            busy = asyncio.run(reads.paced(clients, lambda: not exporting.is_set()))
        with _exporting(stack, rows, seconds) as exporting:
            at_once_busy = asyncio.run(reads.at_once(clients, _ROUNDS_AT_ONCE))
    found = {
        f"idle, one read each in {EVERY_S:g} s": idle,
        f"beside an export of {rows:,} rows": busy,
        "idle, all at the same moment": at_once,
        "beside an export, all at the same moment": at_once_busy,
    }
    rows_shown = [[name, one.reads, one.p50_ms, one.p99_ms, one.worst_ms] for name, one in found.items()]
    report.table(f"reads by {clients} clients", ["system", "reads", "p50 ms", "p99 ms", "slowest ms"], rows_shown)
    return {
        "clients": clients,
        "p50_ms": busy.p50_ms,
        "p99_ms": busy.p99_ms,
        "idle_p99_ms": idle.p99_ms,
        "p99_vs_idle": round(busy.p99_ms / idle.p99_ms, 2),
        "at_once_p99_ms": at_once_busy.p99_ms,
        "at_once_idle_p99_ms": at_once.p99_ms,
    }


class _Reads:
    """What clients read: exports, histories, lists, data types; by keep-alive connections that cost little to drive.

    Args:
        address: Of the API.
        token: Of somebody who may read all of it.
        paths: What is read, in turns.
    """

    def __init__(self, address: str, token: str, paths: list[str]) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "", parts.port or 80
        head = f" HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._calls = itertools.cycle([f"GET {path}{head}".encode() for path in paths])

    async def paced(self, clients: int, on: Callable[[], bool]) -> Waits:
        """Let every client read once in `EVERY_S` while `on`; their moments are spread evenly."""
        waits: list[float] = []
        began = time.perf_counter()

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            due = began + EVERY_S * (1 + number / clients)
            while on():
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await self._read(reader, writer)
                waits.append(time.perf_counter() - due)
                due += EVERY_S
            writer.close()

        await asyncio.gather(*(client(number) for number in range(clients)))
        return Waits.of(waits)

    async def at_once(self, clients: int, rounds: int) -> Waits:
        """Let all clients send at the same moment, `rounds` times."""
        opened = [await asyncio.open_connection(self._host, self._port) for _ in range(clients)]
        waits: list[float] = []

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, due: float) -> None:
            await self._read(reader, writer)
            waits.append(time.perf_counter() - due)

        for _ in range(rounds):
            due = time.perf_counter()
            await asyncio.gather(*(client(*connection, due) for connection in opened))
        for _, writer in opened:
            writer.close()
        return Waits.of(waits)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(self._calls))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200 "):
            raise RuntimeError(f"A read was answered by {head.splitlines()[0].decode()}.")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


@contextmanager
def _installation(home: Path, rows: int) -> Iterator[tuple[Stack, _Reads]]:
    settings = Settings(_env_file=None, home=home, ui_port=0, api_port=0)
    with supervisor.start(settings) as stack:
        demo.install_sample(stack.services)
        report.console.print(f"making a user with {rows:,} rows, and {_REQUESTS} exports to read", markup=False)
        heavy_user.ensure(stack.services.source_url, rows)
        name = heavy_user.data_type(rows)
        config = DataTypeConfig(data_type=name, table_name=f"{heavy_user.SCHEMA}.{name}")
        stack.services.data_types.apply([config], ACTOR)
        users = [f"user-{10 + number:04d}" for number in range(_REQUESTS)]
        ids = _completed(stack, [(user, ["user_profile", "user_sessions"], "json") for user in users])
        operator = Principal(id="benchmark", roles=frozenset({Role.OPERATOR}))
        token = stack.services.gatekeeper.issue(operator, timedelta(hours=1))
        yield stack, _Reads(stack.api_url, token, _paths(ids, users))


def _paths(ids: list[str], users: list[str]) -> list[str]:
    """Mostly where one export stands; now and then more."""
    more = ["/api/exports?limit=20", "/api/exports/data-types"]
    paths: list[str] = []
    for number, (request_id, user) in enumerate(zip(ids, users, strict=True)):
        status = f"/api/exports/status/{request_id}"
        paths += [status, f"/api/exports/user/{user}/history", status, more[number % len(more)]]
    return paths


@contextmanager
def _exporting(stack: Stack, rows: int, seconds: float) -> Iterator[threading.Event]:
    """Inside the block the heavy user is exported, again and again for `seconds`; then the event is set."""
    done, began = threading.Event(), time.monotonic()

    def export() -> None:
        try:
            while time.monotonic() - began < seconds:
                _completed(stack, [(heavy_user.USER, [heavy_user.data_type(rows)], "csv")])
        finally:
            done.set()

    thread = threading.Thread(target=export)
    thread.start()
    try:
        yield done
    finally:
        thread.join()


def _completed(stack: Stack, wanted: list[tuple[str, list[str], str]]) -> list[str]:
    """Insert requests of users for data types in a format, and wait for their files."""
    insert = (
        "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, data_types, format)"
        " VALUES (%s, 'benchmark', 'custom', %s, %s) RETURNING request_id"
    )
    with psycopg.connect(stack.services.database_url) as connection:
        found = [connection.execute(insert, one).fetchone() for one in wanted]
    ids = [row[0] for row in found if row]
    last = {request.request_id: request for request in follow(stack.services.database, ids, timeout=_PATIENCE_S)}
    if any(request.status != "completed" for request in last.values()):
        raise RuntimeError("Not every export was completed.")
    return ids


def _after(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until
