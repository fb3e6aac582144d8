"""The key that signs manifests: Ed25519. The first line of its file signs; older public halves stay listed.

What is signed is the statement as canonical JSON: keys sorted, no white space, UTF-8. For what a manifest holds
(texts, whole numbers, null, arrays, objects with ASCII names) this is what RFC 8785 prescribes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from export_pipeline.errors import ConfigurationError, FileNotVerified, KeyUnusable
from export_pipeline.vault import secret_file

ALGORITHM = "Ed25519"
#: The member of a manifest that holds the signature, and is not signed itself.
SIGNATURE = "signature"

_PRIVATE = "EXPORT-PIPELINE-SIGNING-KEY-1"
_PUBLIC = "ed25519:"
_CREATED = "# created: "


@dataclass(frozen=True, kw_only=True)
class SignerFact:
    """What may be told of a signing key.

    Attributes:
        public_key: As people give it to each other: ``ed25519:`` and 32 bytes in base64.
        key_id: Names it in a manifest.
        signs: Whether it signs new files.
        created: When it was made.
    """

    public_key: str
    key_id: str
    signs: bool
    created: datetime | None


class Signer:
    """Signs with the first key of a file, which is read for every signature: it may have been rotated.

    Args:
        file: The key file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def require(self) -> None:
        """Make sure that there is a key before there is something to sign.

        Raises:
            KeyUnusable: The key file is absent, readable by others, or damaged.
        """
        _private(self._file)

    def sign(self, statement: Mapping[str, Any]) -> dict[str, str]:
        """Sign a statement.

        Returns:
            What a manifest says of its signature.

        Raises:
            KeyUnusable: As for `require`.
        """
        private = _private(self._file)
        public = private.public_key().public_bytes_raw()
        return {
            "algorithm": ALGORITHM,
            "key_id": _key_id(public),
            "public_key": _shown(public),
            "value": base64.b64encode(private.sign(canonical(statement))).decode(),
        }


def create(file: Path) -> bool:
    """Make the signing key where there is none; see `keys.create`."""
    return secret_file.create(file, _entry)


def rotate(file: Path) -> str:
    """Make a new key that signs. Of the old one only the public half is kept: nobody can sign with it any more.

    Returns:
        The new public key.

    Raises:
        KeyUnusable: The file cannot be read or written, or is damaged; it stays as it was.
    """

    def rotated(lines: list[str]) -> str:
        retired = [
            f"{_CREATED}{fact.created.isoformat()}\n{fact.public_key}\n" if fact.created else f"{fact.public_key}\n"
            for fact in _facts(file, lines)
        ]
        return _entry() + "".join(retired)

    secret_file.change(file, rotated)
    return facts(file)[0].public_key


def facts(file: Path) -> list[SignerFact]:
    """Tell of each key, the one that signs first.

    Raises:
        KeyUnusable: The file is absent, readable by others, or damaged.
    """
    return list(_facts(file, secret_file.all_lines(file)))


def check(statement: Mapping[str, Any], signature: Any, public_keys: Sequence[str] = ()) -> SignerFact:
    """Check a signature.

    Args:
        statement: What it is about.
        signature: As `Signer.sign` made it.
        public_keys: Keys to trust; without any, the one that the signature names is used, which shows only that
            nothing was changed since.

    Returns:
        Who signed.

    Raises:
        FileNotVerified: It is no signature of this statement, or not by a key to trust.
        ConfigurationError: One of `public_keys` is none.
    """
    trusted = {_key_id(raw): raw for raw in map(_given, public_keys)}
    try:
        named = _raw(signature["public_key"])
        value = base64.b64decode(signature["value"], validate=True)
        known = signature["algorithm"] == ALGORITHM and signature["key_id"] == _key_id(named)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FileNotVerified("The signature is not one that this program makes.") from None
    if not known:
        raise FileNotVerified("The signature is not one that this program makes.")
    if trusted and _key_id(named) not in trusted:
        raise FileNotVerified(f"The file is signed by another key ({_key_id(named)}) than the one you gave.")
    try:
        Ed25519PublicKey.from_public_bytes(named).verify(value, canonical(statement))
    except (InvalidSignature, ValueError):
        raise FileNotVerified("The signature is wrong: the manifest was changed after it was signed.") from None
    return SignerFact(public_key=_shown(named), key_id=_key_id(named), signs=bool(trusted), created=None)


def canonical(statement: Mapping[str, Any]) -> bytes:
    """The bytes that are signed."""
    text = json.dumps(statement, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode(errors="surrogatepass")


def _entry() -> str:
    private = Ed25519PrivateKey.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    public = _shown(private.public_key().public_bytes_raw())
    return f"{_CREATED}{made}\n# public key: {public}\n{_PRIVATE}{private.private_bytes_raw().hex()}\n"


def _private(file: Path) -> Ed25519PrivateKey:
    lines = secret_file.lines(file)
    if not lines or not lines[0].startswith(_PRIVATE):
        raise _damaged(file)
    return _signer(file, lines[0])


def _signer(file: Path, line: str) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(line.removeprefix(_PRIVATE)))
    except ValueError:
        raise _damaged(file) from None


def _facts(file: Path, lines: Sequence[str]) -> Iterator[SignerFact]:
    created, first = None, True
    for line in lines:
        if line.startswith(_CREATED):
            created = _moment(line.removeprefix(_CREATED))
        if line[:1] in {"", "#"}:
            continue
        if first != line.startswith(_PRIVATE):
            raise _damaged(file)  # one key signs, and it stands first
        raw = _signer(file, line).public_key().public_bytes_raw() if first else _kept(file, line)
        yield SignerFact(public_key=_shown(raw), key_id=_key_id(raw), signs=first, created=created)
        created, first = None, False
    if first:
        raise _damaged(file)


def _kept(file: Path, line: str) -> bytes:
    try:
        return _raw(line)
    except ValueError:
        raise _damaged(file) from None


def _given(text: str) -> bytes:
    try:
        return _raw(text.strip())
    except ValueError:
        raise ConfigurationError(
            "This is no public signing key.", hint="It begins with `ed25519:`; `export-pipeline keys list` shows it."
        ) from None


def _raw(public_key: str) -> bytes:
    try:
        raw = base64.b64decode(public_key.removeprefix(_PUBLIC), validate=True)
    except binascii.Error:
        raw = b""
    if not public_key.startswith(_PUBLIC) or len(raw) != 32:
        raise ValueError("no public key")
    return raw


def _shown(raw: bytes) -> str:
    return _PUBLIC + base64.b64encode(raw).decode()


def _key_id(raw: bytes) -> str:
    return sha256(raw).hexdigest()[:16]


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _damaged(file: Path) -> KeyUnusable:
    return KeyUnusable(f"The key file {file} holds no signing key.", hint="Restore it from the backup.")
