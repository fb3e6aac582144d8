"""Sealed objects under names, in a folder or in an S3-compatible store: whole, or not there."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store, from_url

from export_pipeline.errors import StorageUnavailable, VaultError
from export_pipeline.vault.keys import KeyFile, KeyRing, KeySource
from export_pipeline.vault.seal import seal, unseal

_LOCAL_PART, _LOCAL_UPLOADS = 2 * 1024 * 1024, 4
#: An S3 store takes 10,000 parts of an upload, so their size bounds a file: 160 GB, as stored. Two are on their way at
#: once, for each is held in memory.
_REMOTE_PART, _REMOTE_UPLOADS = 16 * 1024 * 1024, 2
#: One request to an S3 store: large enough that its round trip vanishes.
_READ_AHEAD = 4 * 1024 * 1024
_READ_CHUNK = 1024 * 1024

#: A store that is away for longer than this fails the step, which is tried again later.
_PATIENCE = timedelta(seconds=30)
_MAX_RETRIES = 8

#: What stands in the words of the library → what we say, and what helps. Their own words name addresses and keys.
_REASONS = (
    ("No space left", "The store is full.", "Make room, then retry the request."),
    (
        "NoSuchBucket",
        "The store has no such bucket.",
        "Make the bucket, or name another in EXPORT_PIPELINE_STORAGE_URL.",
    ),
    (
        "latest/api/token",  # where a rented machine learns its role
        "There are no credentials for the store.",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role.",
    ),
    (
        "builder error",
        "The address of the store cannot be used.",
        "Check AWS_ENDPOINT; an address with http:// also needs AWS_ALLOW_HTTP=true.",
    ),
    ("error sending request", "The store does not answer.", "Check AWS_ENDPOINT; is the server running?"),
    *(
        (
            word,
            "The store refuses us.",
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights on the bucket: read, write, list, delete.",
        )
        for word in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden", "401 Unauthorized")
    ),
)

#: Stands before a number in the names of files that the library has not finished.
_HALF_DONE = "#"

#: Folders and a file, none of them hidden.
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """A sealed object.

    Attributes:
        key: Its name in the store.
        url: Where it lies, for people who look after the store.
        size: Bytes as stored.
        sealed_for: The public key of ours that it is sealed for.
    """

    key: str
    url: str
    size: int
    sealed_for: str


@dataclass(frozen=True, kw_only=True)
class ListedObject:
    """What the store holds, whole or not.

    Attributes:
        key: Its name; that of an upload which was killed in the middle is no name of ours.
        size: Bytes as stored.
        modified: When it was last written, UTC.
    """

    key: str
    size: int
    modified: datetime


class Vault:
    """Seals what it stores and opens what it reads; there is no other way in or out.

    Args:
        url: ``file:///folder`` or ``s3://bucket/prefix``.
        keys: Our keys, or their file; asked for every object, and without them nothing is stored or read.
        lasting: Whether a stored object must survive a power cut; what a run can make again need not.
    """

    def __init__(self, url: str, keys: Path | KeySource, *, lasting: bool = True) -> None:
        self._lasting = lasting
        self._url = url.rstrip("/")
        self._keys = KeyFile(keys) if isinstance(keys, Path) else keys
        self._folder = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else None

    @property
    def _ring(self) -> KeyRing:
        return self._keys.ring()

    @cached_property
    def _store(self) -> ObjectStore:
        return _guard(_local, self._folder) if self._folder else _guard(_remote, self._url)

    def store(self, key: str, chunks: Iterable[bytes]) -> StoredObject:
        """Seal `chunks` and store them; nothing is visible under `key` before it is whole, and on disk if it must last.

        Raises:
            StorageUnavailable: The store refused, or is full.
            VaultError: `key` is not a name of ours.
            BaseException: Whatever `chunks` raised, unchanged; then nothing is left behind.
        """
        ring = self._ring
        part, uploads = (_LOCAL_PART, _LOCAL_UPLOADS) if self._folder else (_REMOTE_PART, _REMOTE_UPLOADS)
        writer = _guard(
            lambda: obstore.open_writer(self._store, _checked(key), buffer_size=part, max_concurrency=uploads)
        )
        size = 0

        def write(data: bytes) -> None:
            nonlocal size
            size += _guard(writer.write, data)

        try:
            seal(chunks, ring, write)
            _guard(writer.flush)
        except BaseException as error:
            # Leaving by an error aborts the upload. The first error is the one to tell.
            with suppress(BaseError, OSError):
                writer.__exit__(type(error), error, error.__traceback__)
            raise
        _guard(writer.close)
        if self._folder and self._lasting:
            _guard(_settle, self._folder / key, self._folder)
        return StoredObject(key=key, url=f"{self._url}/{key}", size=size, sealed_for=str(ring.recipient))

    def with_keys(self, keys: KeySource) -> Vault:
        """The same store, sealed and opened by other keys."""
        _ = self._store  # one connection serves both
        other = copy(self)
        other._keys = keys
        return other

    def open(
        self, key: str, *, watch: Callable[[Iterator[bytes]], Iterator[bytes]] = lambda sealed: sealed
    ) -> Iterator[bytes]:
        """Read an object back, decrypted, in chunks.

        Args:
            key: Its name.
            watch: Passes the sealed chunks on, and may look at them.

        Raises:
            VaultError: There is no such object.
            SealBroken: It is damaged, or sealed for other keys. The chunks so far must be thrown away.
        """
        yield from unseal(watch(self.sealed(key)), self._ring)

    def sealed(self, key: str) -> Iterator[bytes]:
        """Read an object as it is stored: for whom it is sealed, that is the file.

        Raises:
            VaultError: There is no such object.
        """
        store = self._store
        try:
            # By ranges: of a local file, the library's stream of small chunks costs ten times the processor time.
            ahead = _READ_CHUNK if self._folder else _READ_AHEAD
            reader = obstore.open_reader(store, _checked(key), buffer_size=ahead)
            while chunk := bytes(reader.read(_READ_CHUNK)):
                yield chunk
        except FileNotFoundError:
            if not self._folder:
                self.keys(key)  # an S3 store answers alike when the whole bucket is gone
            raise VaultError("The stored file is gone.", hint="Request the export again.") from None
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None

    def public_keys(self) -> list[str]:
        """The public halves of the keys that open what is stored.

        Raises:
            KeyUnusable: There is none.
        """
        return [str(identity.to_public()) for identity in self._ring.identities]

    def presigned(self, key: str, lifetime: timedelta) -> str | None:
        """Make an address at which anybody gets the sealed object from an S3 store, for a while.

        Returns:
            None when the store is a folder.

        Raises:
            StorageUnavailable: There are no credentials to sign with.
        """
        if not isinstance(self._store, S3Store):
            return None
        return _guard(obstore.sign, self._store, "GET", _checked(key), lifetime)

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
        if self._folder:
            return _guard(_remove, self._folder / _checked(prefix), self._folder)
        keys = self.keys(_checked(prefix))
        if keys:
            _guard(obstore.delete, self._store, keys)
        return len(keys)

    def delete(self, found: ListedObject) -> None:
        """Remove one object of a `listing`; that it is gone already is no error."""
        _checked(found.key.partition(_HALF_DONE)[0])
        if self._folder:
            _guard(_unlink, self._folder / found.key, self._folder)
        else:
            _guard(obstore.delete, self._store, [found.key])

    def keys(self, prefix: str = "") -> list[str]:
        """Names of the stored objects."""
        found = _guard(lambda: obstore.list(self._store, prefix=_checked(prefix) if prefix else None).collect())
        return sorted(meta["path"] for meta in found)

    def listing(self) -> list[ListedObject]:
        """Everything in the store; of a folder, also what killed uploads left. An S3 store hides those."""
        if self._folder:
            _ = self._store
            return _guard(_files, self._folder)
        found = _guard(lambda: obstore.list(self._store).collect())
        return [ListedObject(key=meta["path"], size=meta["size"], modified=meta["last_modified"]) for meta in found]


def _checked(key: str) -> str:
    """Names become paths: one that could mean another place, or everything, never reaches the store."""
    if not _KEY.fullmatch(key):
        raise VaultError("This is not a name of a stored object.")
    return key


def _guard(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the storage library; its errors name paths and internals, ours do not."""
    try:
        return call(*args, **kwargs)
    except (BaseError, OSError) as error:
        raise _unavailable(error) from None


def _unavailable(error: Exception) -> StorageUnavailable:
    words = str(error)
    for word, message, hint in _REASONS:
        if word in words:
            return StorageUnavailable(message, hint=hint)
    return StorageUnavailable(
        f"The store cannot be used ({type(error).__name__}).",
        hint="Check EXPORT_PIPELINE_STORAGE_URL and its rights.",
    )


def _local(folder: Path) -> ObjectStore:
    """Owner-only: the library creates files by the process's umask, and we never want a wider one."""
    os.umask(0o077)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return LocalStore(folder, mkdir=True)


def _remote(url: str) -> ObjectStore:
    """Address and credentials of an S3 store come from the variables AWS_*, as with every other S3 client."""
    if url.startswith("s3://"):
        return S3Store.from_url(url, retry_config={"max_retries": _MAX_RETRIES, "retry_timeout": _PATIENCE})
    return from_url(url)


def _files(root: Path) -> list[ListedObject]:
    found = []
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            with suppress(FileNotFoundError):  # somebody removed it meanwhile
                status = path.stat()
                moment = datetime.fromtimestamp(status.st_mtime, UTC)
                key = path.relative_to(root).as_posix()
                found.append(ListedObject(key=key, size=status.st_size, modified=moment))
    return found


def _settle(file: Path, root: Path) -> None:
    """Make a published file survive a power cut: its bytes, its name, and the names of its folders."""
    above = [folder for folder in file.parents if folder == root or root in folder.parents]
    for path in (file, *above):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(below: Path, root: Path) -> int:
    """Remove a folder: its objects, leftovers of uploads that were killed in the middle, and what becomes empty by it.

    Somebody else may do the same, or begin to write beside it: what is gone is gone, and what is in use stays.

    Returns:
        How many objects there were.
    """
    removed = 0
    for folder, _, names in os.walk(below, topdown=False):
        for name in names:
            with suppress(FileNotFoundError):
                Path(folder, name).unlink()
                removed += _KEY.fullmatch(name) is not None
        _remove_empty(Path(folder))
    while below != root and _remove_empty(below):
        below = below.parent
    return removed


def _unlink(file: Path, root: Path) -> None:
    file.unlink(missing_ok=True)
    folder = file.parent
    while folder != root and _remove_empty(folder):
        folder = folder.parent


def _remove_empty(folder: Path) -> bool:
    """Whether the folder is gone now."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True
