"""The installation's age keys, in the file format of `age-keygen`: the first identity seals, every one opens."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pyrage import IdentityError, x25519

from export_pipeline.errors import KeyUnusable


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
        # As age does: a line that is neither blank nor a comment is a key, or else the file is damaged. To skip it
        # could mean to lose an old key without a word.
        identities = tuple(
            x25519.Identity.from_str(line) for line in map(str.strip, lines) if line[:1] not in {"", "#"}
        )
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
    if file.exists():
        return False
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _place(file, _new_identity())
    except OSError as error:
        raise KeyUnusable(
            f"The key file {file} cannot be made ({type(error).__name__}).", hint="Check the rights of its folder."
        ) from None


def _new_identity() -> str:
    identity = x25519.Identity.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return f"# created: {made}\n# public key: {identity.to_public()}\n{identity}\n"


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
