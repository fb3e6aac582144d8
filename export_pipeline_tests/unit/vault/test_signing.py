"""The signing key: what is signed, who is believed, and what rotation leaves."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export_pipeline.errors import ConfigurationError, FileNotVerified, KeyUnusable
from export_pipeline.vault import signing
from export_pipeline.vault.signing import Signer, canonical, check

STATEMENT = {"user_id": "ada", "b": [1, None, "é"], "a": {"y": 1, "x": '\u0001\n"\\'}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    signing.create(tmp_path / "signing.txt")
    return tmp_path / "signing.txt"


def test_the_canonical_form_is_that_of_rfc_8785() -> None:
    assert canonical(STATEMENT) == (b'{"a":{"x":"\\u0001\\n\\"\\\\","y":1},"b":[1,null,"\xc3\xa9"],"user_id":"ada"}')


def test_a_key_file_is_owner_only_and_made_once(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    assert not signing.create(file)
    assert file.read_bytes() == before


def test_a_signature_holds_for_its_statement_alone(file: Path) -> None:
    signature = Signer(file).sign(STATEMENT)
    [fact] = signing.facts(file)
    assert check(STATEMENT, signature, [fact.public_key]).key_id == fact.key_id == signature["key_id"]
    assert check(dict(reversed(STATEMENT.items())), signature)
    for other in ({**STATEMENT, "user_id": "eve"}, {**STATEMENT, "more": 1}, {}):
        with pytest.raises(FileNotVerified, match="changed after it was signed"):
            check(other, signature)


def test_a_stranger_is_not_believed(file: Path, tmp_path: Path) -> None:
    signing.create(tmp_path / "other.txt")
    [other] = signing.facts(tmp_path / "other.txt")
    with pytest.raises(FileNotVerified, match=r"signed by another key \([0-9a-f]{16}\)"):
        check(STATEMENT, Signer(file).sign(STATEMENT), [other.public_key])


def test_the_name_of_a_key_is_not_enough(file: Path, tmp_path: Path) -> None:
    """A stranger's signature under the public key and id that are trusted."""
    signing.create(tmp_path / "other.txt")
    signature = Signer(file).sign(STATEMENT)
    forged = {**signature, "value": Signer(tmp_path / "other.txt").sign(STATEMENT)["value"]}
    with pytest.raises(FileNotVerified, match="signature is wrong"):
        check(STATEMENT, forged, [signature["public_key"]])


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "none"},
        {"algorithm": "ed25519"},
        {"key_id": "0" * 16},
        {"public_key": "ed25519:"},
        {"public_key": "AAAA"},
        {"public_key": None},
        {"value": ""},
        {"value": "AAAA"},
        {"value": "?"},
        {"value": 1},
    ],
)
def test_signatures_of_another_form_are_refused(file: Path, change: dict[str, object]) -> None:
    with pytest.raises(FileNotVerified, match="signature is"):
        check(STATEMENT, {**Signer(file).sign(STATEMENT), **change})


@pytest.mark.parametrize("signature", [None, "", [], {}, 1, {"algorithm": "Ed25519"}])
def test_what_is_no_signature_is_refused(signature: object) -> None:
    with pytest.raises(FileNotVerified, match="not one that this program makes"):
        check(STATEMENT, signature)


@pytest.mark.parametrize("key", ["", "ed25519:", "ed25519:AAAA", "age1qqq", "ed25519:" + "A" * 44])
def test_what_is_no_public_key_is_refused(file: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match="no public signing key"):
        check(STATEMENT, Signer(file).sign(STATEMENT), [key])


def test_rotation_keeps_public_halves_only(file: Path) -> None:
    signer = Signer(file)
    old, before = signer.sign(STATEMENT), file.read_text()
    secret = before.splitlines()[-1]
    public_key = signing.rotate(file)
    assert signer.sign(STATEMENT)["public_key"] == public_key != old["public_key"]
    assert secret[40:] not in file.read_text()
    facts = signing.facts(file)
    assert [(fact.public_key, fact.signs) for fact in facts] == [(public_key, True), (old["public_key"], False)]
    assert all(fact.created for fact in facts)
    assert check(STATEMENT, old, [fact.public_key for fact in facts]).key_id == old["key_id"]
    signing.rotate(file)
    assert [fact.public_key for fact in signing.facts(file)][1:] == [fact.public_key for fact in facts]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "EXPORT-PIPELINE-SIGNING-KEY-1\n",
        "EXPORT-PIPELINE-SIGNING-KEY-1abcd\n",
        "AGE-SECRET-KEY-1QQQ\n",
        "ed25519:AAAA\n",
        "{private}\n{private}\n",
        "{public}\n{private}\n",
        "{private}\nnonsense\n",
    ],
)
def test_a_damaged_file_is_refused_and_not_rotated(tmp_path: Path, text: str) -> None:
    private = Ed25519PrivateKey.generate()
    public = "ed25519:" + base64.b64encode(private.public_key().public_bytes_raw()).decode()
    file = tmp_path / "key"
    file.write_text(
        text.format(private=f"EXPORT-PIPELINE-SIGNING-KEY-1{private.private_bytes_raw().hex()}", public=public)
    )
    file.chmod(0o600)
    for use in (signing.facts, signing.rotate):
        with pytest.raises(KeyUnusable, match="holds no signing key"):
            use(file)


def test_an_absent_file_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match=r"does not exist.*export-pipeline migrate"):
        Signer(tmp_path / "none").require()


def test_a_manifest_of_any_text_can_be_signed(file: Path) -> None:
    statement = json.loads('{"user_id": "\\ud800"}')
    assert check(statement, Signer(file).sign(statement))
