"""Small files that hold secrets: for their owner only, made whole or not at all, refused when others can read them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from export_pipeline.errors import KeyUnusable


def lines(file: Path) -> list[str]:
    """Read the lines that are neither blank nor a comment.

    Raises:
        KeyUnusable: The file is absent, unreadable, or readable by others.
    """
    try:
        mode = file.stat().st_mode
        found = file.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise KeyUnusable(
            f"The key file {file} does not exist.", hint="Restore it; `export-pipeline migrate` makes the first one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnusable(f"The key file {file} cannot be read ({type(error).__name__}).") from None
    if mode & 0o077:
        raise KeyUnusable(f"The key file {file} can be read by others.", hint=f"Run `chmod 600 {file}`.")
    return [line for line in map(str.strip, found) if line[:1] not in {"", "#"}]


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
    if file.exists():
        return False
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _place(file, text())
    except OSError as error:
        raise KeyUnusable(
            f"The key file {file} cannot be made ({type(error).__name__}).", hint="Check the rights of its folder."
        ) from None


def _place(file: Path, text: str) -> bool:
    # Owner-only, and under a name that nobody else takes: not another thread, not a process that died with our id.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        # A link and not a rename: of two processes that make the first key at once, one wins and both use it.
        os.link(temporary, file)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink()
    _settle(file.parent)
    return True


def _settle(folder: Path) -> None:
    """A power cut must not take the name of a key that files are sealed with already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
