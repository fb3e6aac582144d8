"""What a process prints, kept within bounds also while it goes on printing.

A log is opened to append to, so when it is emptied under the process, the next line stands at its beginning: no hole is
left, and nobody has to be started again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

#: Bytes. A log that is larger is emptied; as much of its end is kept beside it.
LIMIT = 10_000_000


def open_log(log: Path) -> BinaryIO:
    """Open a log to append to, made for its owner only when absent."""
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def bound(log: Path) -> None:
    """Empty a log that has become too large, and keep its end as NAME.1 in the place of an older one.

    What is written after the end was read and before the log is emptied is lost: some lines, once in ten million bytes.
    Whatever the disk refuses is tried again the next time. On a full one the end may be lost too, but not the bound.
    """
    with contextlib.suppress(OSError), log.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size > LIMIT:
            try:
                file.seek(size - LIMIT)
                _keep(file.read(LIMIT), log.with_name(f"{log.name}.1"))
            finally:
                file.truncate(0)


def _keep(end: bytes, older: Path) -> None:
    older.unlink(missing_ok=True)  # makes room first
    with open_log(older) as file:
        file.write(end)
