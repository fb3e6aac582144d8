"""The keys of our own tokens: Ed25519, one a line. The first signs, every one verifies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export_pipeline.errors import KeyUnusable
from export_pipeline.vault import secret_file

_PREFIX = "EXPORT-PIPELINE-TOKEN-KEY-1"


@dataclass(frozen=True, kw_only=True)
class TokenKey:
    """One key.

    Attributes:
        key_id: Names it in tokens.
        private: Signs; its public half verifies.
    """

    key_id: str
    private: Ed25519PrivateKey = field(repr=False)


def create(file: Path) -> bool:
    """Make the first key where there is none; see `keys.create`."""
    return secret_file.create(file, lambda: f"{_PREFIX}{Ed25519PrivateKey.generate().private_bytes_raw().hex()}\n")


def read(file: Path) -> Sequence[TokenKey]:
    """Read the keys, the one that signs first.

    Raises:
        KeyUnusable: The file is absent, readable by others, or damaged.
    """
    try:
        keys = [_key(line) for line in secret_file.lines(file)]
    except ValueError:
        keys = []
    if not keys:
        raise KeyUnusable(
            f"The key file {file} holds no token key.",
            hint="Remove it and run `export-pipeline migrate`; whoever is signed in must sign in again.",
        )
    return keys


def _key(line: str) -> TokenKey:
    if not line.startswith(_PREFIX):
        raise ValueError("no token key")
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(line.removeprefix(_PREFIX)))
    public = private.public_key().public_bytes_raw()
    return TokenKey(key_id=hashlib.sha256(public).hexdigest()[:16], private=private)
