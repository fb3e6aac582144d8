"""An flock on a file: held by one process (or one of its threads), and gone with it however it ends."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from pathlib import Path

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """One held lock. ``flock`` counts per opened file, so each instance is a holder of its own.

    Children do not keep it: the descriptor is closed on exec, and a forked child lets go of its copy.
    """

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._closing = threading.Lock()
        _held.add(self)

    @classmethod
    def exclusive(cls, path: Path) -> FileLock:
        """Wait until nobody else holds `path` (made with mode 0600 when absent), then hold it alone."""
        lock = cls._take(path, fcntl.LOCK_EX)
        assert lock is not None  # noqa: S101 - without LOCK_NB it waits
        return lock

    @classmethod
    def shared(cls, path: Path) -> FileLock:
        """Hold `path` beside other sharers; waits while someone holds it alone."""
        lock = cls._take(path, fcntl.LOCK_SH)
        assert lock is not None  # noqa: S101
        return lock

    @classmethod
    def try_exclusive(cls, path: Path) -> FileLock | None:
        """Hold `path` alone, or answer None at once when somebody holds it."""
        return cls._take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @classmethod
    def _take(cls, path: Path, operation: int) -> FileLock | None:
        while True:
            lock = cls(open_private(path, os.O_RDWR))
            try:
                fcntl.flock(lock._descriptor, operation)
                if lock._is_still(path):
                    return lock
            except BlockingIOError:
                lock.release()
                return None
            except BaseException:
                lock.release()
                raise
            lock.release()

    @property
    def _descriptor(self) -> int:
        assert self._fd is not None  # noqa: S101
        return self._fd

    def _is_still(self, path: Path) -> bool:
        """Whether the file we locked is the one that others will find under this name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> bool:
        """Let go; True the first time, False when it was released already."""
        with self._closing:
            fd, self._fd = self._fd, None
        if fd is None:
            return False
        os.close(fd)
        return True

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def _forget_in_child(self) -> None:
        # The mutex may have been held by a thread that the child does not have.
        self._closing = threading.Lock()
        self.release()


def open_private(path: Path, flags: int) -> int:
    """Open `path`, made when absent, for its owner only (0600).

    What root makes belongs to the owner of the folder, so that this account can go on using it.

    Returns:
        The file descriptor, which the caller closes. Programs that are started do not inherit it.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        status, folder = os.fstat(fd), path.parent.stat()
        if os.geteuid() == 0 and status.st_uid != folder.st_uid:
            os.fchown(fd, folder.st_uid, folder.st_gid)
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _forget_all_in_child() -> None:
    for lock in list(_held):
        lock._forget_in_child()


os.register_at_fork(after_in_child=_forget_all_in_child)
