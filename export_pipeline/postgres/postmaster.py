"""The server process of one data folder: which one it is, whether it lives, how it ends.

The number in ``postmaster.pid`` alone proves nothing: after a crash or a reboot it can belong to anybody. So
each process is asked what it runs before it is believed, and above all before a signal goes to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from export_pipeline.errors import DatabaseUnavailable

_PROC = Path("/proc")
_HAS_PROC = (_PROC / "self/stat").exists()

#: Seconds for a fast shutdown (clients are cut, all is written), then for one that writes nothing.
_FAST_S = 30.0
_IMMEDIATE_S = 10.0


def find(data: Path) -> int | None:
    """The process id of the live server of this data folder, or None."""
    pid = recorded(data)
    return pid if pid is not None and _serves(pid, data) else None


def recorded(data: Path) -> int | None:
    """The process id that the data folder names, dead or alive or somebody else's."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    return pid if 0 < pid < 2**31 else None


def stop(data: Path) -> None:
    """End the server of this data folder cleanly and wait until it is gone; harmless without one.

    Raises:
        DatabaseUnavailable: It does not end.
    """
    for number, patience in ((signal.SIGINT, _FAST_S), (signal.SIGQUIT, _IMMEDIATE_S)):
        pid = find(data)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if _wait_gone(pid, patience):
            return
    raise DatabaseUnavailable(
        f"The embedded PostgreSQL (process {pid}) does not stop.",
        hint="Look for what blocks it, such as a full or hung disk.",
    )


def end_leftovers(data: Path, *, by_force: bool) -> None:
    """End the children that a killed server left behind: they keep a new one from starting.

    They end by themselves when they notice, but a long statement can take its time to notice. Only where
    the system shows processes under /proc; never while a server of this folder lives.

    Args:
        data: The data folder.
        by_force: SIGKILL instead of SIGTERM. Safe: the next start recovers from the log as after a crash.
    """
    if not _HAS_PROC:
        return
    family = {pid: _arguments(pid)[0] for pid in _pids() if _works_in(pid, data)}
    if any(Path(word).name == "postgres" for word in family.values()):
        return  # a server whose postmaster.pid was lost
    for pid in (pid for pid, word in family.items() if word.startswith("postgres:")):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL if by_force else signal.SIGTERM)


def _wait_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Whether the process exists and has not ended; one that waits for its parent to look (zombie) has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _state(pid) not in {"", "Z", "X"}


def _state(pid: int) -> str:
    if not _HAS_PROC:
        return _ps(pid, "stat")[:1]
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _serves(pid: int, data: Path) -> bool:
    """Whether it is a server (not one of its children) of this folder, also after the folder was moved."""
    if not is_alive(pid):
        return False
    if not _HAS_PROC:
        command = _ps(pid, "command")
        return "postgres -D " in command and str(data) in command
    arguments = _arguments(pid)
    if Path(arguments[0]).name != "postgres":
        return False
    return str(data) in arguments or _works_in(pid, data)


def _ps(pid: int, column: str) -> str:
    command = ["/bin/ps", "-ww", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _arguments(pid: int) -> list[str]:
    """The command line; one empty word when it cannot be read. A child's is its title: ``postgres: …``."""
    try:
        return os.fsdecode((_PROC / str(pid) / "cmdline").read_bytes()).split("\0")
    except OSError:
        return [""]


def _works_in(pid: int, data: Path) -> bool:
    """Whether its working directory, which is the data folder for each process of a server, is this one."""
    try:
        return (_PROC / str(pid) / "cwd").samefile(data)
    except OSError:
        return False


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
