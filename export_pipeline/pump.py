"""Streams that are made in one thread and read in another, behind a short queue.

Compressing, decompressing and hashing let go of Python's lock, so two stages of a stream use two processors. Some
libraries push what they make and cannot be pulled from: for them a thread is the only way to become an iterator.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

_QUEUED = 4


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Read `items` in a thread of its own, a few ahead of the reader.

    Raises:
        BaseException: Whatever `items` raised, unchanged.
    """

    def push(put: Callable[[T], None]) -> None:
        for item in items:
            put(item)

    return pumped(push, name="ahead")


def pumped(push: Callable[[Callable[[T], None]], None], *, name: str) -> Iterator[T]:
    """Run `push` in a thread and yield what it hands to its argument; nothing runs before the first item is asked for.

    A reader that leaves early ends the thread: its next put raises `ReaderLeft`, which `push` must let through.

    Args:
        push: The producer.
        name: Of the thread.

    Raises:
        BaseException: Whatever `push` raised, unchanged.
    """
    pipe = _Pipe[T]()
    thread = threading.Thread(target=pipe.fill, args=(push,), name=name, daemon=True)
    thread.start()
    try:
        yield from pipe.items()
    finally:
        pipe.stopped.set()
        thread.join()


class ReaderLeft(Exception):
    """Nobody reads any more."""


class _Ended:
    """Stands in the queue where the stream ends, by an error or in peace."""

    def __init__(self, fault: BaseException | None = None) -> None:
        self.fault = fault


class _Pipe(Generic[T]):
    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._queue: queue.Queue[T | _Ended] = queue.Queue(_QUEUED)

    def fill(self, push: Callable[[Callable[[T], None]], None]) -> None:
        """Whatever ends the producer is put into the queue, or else the reader would wait for ever."""
        with suppress(ReaderLeft):
            try:
                push(self._put)
            except ReaderLeft:
                return
            except BaseException as error:
                self._put(_Ended(error))
            else:
                self._put(_Ended())

    def items(self) -> Iterator[T]:
        while not isinstance(item := self._queue.get(), _Ended):
            yield item
        if item.fault is not None:
            raise item.fault

    def _put(self, item: T | _Ended) -> None:
        while not self.stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue
        raise ReaderLeft
