"""The vault on a real S3-compatible server, which checks signatures and rights."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from export_pipeline.errors import StorageUnavailable
from export_pipeline.vault import keys
from export_pipeline.vault.store import Vault
from export_pipeline_tests import servers
from export_pipeline_tests.store_suite import MIB, StoreSuite

_numbers = itertools.count(1)
CALLS: dict[str, Callable[[Vault], object]] = {
    "store": lambda vault: vault.store("abc/x", [b"text"]),
    "store much": lambda vault: vault.store("abc/x", (os.urandom(MIB) for _ in range(20))),
    "open": lambda vault: list(vault.open("abc/x")),
    "keys": lambda vault: vault.keys(),
    "delete_below": lambda vault: vault.delete_below("abc"),
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    with servers.s3(tmp_path_factory.mktemp("s3")) as served:
        yield served


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keys.create(tmp_path / "age.txt")
    return tmp_path / "age.txt"


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Set the variables by which S3 clients are told where to go."""

    def tell(environment: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return tell


@pytest.fixture
def prefix() -> str:
    return f"test-{next(_numbers)}"


@pytest.fixture
def vault(s3: servers.S3, key_file: Path, prefix: str, tell: Callable[[dict[str, str]], None]) -> Vault:
    """A prefix of its own in the bucket."""
    tell(s3.environment())
    return Vault(f"s3://exports/{prefix}", key_file)


class TestS3(StoreSuite):
    """The same as every store."""


def test_the_text_is_not_in_the_bucket(s3: servers.S3, vault: Vault, prefix: str, tmp_path: Path) -> None:
    stored = vault.store("abc/x", [b"canary" * 100_000])
    assert stored.url == f"s3://exports/{prefix}/abc/x"
    assert s3.files(f"exports/{prefix}/abc") == [f"exports/{prefix}/abc/x"]
    found = [file.read_bytes() for file in tmp_path.parent.rglob("*.dat")]
    assert found
    assert not any(b"canarycanary" in content for content in found)


def test_an_upload_that_was_broken_off_leaves_no_parts(s3: servers.S3, vault: Vault) -> None:
    seen: list[str] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield os.urandom(MIB)
        seen.extend(s3.files("exports/.uploads"))
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        vault.store("abc/x", chunks())
    assert seen, "the parts of an upload lie there while it is going on"
    assert s3.files("exports/.uploads") == []


def test_more_than_one_answer_of_a_list_holds(vault: Vault) -> None:
    """A list comes in pages of 1000, and a deletion takes 1000 names."""
    for number in range(1005):
        vault._store.put(f"abc/{number}", b"")
    assert len(vault.keys("abc")) == 1005
    assert vault.delete_below("abc") == 1005
    assert vault.keys() == []


def test_a_large_object_is_stored_in_bounded_memory(vault: Vault) -> None:
    process = psutil.Process()
    vault.store("abc/small", [b"text"])
    before, most = process.memory_info().rss, 0

    def chunks() -> Iterator[bytes]:
        nonlocal most
        chunk = os.urandom(MIB)
        for _ in range(300):
            most = max(most, process.memory_info().rss)
            yield chunk

    vault.store("abc/x", chunks())
    assert (most - before) / MIB < 150


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestErrors:
    def fails(self, vault: Vault, call: Callable[[Vault], object], match: str) -> None:
        with pytest.raises(StorageUnavailable, match=match) as caught:
            call(vault)
        assert caught.value.hint
        assert caught.value.retryable
        shown = f"{caught.value}"
        assert "secret" not in shown
        assert "127.0.0.1" not in shown

    @pytest.mark.parametrize("who", [{"secret": "wrong"}, {"key": "nobody"}], ids=["wrong secret", "unknown key"])
    def test_wrong_credentials(self, s3, vault, tell, call, who) -> None:
        tell(s3.environment(**who))
        self.fails(vault, call, "refuses us.*AWS_ACCESS_KEY_ID")

    def test_no_credentials(self, s3, vault, tell, call) -> None:
        environment = s3.environment()
        del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        # Instead of the address by which a rented machine learns its role: nobody answers here.
        tell(environment | {"AWS_METADATA_ENDPOINT": f"http://127.0.0.1:{servers.free_ports(1)[0]}"})
        self.fails(vault, call, "no credentials.*AWS_ACCESS_KEY_ID")

    def test_no_bucket(self, s3, tell, key_file, call) -> None:
        tell(s3.environment(key="admin"))
        self.fails(Vault("s3://absent/prefix", key_file), call, "no such bucket.*EXPORT_PIPELINE_STORAGE_URL")

    def test_http_that_was_not_allowed(self, s3, vault, tell, call) -> None:
        environment = s3.environment()
        del environment["AWS_ALLOW_HTTP"]
        tell(environment)
        self.fails(vault, call, "AWS_ALLOW_HTTP")


@pytest.mark.parametrize("name", ["store", "delete_below"])
def test_no_right_to_write(s3, vault, tell, key_file, prefix, name: str) -> None:
    vault.store("abc/x", [b"text"])
    tell(s3.environment(key="reader"))
    reader = Vault(f"s3://exports/{prefix}", key_file)
    assert b"".join(reader.open("abc/x")) == b"text"
    with pytest.raises(StorageUnavailable, match="refuses us"):
        CALLS[name](reader)
    assert b"".join(reader.open("abc/x")) == b"text"


def test_a_server_that_is_down(s3, vault, tell) -> None:
    tell(s3.environment() | {"AWS_ENDPOINT": f"http://127.0.0.1:{servers.free_ports(1)[0]}"})
    began = time.monotonic()
    with pytest.raises(StorageUnavailable, match="does not answer"):
        vault.store("abc/x", [b"text"])
    assert time.monotonic() - began < 60


def test_an_upload_that_was_killed_shows_nothing(s3, vault, key_file, prefix) -> None:
    """Its parts stay on the server; `deploy/README.md` tells to let a rule of the bucket remove them."""
    code = (
        "import sys, os\nfrom pathlib import Path\nfrom export_pipeline.vault.store import Vault\n"
        "def chunks():\n    for _ in range(40): yield os.urandom(1024 * 1024)\n    os.kill(os.getpid(), 9)\n"
        "Vault(sys.argv[1], Path(sys.argv[2])).store('abc/run/x', chunks())\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, f"s3://exports/{prefix}", key_file], check=False)
    assert killed.returncode == -9
    assert vault.keys() == []
    assert vault.delete_below("abc") == 0
