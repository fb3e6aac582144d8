"""The secret behind hashed columns. What is sent to the source is derived from it; it never leaves this machine."""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256
from pathlib import Path

from export_pipeline.errors import KeyUnusable
from export_pipeline.vault import secret_file

_PREFIX = "EXPORT-PIPELINE-PSEUDONYM-KEY-1"


def create(file: Path) -> bool:
    """Make the secret where there is none; see `keys.create`."""
    return secret_file.create(file, lambda: f"{_PREFIX}{secrets.token_hex(32)}\n")


def derive(file: Path, purpose: str) -> bytes:
    """Derive the 32-byte key of one purpose.

    Args:
        file: Holds the secret.
        purpose: The export's request id, or a constant for the whole installation.

    Raises:
        KeyUnusable: The file is absent, readable by others, or damaged.
    """
    lines = secret_file.lines(file)
    try:
        secret = bytes.fromhex(lines[0].removeprefix(_PREFIX))
    except (IndexError, ValueError):
        secret = b""
    if len(secret) != 32:
        raise KeyUnusable(f"The key file {file} holds no pseudonym key.", hint="Restore it from the backup.")
    return hmac.new(secret, purpose.encode(), sha256).digest()
