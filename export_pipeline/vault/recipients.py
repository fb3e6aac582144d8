"""Public keys of people: a file that is sealed for one opens with its private half and with nothing that we have."""

from __future__ import annotations

import base64
import re

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pyrage import RecipientError, ssh, x25519

from export_pipeline.errors import InvalidRequest
from export_pipeline.vault.keys import Recipient

_AGE = re.compile(r"age1[ac-hj-np-z02-9]{58}")
_SSH = re.compile(r"(ssh-(?:ed25519|rsa) [A-Za-z0-9+/]+={0,3})(?:[ \t][^\r\n]*)?")
#: An RSA key of 16384 bits has fewer characters.
_MAX_LENGTH = 4096
#: Bytes before the point of an Ed25519 key: the name of its kind, and two lengths.
_SSH_HEAD = 4 + len("ssh-ed25519") + 4
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
        recipient = ssh.Recipient.from_str(key) if key.startswith("ssh-") else x25519.Recipient.from_str(key)
    except RecipientError:
        raise _refused("its checksum, length or kind is wrong") from None
    if key.startswith("ssh-rsa"):
        return recipient
    try:
        # Points of small order give everybody the same secret. The age library ends the whole process at those of age
        # keys, and seals for those of SSH keys what anybody can open.
        point = _ssh_point(key) if key.startswith("ssh-") else _point(key)
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:
        raise _refused("nothing can be kept secret with it") from None
    return recipient


def _point(key: str) -> bytes:
    """The 32 bytes inside ``age1…``, whose checksum has been verified."""
    bits = "".join(f"{_BECH32.index(letter):05b}" for letter in key.removeprefix("age1")[:-6])
    return bytes(int(bits[at : at + 8], 2) for at in range(0, 256, 8))


def _ssh_point(key: str) -> bytes:
    """The point of an Ed25519 key as X25519 takes it, which is how age uses such a key (RFC 7748, section 4.1).

    Raises:
        ValueError: Something else stands in the key, or its point has no such form.
    """
    point = base64.b64decode(key.split()[1])[_SSH_HEAD:]
    if len(point) != 32:
        raise ValueError("not one point")
    prime = 2**255 - 19
    y = int.from_bytes(point, "little") % 2**255
    return ((1 + y) * pow(1 - y, -1, prime) % prime).to_bytes(32, "little")


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The recipient is not a public key that a file can be sealed for: {why}.",
        hint="Give `age1…` from age-keygen, or the line of an ssh-ed25519 or ssh-rsa public key.",
    )
