"""Public keys of people: what is refused, and that what is taken can be sealed for."""

from __future__ import annotations

import base64
import itertools
import shutil
import subprocess
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pyrage import ssh, x25519

from export_pipeline.errors import InvalidRequest
from export_pipeline.vault import personal_key, recipients

AGE = str(x25519.Identity.generate().to_public())
#: age1… of the points 0 and 1: everybody would compute the same secret.
WEAK = [
    "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
    "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
]


def ssh_line(point: bytes) -> str:
    """An Ed25519 key whose point is this."""
    fields = (b"ssh-ed25519", point[:32])
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields) + point[32:]
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


#: The same on the curve of SSH keys: the library takes them, and what it seals for them opens for anybody.
WEAK_SSH = [
    ssh_line((1).to_bytes(32, "little")),
    ssh_line((2**255 - 20).to_bytes(32, "little")),
    ssh_line(bytes(32)),
    ssh_line(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")),
    ssh_line(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")),
    # Something behind the point.
    ssh_line(bytes(32) + ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()),
]


def ssh_pair(private: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> tuple[bytes, str]:
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), public


ED25519 = ssh_pair(ed25519.Ed25519PrivateKey.generate())
RSA = ssh_pair(rsa.generate_private_key(65537, 2048))


@pytest.mark.parametrize("private, public", [ED25519, RSA], ids=["ed25519", "rsa"])
def test_ssh_keys_are_taken_without_their_comment(private: bytes, public: str) -> None:
    assert recipients.canonical(f"  {public} ada@example.org laptop\n") == public
    sealed = pyrage.encrypt(b"text", [recipients.parse(public)])
    assert pyrage.decrypt(sealed, [ssh.Identity.from_buffer(private)]) == b"text"


def test_age_keys_are_taken() -> None:
    assert recipients.canonical(f"\n{AGE} \n") == AGE


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "age1",
        AGE[:-1],
        AGE[:-1] + ("q" if AGE[-1] != "q" else "p"),
        AGE.upper(),
        AGE + AGE[4:],
        f"{AGE}\n{AGE}",
        f"{AGE} {AGE}",
        AGE + "\0",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        ED25519[1][:-4],
        f"{ED25519[1]}\n{ED25519[1]}",
        f'command="sh" {ED25519[1]}',
        RSA[1].replace("ssh-rsa ", "ssh-ed25519 "),
        ssh_pair(ec.generate_private_key(ec.SECP256R1()))[1],
        ssh_pair(rsa.generate_private_key(65537, 1024))[1],
        "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t",
        "x" * 100_000,
        *WEAK,
        *WEAK_SSH,
    ],
    ids=itertools.count(),
)
def test_what_is_no_public_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not a public key that a file can be sealed for") as caught:
        recipients.canonical(text)
    assert len(text) < 40 or text[12:40] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [str(x25519.Identity.generate()), ED25519[0].decode(), f"# mine\n{x25519.Identity.generate()}"],
    ids=["age", "ssh", "after a comment"],
)
def test_a_private_key_is_refused_as_such(text: str) -> None:
    with pytest.raises(InvalidRequest, match="private key: give its public half") as caught:
        recipients.canonical(text)
    assert text[20:40] not in str(caught.value)


def test_a_passphrase_must_have_some_length() -> None:
    with pytest.raises(InvalidRequest, match="fewer than 10"):
        personal_key.make("too short")


def test_only_the_passphrase_opens_a_personal_key() -> None:
    made = personal_key.make("four words are good")
    assert "AGE-SECRET" not in f"{made}"
    with pytest.raises(pyrage.DecryptError):
        pyrage.passphrase.decrypt(made.sealed_identity, "four words are bad")
    opened = pyrage.passphrase.decrypt(made.sealed_identity, "four words are good").decode()
    assert str(x25519.Identity.from_str(opened.splitlines()[-1]).to_public()) == made.public_key
    assert recipients.canonical(made.public_key) == made.public_key


@pytest.mark.skipif(not shutil.which("age-keygen"), reason="the age command is not installed")
def test_keys_of_age_keygen_are_taken(tmp_path: Path) -> None:
    subprocess.run(["age-keygen", "-o", tmp_path / "key"], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", tmp_path / "key"], check=True, capture_output=True, text=True).stdout
    assert recipients.canonical(public) == public.strip()
