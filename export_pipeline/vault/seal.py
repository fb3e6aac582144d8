"""The age seal over streams: `seal` turns plain chunks into sealed ones, `unseal` the other way round.

Both work in constant memory. age authenticates 64 KiB at a time, so `unseal` may yield the beginning of a file before
it finds that the end is missing: a reader must not trust what it got until the iterator has ended without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyrage

from export_pipeline.errors import SealBroken
from export_pipeline.pump import ReaderLeft, pumped
from export_pipeline.vault.keys import KeyRing

_CHUNK = 256 * 1024


def seal(chunks: Iterable[bytes], ring: KeyRing, write: Callable[[bytes], Any]) -> None:
    """Encrypt `chunks` for the keys that seal and hand the sealed bytes to `write`.

    Raises:
        BaseException: Whatever `chunks` or `write` raised, unchanged.
    """
    reader = _Reader(chunks)
    writer = _Writer(write)
    try:
        pyrage.encrypt_io(reader, writer, ring.recipients)
    except Exception:
        if not (reader.fault or writer.fault):
            raise
    # The library wraps what happened in our iterator, an interruption too; the caller can only act on the original.
    if fault := reader.fault or writer.fault:
        raise fault
    writer.end()


def unseal(sealed: Iterable[bytes], ring: KeyRing) -> Iterator[bytes]:
    """Decrypt, in chunks of about 256 KiB.

    The library pushes and we are pulled from, so it runs in a thread of its own.

    Raises:
        SealBroken: Truncated, altered, or sealed for other keys.
        BaseException: Whatever `sealed` raised, unchanged.
    """
    reader = _Reader(sealed)

    def push(put: Callable[[bytes], None]) -> None:
        writer = _Writer(put)
        try:
            pyrage.decrypt_io(reader, writer, list(ring.identities))
            return writer.end()
        except ReaderLeft:
            raise
        except BaseException as error:
            fault = writer.fault or reader.fault or _broken(error)
        raise fault

    return pumped(push, name="unseal")


def _broken(error: BaseException) -> SealBroken:
    if "No matching keys" in str(error):
        return SealBroken(
            "The file is not sealed for any of this installation's keys.",
            hint="Restore the key file it was made with.",
        )
    return SealBroken("The sealed file is damaged: it was cut off or altered.")


class _Reader:
    """What the library reads from: an iterator of chunks with a `read`."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        self.fault: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._read(size)
        except BaseException as error:
            self.fault = error
            raise

    def _read(self, size: int) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        if size < 0:
            size = len(self._rest)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


class _Writer:
    """What the library writes to: gathers its small writes into chunks."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self._buffer = bytearray()
        self.fault: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self._buffer += data
            if len(self._buffer) >= _CHUNK:
                self.end()
        except BaseException as error:
            self.fault = error
            raise
        return len(data)

    def flush(self) -> None:
        """The library flushes at the end; `end` does it for us."""

    def end(self) -> None:
        """Write what is left."""
        if self._buffer:
            chunk, self._buffer = bytes(self._buffer), bytearray()
            self._write(chunk)
