"""Small files that hold secrets: for their owner only, made whole or not at all, refused when others can read them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export_pipeline.errors import KeyUnusable
from export_pipeline.file_lock import FileLock


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Tells whether a file is still the one that was read."""

    inode: int
    size: int
    changed_ns: int


def lines(file: Path) -> list[str]:
    """Read the lines that are neither blank nor a comment.

    Raises:
        KeyUnusable: The file is absent, unreadable, or readable by others.
    """
    return [line for line in all_lines(file) if line[:1] not in {"", "#"}]


def all_lines(file: Path) -> list[str]:
    """Read every line, comments too.

    Raises:
        KeyUnusable: The file is absent, unreadable, or readable by others.
    """
    try:
        with file.open(encoding="ascii") as opened:
            # Of the file that was opened: another may stand under this name by now.
            mode = os.fstat(opened.fileno()).st_mode
            found = opened.read().splitlines()
    except FileNotFoundError:
        raise _absent(file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnusable(f"The key file {file} cannot be read ({type(error).__name__}).") from None
    if mode & 0o077:
        raise KeyUnusable(f"The key file {file} can be read by others.", hint=f"Run `chmod 600 {file}`.")
    return [line.strip() for line in found]


def first_line(file: Path) -> str:
    """Read a secret that is one line, whatever it begins with.

    Raises:
        KeyUnusable: The file is absent, unreadable, readable by others, or empty.
    """
    found = all_lines(file)
    if not found or not found[0]:
        raise KeyUnusable(f"The key file {file} is empty.")
    return found[0]


def stamp(file: Path) -> Stamp:
    """Look at the file without reading it.

    Raises:
        KeyUnusable: The file is absent, or its folder cannot be entered.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        raise _absent(file) from None
    except OSError as error:
        raise KeyUnusable(f"The key file {file} cannot be read ({type(error).__name__}).") from None
    return Stamp(inode=status.st_ino, size=status.st_size, changed_ns=status.st_ctime_ns)


def create(file: Path, text: Callable[[], str]) -> bool:
    """Make a file where there is none.

    Args:
        file: Its path; folders are made too.
        text: Makes its content, only when it is needed.

    Returns:
        Whether one was made.

    Raises:
        KeyUnusable: The folder cannot be written to.
    """
    try:
        if file.exists():
            return False
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _place(file, text())
    except OSError as error:
        raise _not_made(file, error) from None


def change(file: Path, text: Callable[[list[str]], str]) -> None:
    """Put another content in the place of a file, whole or not at all; whoever changes it too waits.

    Args:
        file: Its path.
        text: Makes the new content out of the lines of the old one.

    Raises:
        KeyUnusable: The file is absent, readable by others, or its folder cannot be written to.
    """
    stamp(file)
    try:
        with FileLock.exclusive(file.with_name(f".{file.name}.lock")):
            _replace(file, text(all_lines(file)))
    except OSError as error:
        raise _not_made(file, error) from None


def _absent(file: Path) -> KeyUnusable:
    return KeyUnusable(
        f"The key file {file} does not exist.", hint="Restore it; `export-pipeline migrate` makes the first one."
    )


def _not_made(file: Path, error: OSError) -> KeyUnusable:
    return KeyUnusable(
        f"The key file {file} cannot be made ({type(error).__name__}).", hint="Check the rights of its folder."
    )


def _place(file: Path, text: str) -> bool:
    temporary = _written(file, text)
    try:
        # A link and not a rename: of two processes that make the first key at once, one wins and both use it.
        os.link(temporary, file)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _settle(file.parent)
    return True


def _replace(file: Path, text: str) -> None:
    status = file.stat()
    temporary = _written(file, text)
    try:
        if os.geteuid() == 0:
            # The file stays with the account that uses it when root rotates its keys.
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _settle(file.parent)


def _written(file: Path, text: str) -> Path:
    """Write beside `file`: owner-only, and under a name that nobody else takes, not another thread, not a process that
    died with our id."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _settle(folder: Path) -> None:
    """A power cut must not take the name of a key that files are sealed with already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
