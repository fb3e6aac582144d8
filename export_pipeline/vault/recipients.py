"""Public keys of people: a file that is sealed for one opens with its private half and with nothing that we have."""

from __future__ import annotations

import re

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pyrage import RecipientError, ssh, x25519

from export_pipeline.errors import InvalidRequest
from export_pipeline.vault.keys import Recipient

_AGE = re.compile(r"age1[ac-hj-np-z02-9]{58}")
_SSH = re.compile(r"(ssh-(?:ed25519|rsa) [A-Za-z0-9+/]+={0,3})(?:[ \t][^\r\n]*)?")
#: An RSA key of 16384 bits has fewer characters.
_MAX_LENGTH = 4096
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def canonical(text: str) -> str:
    """Check a public key and return it as it is stored: without the comment, which often holds an address.

    Args:
        text: ``age1…``, ``ssh-ed25519 …`` or ``ssh-rsa …``.

    Raises:
        InvalidRequest: It is none of these, or none that a file can be sealed for. Its text is not repeated.
    """
    stripped = text.strip()
    if "PRIVATE KEY" in stripped.upper() or "SECRET-KEY" in stripped.upper():
        raise InvalidRequest(
            "The recipient is a private key: give its public half, and keep this one to yourself.",
            hint="`age-keygen -y FILE` shows the public half.",
        )
    if len(stripped) > _MAX_LENGTH:
        raise _refused("it is too long")
    if not (_AGE.fullmatch(stripped) or _SSH.fullmatch(stripped)):
        raise _refused("it has another form")
    found = _SSH.fullmatch(stripped)
    key = found[1] if found else stripped
    _checked(key)
    return key


def parse(key: str) -> Recipient:
    """Turn a public key into what a file can be sealed for.

    Raises:
        InvalidRequest: As for `canonical`.
    """
    return _checked(canonical(key))


def _checked(key: str) -> Recipient:
    try:
        if key.startswith("ssh-"):
            return ssh.Recipient.from_str(key)
        recipient = x25519.Recipient.from_str(key)
    except RecipientError:
        raise _refused("its checksum, length or kind is wrong") from None
    try:
        # Points of small order give everybody the same secret; the age library ends the whole process at them.
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(_point(key)))
    except ValueError:
        raise _refused("nothing can be kept secret with it") from None
    return recipient


def _point(key: str) -> bytes:
    """The 32 bytes inside ``age1…``, whose checksum has been verified."""
    bits = "".join(f"{_BECH32.index(letter):05b}" for letter in key.removeprefix("age1")[:-6])
    return bytes(int(bits[at : at + 8], 2) for at in range(0, 256, 8))


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The recipient is not a public key that a file can be sealed for: {why}.",
        hint="Give `age1…` from age-keygen, or the line of an ssh-ed25519 or ssh-rsa public key.",
    )
