"""The age keys: where they come from, and which of them seals. The first identity seals, every one opens.

A key file has the form that `age-keygen` writes. Where a key service is used, each identity in it is wrapped: only the
service opens it, and only for whom it allows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeAlias

from pyrage import IdentityError, ssh, x25519

from export_pipeline.errors import KeyUnusable
from export_pipeline.vault import secret_file

Recipient: TypeAlias = x25519.Recipient | ssh.Recipient

_CREATED = "# created: "
_WRAPPED = "EXPORT-PIPELINE-KMS-1"


@dataclass(frozen=True)
class KeyRing:
    """Identities that open what we sealed; the first one's public half seals.

    Attributes:
        identities: At least one.
        others: Public keys of other people for whom files are sealed too.
    """

    identities: tuple[x25519.Identity, ...]
    others: tuple[Recipient, ...] = ()

    @property
    def recipient(self) -> x25519.Recipient:
        """The public key for new files."""
        return self.identities[0].to_public()

    @property
    def recipients(self) -> list[Recipient]:
        """Every public key that a new file is sealed for."""
        return [self.recipient, *self.others]


@dataclass(frozen=True, kw_only=True)
class KeyFact:
    """What may be told of a key.

    Attributes:
        public_key: Its public half.
        created: When it was made, where the file says so.
        wrapped: Whether a key service must open it.
    """

    public_key: str
    created: datetime | None = None
    wrapped: bool = False


class KeySource(Protocol):
    """Where the installation's keys come from."""

    def ring(self) -> KeyRing:
        """The keys as they are now: cheap to ask, and asked for every file.

        Raises:
            KeyUnusable: There is no usable key: nothing goes on without one.
        """
        ...


class Wrapper(Protocol):
    """A key service that keeps an identity closed; see `key_service`."""

    def wrap(self, identity: str, public_key: str) -> str:
        """Close an identity; the answer is one word of ASCII."""
        ...

    def unwrap(self, wrapped: str, public_key: str) -> str:
        """Open what `wrap` made for the same public key."""
        ...


class KeyFile:
    """A key file, read again when it changed: running processes notice a rotated key.

    Args:
        file: Its path.
        wrapper: Opens wrapped identities; with it, identities in the clear are refused.
    """

    def __init__(self, file: Path, wrapper: Wrapper | None = None) -> None:
        self._file = file
        self._wrapper = wrapper
        self._read: tuple[secret_file.Stamp, KeyRing] | None = None
        self._lock = threading.Lock()

    def ring(self) -> KeyRing:
        """See `KeySource.ring`."""
        with self._lock:
            # Before the content: a file that changes in between is read once more, never once too little.
            stamp = secret_file.stamp(self._file)
            if self._read is None or self._read[0] != stamp:
                self._read = (stamp, load(self._file, self._wrapper))
            return self._read[1]


class EnvironmentKeys:
    """Identities out of a setting: separated by white space or commas, comments as in a key file.

    Args:
        text: The setting's value.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def ring(self) -> KeyRing:
        """See `KeySource.ring`."""
        words = re.sub(r"(?m)^\s*#.*$", "", self._text).replace(",", " ").split()
        return KeyRing(_identities(words, "EXPORT_PIPELINE_KEYS", "Give it the AGE-SECRET-KEY-1… of each identity."))

    def __repr__(self) -> str:
        return "EnvironmentKeys()"


class RunKeys:
    """A key that one run makes for itself and that ends with it: it is written nowhere, so what it sealed for nobody
    else cannot be opened by anybody afterwards.

    Args:
        others: For whom the run seals too.
    """

    def __init__(self, *others: Recipient) -> None:
        self._ring = KeyRing((x25519.Identity.generate(),), others)

    def ring(self) -> KeyRing:
        """See `KeySource.ring`."""
        return self._ring


def load(file: Path, wrapper: Wrapper | None = None) -> KeyRing:
    """Read the key file. Fails closed: there is no way to go on without a key.

    Raises:
        KeyUnusable: The file is absent, unreadable, readable by others, or holds no identity; or it holds one that the
            key service does not open, or one in the clear where a key service is set.
    """
    lines = secret_file.lines(file)
    if wrapper is not None and any(not line.startswith(_WRAPPED) for line in lines):
        raise KeyUnusable(
            f"The key file {file} holds a key in the clear.", hint="Run `export-pipeline keys rotate` to wrap it."
        )
    words = [_opened(file, line, wrapper) for line in lines]
    return KeyRing(_identities(words, f"The key file {file}", "Restore it from the backup."))


def facts(file: Path) -> list[KeyFact]:
    """Tell of each key in a file, the one that seals first. A key service is not asked.

    Raises:
        KeyUnusable: As for `load`.
    """
    return list(_facts(file, secret_file.all_lines(file)))


def create(file: Path, wrapper: Wrapper | None = None) -> bool:
    """Make a key file where there is none, owner-only, whole or not at all.

    Returns:
        Whether one was made.

    Raises:
        KeyUnusable: The folder cannot be written to, or the key service refuses.
    """
    return secret_file.create(file, lambda: _entry(wrapper))


def rotate(file: Path, wrapper: Wrapper | None = None) -> str:
    """Put a new identity in front of those that are there, at once for every process. The old ones go on opening.

    With a key service every identity is wrapped again, by the key that is set now.

    Returns:
        The public key that seals from now on.

    Raises:
        KeyUnusable: The file cannot be read or written, or holds a damaged key; it stays as it was.
    """

    def rotated(lines: list[str]) -> str:
        list(_facts(file, lines))  # a damaged file is mended, not rotated
        kept = [_rewrapped(file, line, wrapper) for line in lines]
        return _entry(wrapper) + "\n".join(kept) + "\n"

    secret_file.change(file, rotated)
    return facts(file)[0].public_key


def _entry(wrapper: Wrapper | None) -> str:
    identity = x25519.Identity.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    line = _line(str(identity), str(identity.to_public()), wrapper)
    return f"{_CREATED}{made}\n# public key: {identity.to_public()}\n{line}\n"


def _line(identity: str, public_key: str, wrapper: Wrapper | None) -> str:
    return f"{_WRAPPED} {public_key} {wrapper.wrap(identity, public_key)}" if wrapper else identity


def _rewrapped(file: Path, line: str, wrapper: Wrapper | None) -> str:
    if wrapper is None or line[:1] in {"", "#"}:
        return line
    [identity] = _identities([_opened(file, line, wrapper)], f"The key file {file}", "Restore it from the backup.")
    return _line(str(identity), str(identity.to_public()), wrapper)


def _opened(file: Path, line: str, wrapper: Wrapper | None) -> str:
    if not line.startswith(_WRAPPED):
        return line
    if wrapper is None:
        raise KeyUnusable(
            f"The key file {file} is wrapped by a key service.", hint="Set EXPORT_PIPELINE_KMS_KEY_ID as it was."
        )
    public_key, wrapped = _parts(file, line)
    opened = wrapper.unwrap(wrapped, public_key)
    if _public(opened) != public_key:
        raise KeyUnusable(f"The key file {file} holds another key than it says.", hint="Restore it from the backup.")
    return opened


def _parts(file: Path, line: str) -> tuple[str, str]:
    match line.split():
        case [_, public_key, wrapped]:
            return public_key, wrapped
    raise KeyUnusable(f"The key file {file} holds a damaged key.", hint="Restore it from the backup.")


def _public(identity: str) -> str:
    try:
        return str(x25519.Identity.from_str(identity).to_public())
    except IdentityError:
        return ""


def _identities(words: Sequence[str], where: str, hint: str) -> tuple[x25519.Identity, ...]:
    try:
        # As age does: every word is a key, or else the text is damaged. To skip one could mean to lose an old key
        # without a word.
        identities = tuple(map(x25519.Identity.from_str, words))
    except IdentityError:
        raise KeyUnusable(f"{where} holds a damaged key.", hint=hint) from None
    if not identities:
        raise KeyUnusable(f"{where} holds no age identity.", hint=hint)
    return identities


def _facts(file: Path, lines: Sequence[str]) -> Iterator[KeyFact]:
    created = None
    for line in lines:
        if line.startswith(_CREATED):
            created = _moment(line.removeprefix(_CREATED))
        if line[:1] in {"", "#"}:
            continue
        wrapped = line.startswith(_WRAPPED)
        public_key = _parts(file, line)[0] if wrapped else _public(line)
        if not public_key:
            raise KeyUnusable(f"The key file {file} holds a damaged key.", hint="Restore it from the backup.")
        yield KeyFact(public_key=public_key, created=created, wrapped=wrapped)
        created = None


def _moment(text: str) -> datetime | None:
    """age-keygen writes the time too; a comment that is none is a comment."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None
