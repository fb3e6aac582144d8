"""A key pair for a person who has none: the private half is closed with a passphrase that is stored nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyrage
from pyrage import x25519

from export_pipeline.errors import InvalidRequest

#: Whoever has the file can try passphrases for ever, one or two in a second.
MIN_PASSPHRASE = 10


@dataclass(frozen=True, kw_only=True)
class PersonalKey:
    """A key pair.

    Attributes:
        public_key: ``age1…``, for the request.
        sealed_identity: An identity file that `age -d -i` takes, closed with the passphrase (scrypt).
    """

    public_key: str
    sealed_identity: bytes = field(repr=False)


def make(passphrase: str) -> PersonalKey:
    """Make a key pair; only the person's passphrase opens the private half.

    Raises:
        InvalidRequest: The passphrase is too short.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise InvalidRequest(
            f"The passphrase has fewer than {MIN_PASSPHRASE} characters.", hint="Four or five words are a good one."
        )
    identity = x25519.Identity.generate()
    text = f"# public key: {identity.to_public()}\n{identity}\n"
    return PersonalKey(
        public_key=str(identity.to_public()), sealed_identity=pyrage.passphrase.encrypt(text.encode(), passphrase)
    )
