"""The installation's age keys, in the file format of `age-keygen`: the first identity seals, every one opens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pyrage import IdentityError, x25519

from export_pipeline.errors import KeyUnusable

_PREFIX = "AGE-SECRET-KEY-1"


@dataclass(frozen=True)
class KeyRing:
    """Identities that open what we sealed; the first one's public half seals.

    Attributes:
        identities: At least one.
    """

    identities: tuple[x25519.Identity, ...]

    @property
    def recipient(self) -> x25519.Recipient:
        """The public key for new files."""
        return self.identities[0].to_public()


def load(file: Path) -> KeyRing:
    """Read the key file. Fails closed: there is no way to go on without a key.

    Raises:
        KeyUnusable: The file is absent, unreadable, readable by others, or holds no identity.
    """
    try:
        mode = file.stat().st_mode
        lines = file.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise KeyUnusable(
            f"The key file {file} does not exist.", hint="Restore it; `export-pipeline migrate` makes the first one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnusable(f"The key file {file} cannot be read ({type(error).__name__}).") from None
    if mode & 0o077:
        raise KeyUnusable(f"The key file {file} can be read by others.", hint=f"Run `chmod 600 {file}`.")
    try:
        identities = tuple(x25519.Identity.from_str(line.strip()) for line in lines if line.startswith(_PREFIX))
    except IdentityError:
        raise KeyUnusable(f"The key file {file} holds a damaged key.", hint="Restore it from the backup.") from None
    if not identities:
        raise KeyUnusable(f"The key file {file} holds no age identity.", hint="Restore it from the backup.")
    return KeyRing(identities)


def create(file: Path) -> bool:
    """Make a key file where there is none, owner-only, whole or not at all.

    Returns:
        Whether one was made.
    """
    if file.exists():
        return False
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = x25519.Identity.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(f"# created: {made}\n# public key: {identity.to_public()}\n{identity}\n")
        out.flush()
        os.fsync(out.fileno())
    try:
        # A link and not a rename: of two processes that make the first key at once, one wins and both use it.
        os.link(temporary, file)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True
