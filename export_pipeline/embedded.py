"""The PostgreSQL that comes with the package: made once, started when needed, stopped by the last user.

All of it lives in the folder ``postgres`` of the state folder, for its owner only::

    data/        the database                  password    of the only role, export_pipeline
    run/         the Unix socket               server.log  what the server says; never row values
    users.lock   shared by all who use it      start.lock  held while it is started or stopped

Who uses the server holds a `Lease`: a shared lock on ``users.lock``. Who gives one back and finds nobody
else there stops the server. Locks end with their process, so a killed user leaves at worst a running server,
which the next one uses and then stops. ``start.lock`` makes starting and stopping one decision at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from psycopg import pq
from psycopg.conninfo import make_conninfo

from export_pipeline import log_file
from export_pipeline.errors import ConfigurationError, DatabaseUnavailable
from export_pipeline.file_lock import FileLock
from export_pipeline.postgres import account, postmaster
from export_pipeline.postgres.database import NAME, ensure_made, read_password
from export_pipeline.postgres.place import (
    PORT,
    SOCKET_NAME,
    Place,
    find_socket_dir,
    make_folders,
    make_socket_dir,
)
from export_pipeline.postgres.programs import Programs, find_binaries, last_meaningful_line, options
from export_pipeline.settings import Settings

_START_S = 120.0  # recovery from a long log included
_RECOVERY_S = 30.0  # before a stop
_RETRY_S = 15.0  # until what a killed server left behind is gone
_SILENT_S = 10.0  # a living server that does not answer at all
_POLL_S = 0.02

#: Causes of a failed start that pass by themselves, or that the next attempt clears away.
_PASSING = ("shared memory block", "lock file")


@dataclass(frozen=True, kw_only=True)
class EmbeddedServer:
    """A running server, and how to reach it.

    Attributes:
        data_dir: The database's folder.
        socket_dir: The folder of its Unix socket.
        port: The number in the socket's name; there is no TCP port.
        url: For libpq and psycopg; holds the password, so it is not shown.
        psql: The psql that fits this server.
    """

    data_dir: Path
    socket_dir: Path
    port: int
    url: str = field(repr=False)
    psql: Path


class Lease:
    """The server is in use until this is released. A context manager; safe to release twice, from any thread.

    Attributes:
        server: The server in use.
    """

    def __init__(self, server: EmbeddedServer, place: Place, use: FileLock) -> None:
        self.server = server
        self._place = place
        self._use = use
        _leases.add(self)

    def release(self) -> None:
        """Give it back; the last user anywhere stops the server.

        Raises:
            DatabaseUnavailable: The server does not stop.
        """
        _leases.discard(self)
        if not self._use.release() or not self._place.folder.is_dir():
            return
        with FileLock.exclusive(self._place.start):
            alone = FileLock.try_exclusive(self._place.users)
            if alone is not None:
                with alone:
                    _stop(self._place)
        _reap()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


#: What this process holds, and the servers that it started: both must be settled before it ends.
_leases: set[Lease] = set()
_children: list[subprocess.Popen[bytes]] = []


def lease(settings: Settings) -> Lease:
    """Use the server: made the first time, started when it is not running, shared when it is.

    Raises:
        ConfigurationError: The state folder, the account or the data folder cannot be used.
        DatabaseUnavailable: The server does not start.
    """
    place = _place(settings)
    _reap()
    with _explained(place):
        make_folders(place)
        with FileLock.exclusive(place.start):
            use = FileLock.shared(place.users)
            try:
                server = _ensure_running(place, settings)
            except BaseException:
                use.release()
                raise
    return Lease(server, place, use)


def url(settings: Settings) -> str:
    """The URL of the server of this state folder, whether it runs or not.

    Raises:
        ConfigurationError: It was never made.
    """
    place = _place(settings)
    with _explained(place):
        if not place.exists:
            raise ConfigurationError(
                f"There is no embedded database in {place.home} yet.",
                hint="Make it with `export-pipeline migrate`, or set EXPORT_PIPELINE_DATABASE_URL.",
            )
        return _url(find_socket_dir(place), read_password(place))


def stop(settings: Settings) -> None:
    """Stop the server cleanly, whoever started it and whoever uses it; harmless when it is not running.

    Raises:
        DatabaseUnavailable: It does not stop.
    """
    place = _place(settings)
    with _explained(place):
        if place.folder.is_dir():
            with FileLock.exclusive(place.start):
                _stop(place)
    _reap()


def is_running(settings: Settings) -> bool:
    """Whether the server of this state folder accepts connections now."""
    place = _place(settings)
    with _explained(place):
        return place.folder.is_dir() and _ping(find_socket_dir(place)) == pq.Ping.OK


def psql() -> Path:
    """The psql that comes with the server, for machines that have none.

    Raises:
        ConfigurationError: The programs are not installed.
    """
    return find_binaries() / "psql"


def log(settings: Settings) -> Path:
    """Where the server of this state folder says what it does."""
    return _place(settings).log


def _place(settings: Settings) -> Place:
    return Place(home=settings.home.resolve())


@contextlib.contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Turn what the file system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"The embedded PostgreSQL cannot use its state folder {place.home}: {reason}.",
            hint="Check its owner, its mode and the space on its disk, or set EXPORT_PIPELINE_HOME.",
        ) from None


def _url(socket_dir: Path, password: str) -> str:
    host = quote(os.fsencode(socket_dir), safe="")
    return f"postgresql://{NAME}:{quote(password, safe='')}@/{NAME}?host={host}&port={PORT}"


def _ping(socket_dir: Path) -> pq.Ping:
    """Ask whether a server answers at the socket; needs no password.

    An empty ``hostaddr`` keeps PGHOSTADDR of the environment from sending us to another server.
    """
    conninfo = make_conninfo(host=str(socket_dir), hostaddr="", port=PORT, user=NAME, dbname=NAME, connect_timeout=2)
    return pq.Ping(pq.PGconn.ping(conninfo.encode()))


# --- running


def _ensure_running(place: Place, settings: Settings) -> EmbeddedServer:
    """Find the server or start it. The caller holds ``start.lock``."""
    binaries = find_binaries()
    socket_dir = find_socket_dir(place)
    if not (place.exists and _answers(place, socket_dir)):
        who = account.choose(settings.postgres_account, place.data)
        programs = Programs(
            folder=binaries,
            launch=account.launch(who, binaries / "postgres", (place.folder, binaries.parent)),
        )
        ensure_made(place, who, programs)
        socket_dir = make_socket_dir(place, who)
        _start(place, socket_dir, programs)
    return EmbeddedServer(
        data_dir=place.data,
        socket_dir=socket_dir,
        port=PORT,
        url=_url(socket_dir, read_password(place)),
        psql=psql(),
    )


def _answers(place: Place, socket_dir: Path) -> bool:
    """Whether a server is there; one that is just coming or going is waited for.

    One that lives but stays unreachable (its socket was cleaned away) is of no use to anybody: it is stopped.
    """
    began = time.monotonic()
    while True:
        state = _ping(socket_dir)
        if state == pq.Ping.OK:
            return True
        if state != pq.Ping.REJECT and postmaster.find(place.data) is None:
            return False
        if time.monotonic() - began > (_START_S if state == pq.Ping.REJECT else _SILENT_S):
            postmaster.stop(place.data)  # nobody can reach it to be cut off
            return False
        time.sleep(_POLL_S)


def _stop(place: Place) -> None:
    """Stop the server, but not while it recovers from a crash.

    PostgreSQL 18 never ends when it is told to during the recovery that follows the death of one of its children.
    """
    socket_dir, began = find_socket_dir(place), time.monotonic()
    while (
        postmaster.find(place.data) is not None
        and _ping(socket_dir) == pq.Ping.REJECT
        and time.monotonic() - began < _RECOVERY_S
    ):
        time.sleep(_POLL_S)
    postmaster.stop(place.data)


def _start(place: Place, socket_dir: Path, programs: Programs) -> None:
    """Start the server; try again while what a killed one left behind still stands in the way."""
    began = time.monotonic()
    while True:
        _clear_stale(place, socket_dir)
        log_file.bound(place.log)
        offset = place.log.stat().st_size if place.log.exists() else 0
        server = programs.start(options(place.data, socket_dir), place.log, place.data)
        if _became_ready(server, socket_dir):
            _children.append(server)
            return
        said = _said_since(place.log, offset)
        waited = time.monotonic() - began
        if waited > _RETRY_S or not any(cause in said for cause in _PASSING):
            raise DatabaseUnavailable(
                f"The embedded PostgreSQL did not start: {last_meaningful_line(said)}",
                hint=f"The whole story is in {place.log}.",
            )
        postmaster.end_leftovers(place.data, by_force=waited > _RETRY_S / 3)
        time.sleep(0.2)
        if _answers(place, socket_dir):
            return


def _became_ready(server: subprocess.Popen[bytes], socket_dir: Path) -> bool:
    """Wait until the server accepts connections (True) or has ended (False).

    Raises:
        DatabaseUnavailable: Neither happened in time.
    """
    deadline = time.monotonic() + _START_S
    try:
        while server.poll() is None and time.monotonic() < deadline:
            if _ping(socket_dir) == pq.Ping.OK:
                return True
            time.sleep(_POLL_S)
    except BaseException:
        _give_up(server)
        raise
    if server.returncode is not None:
        return False
    _give_up(server)
    raise DatabaseUnavailable(
        f"The embedded PostgreSQL was not ready after {_START_S:.0f} s.", hint="Is the disk very slow?"
    )


def _give_up(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGQUIT)  # at once: nobody uses it yet, and recovery can be done again
    try:
        server.wait(_SILENT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _clear_stale(place: Place, socket_dir: Path) -> None:
    """Remove what names a server that is gone, when its number now belongs to another process.

    PostgreSQL would take that process for a server and refuse to start. A real one still in the way is found
    by its shared memory, which does not depend on these files.
    """
    if postmaster.find(place.data) is not None:
        return
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
        (socket_dir / name).unlink(missing_ok=True)
    pid = postmaster.recorded(place.data)
    if pid is not None and postmaster.is_alive(pid):
        (place.data / "postmaster.pid").unlink(missing_ok=True)


def _said_since(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read(log_file.LIMIT).decode(errors="replace")


# --- this process


def _reap() -> None:
    """Take note of servers of ours that have ended, so that they do not stay in the process table."""
    _children[:] = [server for server in _children if server.poll() is None]


def _at_exit() -> None:
    for held in list(_leases):
        with contextlib.suppress(Exception):
            held.release()
    for server in _children:
        # Others use it: it outlives us on purpose, and Popen need not warn about it.
        server.returncode = 0


atexit.register(_at_exit)
