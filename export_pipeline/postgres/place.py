"""Where everything of one embedded server is, and that it is closed to everybody else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from export_pipeline.errors import ConfigurationError
from export_pipeline.file_lock import open_private
from export_pipeline.postgres import account

PORT = 5432
SOCKET_NAME = f".s.PGSQL.{PORT}"

#: A socket's whole path, in bytes; macOS has the least room (104 with the closing NUL).
_SOCKET_PATH_MAX = 103

#: Where a socket goes when TMPDIR is too deep as well.
_SHORTEST = Path("/tmp")  # noqa: S108 - only for a private folder, whose owner is checked


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything of one state folder is."""

    home: Path

    @property
    def folder(self) -> Path:
        """All that is ours; the other paths are in it."""
        return self.home / "postgres"

    @property
    def data(self) -> Path:
        """The database."""
        return self.folder / "data"

    @property
    def password(self) -> Path:
        """The file with the role's password."""
        return self.folder / "password"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "server.log"

    @property
    def users(self) -> Path:
        """The lock that all users share."""
        return self.folder / "users.lock"

    @property
    def start(self) -> Path:
        """The lock of who starts or stops the server."""
        return self.folder / "start.lock"

    @property
    def socket_note(self) -> Path:
        """Names the socket's folder when it is not in here."""
        return self.folder / "socket_dir"

    @property
    def exists(self) -> bool:
        """Whether the database was made; an empty folder (a fresh volume) is none."""
        return self.data.is_dir() and any(self.data.iterdir())


def make_folders(place: Place) -> None:
    """Make the state folder and ours in it, for their owner only."""
    if not place.home.exists() or not any(place.home.iterdir()):
        place.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.home.chmod(0o700)
    # A state folder that was there before, with files in it, keeps its mode: ours is closed in any case.
    _make_private(place.folder)


def _make_private(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0 and (above := folder.parent.stat()).st_uid != 0:
            os.chown(folder, above.st_uid, above.st_gid)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def write_private(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    draft = path.with_name(f"{path.name}.new")
    with os.fdopen(open_private(draft, os.O_WRONLY | os.O_TRUNC), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def find_socket_dir(place: Place) -> Path:
    """Where the socket is: in the state folder when its path can serve, else where the last start put it."""
    inside = place.folder / "run"
    if _can_name_a_socket(inside):
        return inside
    name = f"export-pipeline-{hashlib.sha256(os.fsencode(place.home)).hexdigest()[:16]}"
    with contextlib.suppress(FileNotFoundError):
        # TMPDIR may differ from process to process; the server is in one place only.
        noted = Path(place.socket_note.read_text())
        if noted.name == name and noted.parent.is_dir():
            return noted
    chosen = Path(tempfile.gettempdir(), name)
    return chosen if _can_name_a_socket(chosen) else _SHORTEST / name


def _can_name_a_socket(folder: Path) -> bool:
    """Whether it is short enough, and free of what the client library's list of hosts gives a meaning."""
    path = os.fsencode(folder / SOCKET_NAME)
    return len(path) <= _SOCKET_PATH_MAX and path.decode("utf-8", "replace").isprintable() and b"," not in path


def make_socket_dir(place: Place, who: account.Account | None) -> Path:
    """Make it, or check that what is there is ours: under /tmp anybody could have been first.

    Raises:
        ConfigurationError: It is a link, or somebody else's.
    """
    folder = find_socket_dir(place)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    owners = {os.geteuid(), who.uid if who else os.geteuid()}
    apart = folder.parent != place.folder
    if not stat.S_ISDIR(status.st_mode) or (apart and status.st_uid not in owners):
        raise ConfigurationError(
            f"The folder {folder} for the socket of the embedded PostgreSQL belongs to somebody else.",
            hint="Remove it, or set TMPDIR or EXPORT_PIPELINE_HOME to another folder.",
        )
    account.give(folder, who)
    folder.chmod(0o700)
    if apart:
        write_private(place.socket_note, str(folder))
    return folder
