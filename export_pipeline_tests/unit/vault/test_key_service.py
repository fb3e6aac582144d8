"""Identities that KMS keeps closed. moto's KMS enforces the encryption context, as AWS does."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from pyrage import x25519

from export_pipeline.errors import KeyServiceUnavailable, KeyUnusable
from export_pipeline.vault import keys
from export_pipeline.vault.key_service import AwsKms, _context
from export_pipeline.vault.store import Vault

# boto3 uses a call that Python 3.12 and newer deprecate; it is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@pytest.fixture(scope="module")
def region() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as environment:
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
            environment.setenv(f"AWS_{name}", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        yield environment


@pytest.fixture(scope="module")
def key_id(region: pytest.MonkeyPatch) -> Iterator[str]:
    """Once: to start it costs seconds."""
    with mock_aws():
        yield boto3.client("kms").create_key()["KeyMetadata"]["KeyId"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "age.txt"


def test_a_service_that_does_not_answer_is_tried_again_later(
    file: Path, region: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(KeyServiceUnavailable, match="cannot be asked") as caught:
        keys.create(file, AwsKms("any"))
    assert caught.value.retryable
    assert str(port) not in str(caught.value)


def test_a_wrapped_file_shows_only_public_keys(file: Path, key_id: str) -> None:
    kms = AwsKms(key_id)
    assert keys.create(file, kms)
    assert "AGE-SECRET-KEY" not in file.read_text()
    ring = keys.load(file, kms)
    assert keys.facts(file)[0].public_key == str(ring.recipient)
    assert keys.facts(file)[0].wrapped


def test_it_seals_and_opens(file: Path, key_id: str, tmp_path: Path) -> None:
    kms = AwsKms(key_id)
    keys.create(file, kms)
    vault = Vault((tmp_path / "store").as_uri(), keys.KeyFile(file, kms))
    vault.store("a", [b"text"])
    keys.rotate(file, kms)
    vault.store("b", [b"more"])
    assert [b"".join(vault.open(name)) for name in ("a", "b")] == [b"text", b"more"]


def test_kms_is_asked_only_when_the_file_changed(file: Path, key_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kms, asked = AwsKms(key_id), []
    keys.create(file, kms)
    monkeypatch.setattr(AwsKms, "unwrap", lambda self, *call, own=AwsKms.unwrap: asked.append(1) or own(self, *call))
    source = keys.KeyFile(file, kms)
    assert [source.ring() for _ in range(5)]
    assert len(asked) == 1
    keys.rotate(file, kms)
    asked.clear()
    source.ring()
    assert len(asked) == 2


def test_rotation_wraps_what_was_in_the_clear(file: Path, key_id: str) -> None:
    keys.create(file)
    [old] = keys.load(file).identities
    kms = AwsKms(key_id)
    with pytest.raises(KeyUnusable, match=r"in the clear\. Run `export-pipeline keys rotate`"):
        keys.load(file, kms)
    keys.rotate(file, kms)
    assert "AGE-SECRET-KEY" not in file.read_text()
    assert str(keys.load(file, kms).identities[1]) == str(old)


def test_rotation_moves_to_another_key_of_kms(file: Path, key_id: str) -> None:
    keys.create(file, AwsKms(key_id))
    other = boto3.client("kms").create_key()["KeyMetadata"]
    keys.rotate(file, AwsKms(other["KeyId"]))
    wrapped = [base64.b64decode(line.split()[-1]) for line in file.read_text().splitlines() if line[:1] != "#"]
    used = {
        boto3.client("kms").decrypt(CiphertextBlob=blob, EncryptionContext=_context(fact.public_key))["KeyId"]
        for blob, fact in zip(wrapped, keys.facts(file), strict=True)
    }
    assert used == {other["Arn"]}


def test_a_wrapped_file_needs_the_service(file: Path, key_id: str) -> None:
    keys.create(file, AwsKms(key_id))
    with pytest.raises(KeyUnusable, match=r"wrapped by a key service\. Set EXPORT_PIPELINE_KMS_KEY_ID"):
        keys.load(file)


def test_wrapped_keys_cannot_be_exchanged(file: Path, key_id: str) -> None:
    """The context binds each to its public key: KMS itself refuses."""
    kms = AwsKms(key_id)
    keys.create(file, kms)
    other = str(x25519.Identity.generate().to_public())
    own = keys.facts(file)[0].public_key
    file.write_text(file.read_text().replace(own, other))
    with pytest.raises(KeyUnusable, match=r"refuses \(InvalidCiphertextException\).*restore the key file"):
        keys.load(file, kms)


def test_another_identity_under_the_name_of_a_key_is_refused(file: Path, key_id: str) -> None:
    kms = AwsKms(key_id)
    public_key = str(x25519.Identity.generate().to_public())
    other = str(x25519.Identity.generate())
    file.write_text(f"EXPORT-PIPELINE-KMS-1 {public_key} {kms.wrap(other, public_key)}\n")
    file.chmod(0o600)
    with pytest.raises(KeyUnusable, match="another key than it says"):
        keys.load(file, kms)


@pytest.mark.parametrize("rest", ["", " age1x", " age1x not-base64!", " age1x QUJD more"])
def test_a_damaged_line_is_refused(file: Path, key_id: str, rest: str) -> None:
    file.write_text(f"EXPORT-PIPELINE-KMS-1{rest}\n")
    file.chmod(0o600)
    with pytest.raises(KeyUnusable, match="damaged"):
        keys.load(file, AwsKms(key_id))


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        ("DisabledException", KeyUnusable, "Enable the key"),
        ("AccessDeniedException", KeyUnusable, "Allow kms:Encrypt"),
        ("ThrottlingException", KeyServiceUnavailable, "Try again"),
        ("SomethingNew", KeyUnusable, ""),
    ],
)
def test_refusals_that_moto_does_not_know(
    file: Path, key_id: str, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[KeyUnusable], hint: str
) -> None:
    kms = AwsKms(key_id)
    refusal = ClientError({"Error": {"Code": code, "Message": "arn:aws:kms:eu:1234:key/x"}}, "Encrypt")
    monkeypatch.setattr(kms._client, "encrypt", Mock(side_effect=refusal))
    with pytest.raises(KeyUnusable, match=rf"\({code}\)\..*{hint}") as caught:
        keys.create(file, kms)
    assert type(caught.value) is kind
    assert "arn:" not in str(caught.value)


def test_an_unknown_key_makes_no_file(file: Path, key_id: str) -> None:
    with pytest.raises(KeyUnusable, match=r"refuses \(NotFoundException\)\. Check EXPORT_PIPELINE_KMS_KEY_ID"):
        keys.create(file, AwsKms("00000000-0000-0000-0000-000000000000"))
    assert not file.exists()
