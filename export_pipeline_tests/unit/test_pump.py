"""Reading ahead in a thread: everything arrives, in order; errors arrive unchanged; no thread stays behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from export_pipeline.pump import ReaderLeft, ahead, pumped


class Interruption(BaseException):
    """As Dagster's, or a KeyboardInterrupt."""


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("count", [0, 1, 8, 9, 10_000])
def test_everything_arrives_in_order(count: int) -> None:
    assert list(ahead(range(count))) == list(range(count))


def test_what_is_false_is_no_end() -> None:
    assert list(ahead([b"", None, 0])) == [b"", None, 0]


def test_it_runs_in_another_thread_and_not_before_it_is_asked() -> None:
    ran: list[str] = []

    def items() -> Iterator[int]:
        ran.append(threading.current_thread().name)
        yield 1

    stream = ahead(items())
    assert not ran
    assert list(stream) == [1]
    assert ran == ["ahead"]


@pytest.mark.parametrize("error", [ValueError("bad"), Interruption(), KeyboardInterrupt()])
def test_an_error_arrives_unchanged_and_after_what_came_before(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(type(error)) as caught:
        next(stream)
    assert caught.value is error


def test_only_a_few_are_read_ahead() -> None:
    asked = 0

    def items() -> Iterator[int]:
        nonlocal asked
        for number in range(1000):
            asked = number + 1
            yield number

    for number, _ in enumerate(ahead(items())):
        assert asked - number <= 10


def test_a_reader_that_leaves_ends_the_producer() -> None:
    ended = threading.Event()

    def push(put: Callable[[int], None]) -> None:
        try:
            while True:
                put(1)
        except ReaderLeft:
            ended.set()
            raise

    stream = pumped(push, name="endless")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert ended.is_set()


def test_streams_may_be_nested() -> None:
    assert sum(ahead(ahead(ahead(range(1000))))) == sum(range(1000))
