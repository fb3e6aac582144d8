"""The installation's age keys, in the file format of `age-keygen`: the first identity seals, every one opens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pyrage import IdentityError, x25519

from export_pipeline.errors import KeyUnusable
from export_pipeline.vault import secret_file


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
    lines = secret_file.lines(file)
    try:
        # As age does: every line is a key, or else the file is damaged. To skip one could mean to lose an old key
        # without a word.
        identities = tuple(map(x25519.Identity.from_str, lines))
    except IdentityError:
        raise KeyUnusable(f"The key file {file} holds a damaged key.", hint="Restore it from the backup.") from None
    if not identities:
        raise KeyUnusable(f"The key file {file} holds no age identity.", hint="Restore it from the backup.")
    return KeyRing(identities)


def create(file: Path) -> bool:
    """Make a key file where there is none, owner-only, whole or not at all.

    Returns:
        Whether one was made.

    Raises:
        KeyUnusable: The folder cannot be written to.
    """
    return secret_file.create(file, _new_identity)


def _new_identity() -> str:
    identity = x25519.Identity.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return f"# created: {made}\n# public key: {identity.to_public()}\n{identity}\n"
