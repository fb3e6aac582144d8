"""The seal: what goes in comes out, or an error that says why; and no thread stays behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyrage
import pytest
from pyrage import x25519

from export_pipeline.errors import ExportPipelineError, SealBroken, SourceUnavailable
from export_pipeline.vault.keys import KeyRing
from export_pipeline.vault.seal import seal, unseal

AGE_CHUNK = 64 * 1024
RING = KeyRing((x25519.Identity.generate(),))
OTHER = KeyRing((x25519.Identity.generate(),))
MIB = 1024 * 1024


class Interruption(BaseException):
    """As Dagster's, or a KeyboardInterrupt."""


def sealed(*chunks: bytes, ring: KeyRing = RING) -> bytes:
    out: list[bytes] = []
    seal(chunks, ring, out.append)
    return b"".join(out)


def opened(data: bytes, ring: KeyRing = RING) -> bytes:
    return b"".join(unseal([data], ring))


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("size", [0, 1, AGE_CHUNK - 1, AGE_CHUNK, AGE_CHUNK + 1, 256 * 1024, MIB + 7])
@pytest.mark.parametrize("chunk", [7919, 10**9])
def test_what_goes_in_comes_out(size: int, chunk: int, cutting: Any) -> None:
    text = bytes(range(251)) * (size // 251 + 1)
    text = text[:size]
    stream = sealed(*cutting.cut(text, chunk))
    assert b"".join(unseal(cutting.cut(stream, chunk), RING)) == text


def test_any_age_program_opens_it() -> None:
    assert pyrage.decrypt(sealed(b"text"), list(RING.identities)) == b"text"


def test_the_text_is_not_in_the_sealed_bytes() -> None:
    assert b"canary" not in sealed(b"canary" * 1000)


def test_single_bytes_and_empty_chunks(cutting: Any) -> None:
    stream = sealed(b"", b"a", b"", b"", b"bc", b"")
    assert b"".join(unseal([b"", *cutting.cut(stream, 1), b""], RING)) == b"abc"


def test_a_stream_of_nothing_is_sealed_too() -> None:
    assert opened(sealed()) == b""


def test_writes_are_gathered() -> None:
    out: list[bytes] = []
    seal([bytes(2 * MIB)], RING, out.append)
    assert min(map(len, out[:-1])) >= 256 * 1024


def test_chunks_are_asked_for_one_after_the_other() -> None:
    """Constant memory: nothing is gathered before it is written."""
    written = 0
    ahead = []

    def chunks() -> Iterator[bytes]:
        for number in range(64):
            ahead.append(number * MIB // 4 - written)
            yield bytes(MIB // 4)

    def write(data: bytes) -> None:
        nonlocal written
        written += len(data)

    seal(chunks(), RING, write)
    assert max(ahead) <= MIB


def test_old_keys_open_what_they_sealed_and_the_first_one_seals() -> None:
    both = KeyRing((OTHER.identities[0], RING.identities[0]))
    assert opened(sealed(b"old"), both) == b"old"
    assert opened(sealed(b"new", ring=both), OTHER) == b"new"
    with pytest.raises(SealBroken):
        opened(sealed(b"new", ring=both), RING)


def test_other_keys_do_not_open_it() -> None:
    with pytest.raises(SealBroken, match="not sealed for any of this installation's keys"):
        opened(sealed(b"text"), OTHER)


def test_cut_off_anywhere_is_noticed() -> None:
    stream = sealed(b"text")
    for end in range(len(stream)):
        with pytest.raises(SealBroken):
            opened(stream[:end])


@pytest.mark.parametrize("lost", [1, 16, 17, AGE_CHUNK, AGE_CHUNK + 16, AGE_CHUNK + 17])
def test_cut_off_between_the_chunks_of_age_is_noticed(lost: int) -> None:
    stream = sealed(bytes(3 * AGE_CHUNK))
    with pytest.raises(SealBroken, match="damaged"):
        opened(stream[:-lost])


def test_every_turned_bit_is_noticed(cutting: Any) -> None:
    for damaged in cutting.flips(sealed(b"text")):
        with pytest.raises(SealBroken):
            opened(damaged)


def test_nothing_may_follow() -> None:
    for more in (b"\0", sealed(b"text")):
        with pytest.raises(SealBroken):
            opened(sealed(b"text") + more)


@pytest.mark.parametrize("data", [b"", b"\0", b"age-encryption.org/v1\n", b"PK\x03\x04", bytes(1000)])
def test_what_was_never_sealed(data: bytes) -> None:
    with pytest.raises(SealBroken):
        opened(data)


def test_an_error_of_the_seal_hides_the_librarys_words() -> None:
    with pytest.raises(SealBroken) as caught:
        opened(b"garbage")
    assert str(caught.value) == "The sealed file is damaged: it was cut off or altered."


def failing(error: BaseException, *before: bytes) -> Iterator[bytes]:
    yield from before
    raise error


ERRORS = [
    SourceUnavailable("away", hint="wait"),
    ValueError("any"),
    OSError(5, "io"),
    StopAsyncIteration(),
    Interruption("stop"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("before", [(), (b"x",), (bytes(2 * MIB),)], ids=["at once", "early", "late"])
class TestErrorsArriveUnchanged:
    def test_of_the_source_when_sealing(self, error: BaseException, before: tuple[bytes, ...]) -> None:
        self.check(error, lambda: seal(failing(error, *before), RING, lambda _: None))

    def test_of_the_writer_when_sealing(self, error: BaseException, before: tuple[bytes, ...]) -> None:
        def write(_: bytes) -> None:
            raise error

        self.check(error, lambda: seal(before, RING, write))

    def test_of_the_source_when_opening(self, error: BaseException, before: tuple[bytes, ...]) -> None:
        stream = sealed(*before)
        self.check(error, lambda: list(unseal(failing(error, stream[:-1]), RING)))

    @staticmethod
    def check(error: BaseException, call: Callable[[], object]) -> None:
        cause = KeyError("cause")
        error.__cause__ = cause
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error
        assert error.__cause__ is cause
        error.__traceback__ = None


def test_nothing_is_written_after_an_error_of_the_source() -> None:
    out: list[bytes] = []
    with pytest.raises(ValueError, match="stop"):
        seal(failing(ValueError("stop"), b"text"), RING, out.append)
    assert out == []


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_reader_that_stops_early_leaves_no_thread(taken: int) -> None:
    stream = sealed(bytes(8 * MIB))
    reader = unseal([stream], RING)
    for _ in range(taken):
        next(reader)
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "unseal"]


def test_a_reader_that_is_thrown_away_leaves_no_thread() -> None:
    for _ in unseal([sealed(bytes(8 * MIB))], RING):
        break


def test_an_error_of_the_reader_passes_and_leaves_no_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in unseal([sealed(bytes(8 * MIB))], RING):
            raise ZeroDivisionError


def test_opening_reads_no_further_than_it_must() -> None:
    """Constant memory: the queue is short."""
    stream = sealed(bytes(32 * MIB))
    asked = []

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(stream), 64 * 1024):
            asked.append(at)
            yield stream[at : at + 64 * 1024]

    reader = unseal(chunks(), RING)
    next(reader)
    reader.close()
    assert asked[-1] < 8 * MIB


def test_an_error_is_one_of_ours() -> None:
    assert issubclass(SealBroken, ExportPipelineError)
