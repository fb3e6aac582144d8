"""Sealed objects under names, in a folder or in an S3-compatible store: whole, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from export_pipeline.errors import StorageUnavailable, VaultError
from export_pipeline.vault import keys
from export_pipeline.vault.keys import KeyRing
from export_pipeline.vault.seal import seal, unseal

_BUFFER = 8 * 1024 * 1024
_READ_CHUNK = 1024 * 1024

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """A sealed object.

    Attributes:
        key: Its name in the store.
        url: Where it lies, for people who look after the store.
        size: Bytes as stored.
    """

    key: str
    url: str
    size: int


class Vault:
    """Seals what it stores and opens what it reads; there is no other way in or out.

    Args:
        url: ``file:///folder`` or ``s3://bucket/prefix``.
        key_file: The installation's keys; read when first needed, and without them nothing is stored or read.
    """

    def __init__(self, url: str, key_file: Path) -> None:
        self._url = url.rstrip("/")
        self._key_file = key_file
        self._folder = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else None

    @cached_property
    def _ring(self) -> KeyRing:
        return keys.load(self._key_file)

    @cached_property
    def _store(self) -> ObjectStore:
        return _local(self._folder) if self._folder else _guard(from_url, self._url)

    def store(self, key: str, chunks: Iterable[bytes]) -> StoredObject:
        """Seal `chunks` and store them; nothing is visible under `key` before it is whole and on disk.

        Raises:
            StorageUnavailable: The store refused, or is full.
            Exception: Whatever `chunks` raised, unchanged; then nothing is left behind.
        """
        size = 0
        try:
            # Leaving the block by an error aborts the upload, leaving it in peace publishes it.
            with obstore.open_writer(self._store, key, buffer_size=_BUFFER) as writer:

                def write(data: bytes) -> None:
                    nonlocal size
                    size += _guard(writer.write, data)

                seal(chunks, self._ring, write)
                _guard(writer.flush)
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None
        if self._folder:
            _settle(self._folder / key)
        return StoredObject(key=key, url=f"{self._url}/{key}", size=size)

    def open(self, key: str) -> Iterator[bytes]:
        """Read an object back, decrypted, in chunks.

        Raises:
            VaultError: There is no such object.
            SealBroken: It is damaged, or sealed for other keys. The chunks so far must be thrown away.
        """
        yield from unseal(self._sealed(key), self._ring)

    def require_key(self) -> None:
        """Make sure that there is a usable key before anything is collected.

        Raises:
            KeyUnusable: There is none.
        """
        _ = self._ring

    def delete_below(self, prefix: str) -> int:
        """Remove every object whose key begins with the folder `prefix`.

        Returns:
            How many there were.
        """
        keys = [meta["path"] for batch in _guard(obstore.list, self._store, prefix=prefix) for meta in batch]
        if keys:
            _guard(obstore.delete, self._store, keys)
        if self._folder:
            _prune(self._folder / prefix, self._folder)
        return len(keys)

    def keys(self, prefix: str = "") -> list[str]:
        """Names of the stored objects."""
        batches = _guard(obstore.list, self._store, prefix=prefix or None)
        return sorted(meta["path"] for batch in batches for meta in batch)

    def _sealed(self, key: str) -> Iterator[bytes]:
        try:
            result = obstore.get(self._store, key)
        except FileNotFoundError:
            raise VaultError("The stored file is gone.", hint="Request the export again.") from None
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None
        for chunk in _guard(lambda: result.stream(min_chunk_size=_READ_CHUNK)):
            yield bytes(chunk)


def _guard(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the storage library; its errors name paths and internals, ours do not."""
    try:
        return call(*args, **kwargs)
    except (BaseError, OSError) as error:
        raise _unavailable(error) from None


def _unavailable(error: Exception) -> StorageUnavailable:
    if "No space left" in str(error):
        return StorageUnavailable("The store is full.", hint="Make room, then retry the request.")
    return StorageUnavailable(
        f"The store cannot be used ({type(error).__name__}).",
        hint="Check EXPORT_PIPELINE_STORAGE_URL and its rights.",
    )


def _local(folder: Path) -> ObjectStore:
    """Owner-only: the library creates files by the process's umask, and we never want a wider one."""
    os.umask(0o077)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return LocalStore(folder, mkdir=True)


def _settle(file: Path) -> None:
    """Make a published file survive a power cut: its bytes, and its name in the folder."""
    for path in (file, file.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prune(folder: Path, root: Path) -> None:
    """Remove folders that the deletion emptied, and leftovers of uploads that were killed in the middle."""
    if not folder.is_dir():
        return
    for leftover in sorted(folder.rglob("*"), reverse=True):
        if leftover.is_dir():
            leftover.rmdir()
        else:
            leftover.unlink()
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
