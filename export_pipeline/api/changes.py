"""Who waits for a request to change hears it at once: one LISTEN connection for all who wait in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator

import psycopg

from export_pipeline.db.pool import Database

_RECONNECT_S = 1.0
_CHANNEL = "export_requests"


class Changes:
    """Passes the notices of our tables on. Connected while somebody waits.

    Args:
        database: Our tables.
    """

    def __init__(self, database: Database) -> None:
        self._url = database.url
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._by: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return sum(map(len, self._waiting.values()))

    def waiting_for(self, person: str) -> int:
        """How many of them wait for one person."""
        return self._by[person]

    @contextlib.asynccontextmanager
    async def of(self, request_id: str, *, person: str) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set whenever the request may have changed; the one who waits clears it.

        It may be set without a change: after the connection was lost, nobody knows what was missed.

        Args:
            request_id: The request.
            person: Who waits.
        """
        event = asyncio.Event()
        self._waiting[request_id].add(event)
        self._by[person] += 1
        if self._task is None:
            self._task = asyncio.create_task(self._listen())
        try:
            yield event
        finally:
            self._leave(request_id, event)
            self._by -= Counter([person])  # keeps nobody at zero

    def _leave(self, request_id: str, event: asyncio.Event) -> None:
        self._waiting[request_id].discard(event)
        if not self._waiting[request_id]:
            del self._waiting[request_id]
        if not self._waiting and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._listen_once()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen_once(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True, connect_timeout=10)
        async with connection:
            await connection.execute(f"LISTEN {_CHANNEL}".encode())
            # What changed before we listened was not heard.
            self._wake(list(self._waiting))
            async for notice in connection.notifies():
                self._wake([notice.payload])

    def _wake(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            for event in self._waiting.get(request_id, ()):
                event.set()
