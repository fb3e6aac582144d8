"""Whose key opens the file of a request: given, or made here and closed with a passphrase."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import typer

from export_pipeline.cli.output import errors
from export_pipeline.errors import ConfigurationError, InvalidRequest
from export_pipeline.vault import personal_key, recipients

_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class RecipientKey:
    """The key for a request.

    Attributes:
        public_key: None means that the installation seals the file for itself.
        file: Where the private half goes that was made here.
        sealed_identity: That private half, closed with the passphrase.
    """

    public_key: str | None = None
    file: Path | None = None
    sealed_identity: bytes = field(default=b"", repr=False)


def chosen(recipient: str | None, *, passphrase: bool, key_out: Path | None) -> RecipientKey:
    """Take the key that was given, or ask for a passphrase and make one.

    Raises:
        ConfigurationError: The options contradict each other, or a file cannot be read.
        InvalidRequest: The public key, or the passphrase, is not usable.
    """
    if recipient is not None and passphrase:
        raise ConfigurationError("--recipient and --passphrase exclude each other.")
    if key_out is not None and not passphrase:
        raise ConfigurationError("--key-out goes with --passphrase.")
    if recipient is not None:
        text = _only_line(Path(recipient[1:])) if recipient.startswith("@") else recipient
        return RecipientKey(public_key=recipients.canonical(text))
    return _made(key_out) if passphrase else RecipientKey()


@contextmanager
def on_disk(key: RecipientKey) -> Iterator[None]:
    """Write the private half before the request is made, so that it cannot be lost, and take it away if none is made.

    Raises:
        ConfigurationError: The file is there already, or cannot be written.
    """
    if key.file is None:
        yield
        return
    try:
        descriptor = os.open(key.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(key.sealed_identity)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise ConfigurationError(f"{key.file} cannot be made: {error.strerror}.") from None
    try:
        yield
    except BaseException:
        key.file.unlink(missing_ok=True)
        raise
    errors.print(f"The key is {key.file}. Keep it and the passphrase: without both nobody can open the file.")


def _made(key_out: Path | None) -> RecipientKey:
    passphrase = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    made = personal_key.make(passphrase)
    file = key_out or Path(f"export-key-{datetime.now(UTC):%Y%m%dT%H%M%S}.age")
    return RecipientKey(public_key=made.public_key, file=file, sealed_identity=made.sealed_identity)


def _only_line(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            text = opened.read(_MAX_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    lines = [line for line in map(str.strip, text.splitlines()) if line[:1] not in {"", "#"}]
    if len(lines) != 1:
        # The first line of a private key would be refused too, but with less to learn from it.
        if "PRIVATE KEY" in text or "SECRET-KEY" in text:
            return recipients.canonical(text)
        raise InvalidRequest("The file of the recipient must hold one public key.")
    return lines[0]
