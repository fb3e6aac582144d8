"""Files of earlier versions open and verify, with our code, with the age command, and with the script alone."""

from __future__ import annotations

import gzip
import importlib.util
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export_pipeline.errors import FileNotVerified, SealBroken
from export_pipeline.models import ExportFormat
from export_pipeline.render.formats import delivered
from export_pipeline.vault import keys
from export_pipeline.vault.seal import unseal
from export_pipeline.verify import verify

VECTORS = Path(__file__).parents[1] / "vectors"
SCRIPT = Path(__file__).parents[2] / "docs" / "verify_export.py"
FILES = [
    pytest.param(folder, name, id=f"{folder.name}/{name}")
    for folder in sorted(path for path in VECTORS.iterdir() if path.is_dir())
    for name in json.loads((folder / "expected.json").read_text())
]
every_file = pytest.mark.parametrize(("folder", "name"), FILES)


def ring(folder: Path, owner: str, tmp_path: Path) -> keys.KeyRing:
    """A version control does not keep the mode that a key file needs."""
    file = tmp_path / owner
    shutil.copyfile(folder / f"{owner}.txt", file)
    file.chmod(0o600)
    return keys.load(file)


def owner(name: str) -> str:
    return "recipient" if "recipient" in name else "installation"


def opened(folder: Path, name: str, tmp_path: Path) -> Path:
    encoding = json.loads((folder / "expected.json").read_text())[name]["content_encoding"]
    content = unseal([(folder / name).read_bytes()], ring(folder, owner(name), tmp_path))
    file = tmp_path / "opened"
    file.write_bytes(b"".join(delivered(content, encoding)))
    return file


def test_every_format_is_there() -> None:
    names = {
        name for folder in VECTORS.iterdir() if folder.is_dir() for name in (path.name for path in folder.iterdir())
    }
    assert names >= {f"{form}{kind}.age" for form in ExportFormat for kind in ("", "-recipient")}


@every_file
def test_it_opens_and_verifies(folder: Path, name: str, tmp_path: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())[name]
    found = verify(opened(folder, name, tmp_path), [(folder / "signing.pub").read_text()])
    assert {name: part.rows for name, part in found.parts.items()} == expected["rows"]
    assert {name: part.sha256 for name, part in found.parts.items()} == expected["sha256"]
    assert found.signer is not None


@every_file
def test_the_other_key_does_not_open_it(folder: Path, name: str, tmp_path: Path) -> None:
    other = {"recipient": "installation", "installation": "recipient"}[owner(name)]
    with pytest.raises(SealBroken, match="not sealed for any of"):
        list(unseal([(folder / name).read_bytes()], ring(folder, other, tmp_path)))


@every_file
def test_the_script_verifies_it(folder: Path, name: str, tmp_path: Path) -> None:
    file = opened(folder, name, tmp_path)
    key = (folder / "signing.pub").read_text().strip()
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, file, "--key", key], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("Signed by the key that you trust.\n")


@pytest.mark.skipif(not shutil.which("age"), reason="the age command is not installed")
@every_file
def test_the_age_command_opens_it(folder: Path, name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["age", "-d", "-i", folder / f"{owner(name)}.txt", folder / name], capture_output=True, check=True
    )
    content = gzip.decompress(done.stdout) if name == "json.age" else done.stdout
    assert content == opened(folder, name, tmp_path).read_bytes()


# --- the signature in plain numbers


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("verify_export", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def holds(script: ModuleType, *parts: bytes) -> bool:
    try:
        return bool(script.signature_holds(*parts))
    except script.Bad:
        return False


def test_it_agrees_with_the_library(script: ModuleType) -> None:
    for size in (0, 1, 63, 64, 1000):
        private, message = Ed25519PrivateKey.generate(), secrets.token_bytes(size)
        public, signature = private.public_key().public_bytes_raw(), private.sign(message)
        assert holds(script, public, message, signature)
        assert not holds(script, public, message + b"x", signature)
        assert not holds(script, Ed25519PrivateKey.generate().public_key().public_bytes_raw(), message, signature)
        for at in range(0, 64, 7):
            changed = signature[:at] + bytes([signature[at] ^ 1 << at % 8]) + signature[at + 1 :]
            assert not holds(script, public, message, changed)


def test_a_signature_has_one_form(script: ModuleType) -> None:
    """The same number plus the order of the group would be another signature of the same message."""
    private = Ed25519PrivateKey.generate()
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"x")
    number = int.from_bytes(signature[32:], "little") + script.ORDER
    assert number < 2**256
    assert not holds(script, public, b"x", signature[:32] + number.to_bytes(32, "little"))
    for strange in (b"", signature[:-1], signature + b"x"):
        assert not holds(script, public, b"x", strange)
    assert not holds(script, b"\xff" * 32, b"x", signature)


def test_a_file_that_is_still_encrypted_says_so(tmp_path: Path) -> None:
    file = VECTORS / "1" / "json.age"
    done = subprocess.run([sys.executable, SCRIPT, file], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "encrypted: open it with `age -d -i KEY`" in done.stderr
    with pytest.raises(FileNotVerified, match="encrypted"):
        verify(file)


@pytest.mark.parametrize(
    "content", [b"", b"{\n", b"{\n}", b"PK\x03\x04", b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(50), b"x" * 99]
)
def test_what_is_no_export_is_bad_and_no_crash(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    done = subprocess.run([sys.executable, SCRIPT, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:5]) == (1, "BAD: ")
    with pytest.raises(FileNotVerified):
        verify(file)
