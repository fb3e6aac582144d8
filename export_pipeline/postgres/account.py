"""The account that runs the embedded server when we are root: initdb and postgres refuse to run as root.

Root's folders (``/root``, our own state folder) are closed to that account, and they stay closed. Where it
has to pass through one, the server gets the one capability that lets it pass, by ``setpriv`` of util-linux.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from export_pipeline.errors import ConfigurationError

#: Bits of the capability sets in /proc/self/status, from linux/capability.h.
_CAPABILITIES = {"dac_override": 1, "dac_read_search": 2}


@dataclass(frozen=True, kw_only=True)
class Account:
    """Somebody who is not root."""

    uid: int
    gid: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start a program: what stands before its name, and the ids that Popen changes to."""

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None
    extra_groups: tuple[int, ...] | None = None


def choose(wanted: str | None, existing: Path) -> Account | None:
    """Say who runs the server; None means that we do, because we are not root.

    Args:
        wanted: The account's name from the settings, or None to choose one.
        existing: The data folder, whose owner is preferred when it exists.

    Raises:
        ConfigurationError: The account does not exist, is root, or none can be found.
    """
    if os.geteuid() != 0:
        return None
    if wanted:
        return _named(wanted)
    if existing.is_dir() and (owner := existing.stat()).st_uid != 0:
        return Account(uid=owner.st_uid, gid=owner.st_gid, name=_name(owner.st_uid))
    for name in ("postgres", "nobody"):
        try:
            return _named(name)
        except ConfigurationError:
            continue
    raise ConfigurationError(
        "PostgreSQL does not run as root, and there is no account postgres or nobody.",
        hint="Name an account in EXPORT_PIPELINE_POSTGRES_ACCOUNT, or run as an ordinary user.",
    )


def _named(name: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise ConfigurationError(
            f"The account {name!r} that should run the embedded PostgreSQL does not exist.",
            hint="Set EXPORT_PIPELINE_POSTGRES_ACCOUNT to an account of this machine.",
        ) from None
    if entry.pw_uid == 0:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and the account {name!r} is root.",
            hint="Set EXPORT_PIPELINE_POSTGRES_ACCOUNT to an ordinary account, or leave it unset.",
        )
    return Account(uid=entry.pw_uid, gid=entry.pw_gid, name=name)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def give(tree: Path, account: Account | None) -> None:
    """Make the account the owner of a folder and of all below it; links are changed, not followed."""
    if account is None or tree.lstat().st_uid == account.uid:
        return
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            os.chown(Path(folder, name), account.uid, account.gid, follow_symlinks=False)
    # The top goes last: it tells whether all is done, should we be ended in the middle.
    os.chown(tree, account.uid, account.gid, follow_symlinks=False)


def launch(account: Account | None, program: Path, folders: Iterable[Path]) -> Launch:
    """Say how the account can run `program` and reach `folders`.

    Raises:
        ConfigurationError: It cannot, and this machine has no way to let it pass.
    """
    if account is None:
        return Launch()
    closed = _closed(account, (program.parent, *folders))
    runs = _allows(account, program, 0o5)
    if closed is None and runs:
        return Launch(user=account.uid, group=account.gid, extra_groups=())
    capability = _capability(runs)
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
    if capability is None or setpriv is None:
        raise ConfigurationError(
            f"The account {account.name!r} that runs the embedded server cannot use {closed or program}.",
            hint="Run as an ordinary user instead of root, or set EXPORT_PIPELINE_DATABASE_URL.",
        )
    return Launch(prefix=_setpriv(setpriv, account, capability))


def _setpriv(setpriv: str, account: Account, capability: str) -> tuple[str, ...]:
    return (
        setpriv,
        f"--reuid={account.uid}",
        f"--regid={account.gid}",
        "--clear-groups",
        "--no-new-privs",
        # PostgreSQL asks access(2) about its own file, and that ignores capabilities without this bit.
        # All others are gone anyway after the exec, for the account is not root.
        "--securebits=+no_setuid_fixup",
        f"--inh-caps=+{capability}",
        f"--ambient-caps=+{capability}",
        "--",
    )


def _capability(may_run: bool) -> str | None:
    """The least capability that opens the way; reading alone does not allow to run a private program."""
    ours = _our_capabilities()
    candidates = ("dac_read_search", "dac_override") if may_run else ("dac_override",)
    return next((name for name in candidates if ours >> _CAPABILITIES[name] & 1), None)


def _our_capabilities() -> int:
    """What we hold and may hand on: a container's root often lacks some."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    sets = {name: int(bits, 16) for name, _, bits in (line.partition(":\t") for line in lines) if name[:3] == "Cap"}
    return sets["CapPrm"] & sets["CapBnd"]


def _closed(account: Account, folders: Iterable[Path]) -> Path | None:
    """The first folder, of these and those above them, that the account cannot enter."""
    for folder in folders:
        for step in (*reversed(folder.resolve().parents), folder.resolve()):
            if not _allows(account, step, 0o1):
                return step
    return None


def _allows(account: Account, path: Path, wanted: int) -> bool:
    """Whether the mode bits let the account do `wanted` (4 read, 1 run or enter)."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == account.uid:
        granted = mode >> 6
    elif status.st_gid == account.gid:
        granted = mode >> 3
    else:
        granted = mode
    return granted & wanted == wanted
