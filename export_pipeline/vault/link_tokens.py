"""What stands in a download link: which link, until when, for which file, and a code that only we can make.

A token is 72 bytes, written in 96 letters of base64url: 16 of the link's id, 8 of its expiry (seconds since 1970),
16 that bind it to a file, and 32 of HMAC-SHA256 over all of these. Three divides 72: a token has one spelling only.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from export_pipeline.errors import KeyUnusable, LinkRefused
from export_pipeline.vault import secret_file

_PREFIX = "EXPORT-PIPELINE-LINK-KEY-1"
_PURPOSE = b"export-pipeline link 1\n"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{96}")


@dataclass(frozen=True, kw_only=True)
class LinkClaim:
    """What a token says.

    Attributes:
        link_id: 32 hex digits.
        expires_at: A whole second, in UTC.
        binding: Of the file, see `binding`.
    """

    link_id: str
    expires_at: datetime
    binding: bytes


def create(file: Path) -> bool:
    """Make the key where there is none; see `keys.create`."""
    return secret_file.create(file, lambda: f"{_PREFIX}{secrets.token_hex(32)}\n")


def require(file: Path) -> None:
    """Make sure that there is a key before there is a link to sign.

    Raises:
        KeyUnusable: The file is absent, readable by others, or damaged.
    """
    _keys(file)


def binding(*names: str) -> bytes:
    """Condense what names a file, so that a link to it opens no other."""
    return sha256(b"".join(b"%d:%b" % (len(name.encode()), name.encode()) for name in names)).digest()[:16]


def sign(file: Path, claim: LinkClaim) -> str:
    """Write a token.

    Args:
        file: Holds the keys; the first one signs.
        claim: What it says.

    Raises:
        KeyUnusable: The file is absent, readable by others, or damaged.
    """
    expires = int(claim.expires_at.timestamp()).to_bytes(8, "big")
    body = bytes.fromhex(claim.link_id) + expires + claim.binding
    return base64.urlsafe_b64encode(body + _code(_keys(file)[0], body)).decode()


def read(file: Path, token: str) -> LinkClaim:
    """Read a token that one of our keys signed. Whether it has expired is the caller's question.

    Raises:
        LinkRefused: It is no token of ours, or it was altered.
        KeyUnusable: The file is absent, readable by others, or damaged.
    """
    raw = base64.urlsafe_b64decode(token) if _TOKEN.fullmatch(token) else bytes(72)
    body, code = raw[:40], raw[40:]
    if not any(hmac.compare_digest(_code(key, body), code) for key in _keys(file)):
        raise LinkRefused("This is not one of our download links, or it was altered.", hint="Ask for a new link.")
    expires_at = datetime.fromtimestamp(int.from_bytes(body[16:24], "big"), UTC)
    return LinkClaim(link_id=body[:16].hex(), expires_at=expires_at, binding=body[24:])


def _code(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, _PURPOSE + body, sha256).digest()


def _keys(file: Path) -> list[bytes]:
    """Read afresh each time: a line that is taken out of the file ends its links at once."""
    lines = secret_file.lines(file)
    try:
        keys = [bytes.fromhex(line.removeprefix(_PREFIX)) for line in lines]
    except ValueError:
        keys = []
    if not keys or any(len(key) != 32 for key in keys):
        raise KeyUnusable(
            f"The key file {file} holds no link key.",
            hint="Restore it from the backup, or remove it and run `export-pipeline migrate`: old links then end.",
        )
    return keys
