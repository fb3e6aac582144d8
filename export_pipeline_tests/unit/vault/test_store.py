"""The vault over a local folder: whole or not there, owner-only, and errors of ours only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError

from export_pipeline.errors import KeyUnusable, SealBroken, SourceUnavailable, StorageUnavailable, VaultError
from export_pipeline.vault import keys
from export_pipeline.vault.store import Vault

MIB = 1024 * 1024


class Interruption(BaseException):
    """As Dagster's."""


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A wide umask, as many machines have it; and whatever the vault sets is forgotten afterwards."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keys.create(tmp_path / "age.txt")
    return tmp_path / "age.txt"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "the store"


@pytest.fixture
def vault(root: Path, key_file: Path) -> Vault:
    return Vault(root.as_uri(), key_file)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


class TestStore:
    def test_what_is_stored_can_be_opened(self, vault: Vault) -> None:
        vault.store("abc/export.age", [b"one", b"", b"two"])
        assert b"".join(vault.open("abc/export.age")) == b"onetwo"

    def test_a_large_object(self, vault: Vault, root: Path) -> None:
        chunk = os.urandom(MIB)
        stored = vault.store("abc/large", (chunk for _ in range(20)))
        assert b"".join(vault.open("abc/large")) == chunk * 20
        assert stored.size == (root / "abc/large").stat().st_size > 20 * MIB

    def test_an_object_of_nothing(self, vault: Vault) -> None:
        vault.store("abc/empty", [])
        assert list(vault.open("abc/empty")) == []

    def test_it_says_name_place_and_size(self, vault: Vault, root: Path) -> None:
        stored = vault.store("abc/export.age", [b"text"])
        assert (stored.key, stored.url) == ("abc/export.age", f"{root.as_uri()}/abc/export.age")
        assert stored.size == (root / "abc/export.age").stat().st_size

    def test_nobody_else_can_read_it(self, vault: Vault, root: Path) -> None:
        vault.store("abc/run/export.age", [b"text"])
        vault.store("abc/run/large.age", [os.urandom(20 * MIB)])
        modes = {path.relative_to(root).as_posix(): path.stat().st_mode & 0o777 for path in root.rglob("*")}
        assert modes == {"abc": 0o700, "abc/run": 0o700, "abc/run/export.age": 0o600, "abc/run/large.age": 0o600}
        assert root.stat().st_mode & 0o777 == 0o700

    def test_the_text_is_not_on_disk(self, vault: Vault, root: Path) -> None:
        vault.store("abc/x", [b"canary" * 1000])
        assert b"canary" not in (root / "abc/x").read_bytes()

    def test_a_second_one_takes_the_place_of_the_first(self, vault: Vault, root: Path) -> None:
        vault.store("abc/x", [b"first"])
        vault.store("abc/x", [b"second"])
        assert b"".join(vault.open("abc/x")) == b"second"
        assert files(root) == ["abc/x"]

    def test_a_slash_at_the_end_of_the_url_means_nothing(self, root: Path, key_file: Path) -> None:
        stored = Vault(root.as_uri() + "/", key_file).store("abc/x", [b"text"])
        assert stored.url == f"{root.as_uri()}/abc/x"
        assert files(root) == ["abc/x"]

    def test_file_folder_and_the_folders_above_are_synced(
        self, vault: Vault, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: set[Path] = set()
        real = os.fsync

        def fsync(descriptor: int) -> None:
            synced.add(Path(f"/proc/self/fd/{descriptor}").resolve())
            real(descriptor)

        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc to tell which file a descriptor is")
        monkeypatch.setattr(os, "fsync", fsync)
        vault.store("abc/run/x", [b"text"])
        assert synced >= {root / "abc/run/x", root / "abc/run", root / "abc", root}


ERRORS = [
    SourceUnavailable("away"),
    ValueError("any"),
    OSError(5, "of the source"),
    FileNotFoundError(2, "of the source"),
    GenericError("of the source"),
    Interruption("stop"),
]


class TestStoreFails:
    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("before", [0, 1, 20], ids="after {} MiB".format)
    def test_an_error_in_the_middle_arrives_unchanged_and_leaves_nothing(
        self, vault: Vault, root: Path, error: BaseException, before: int
    ) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(before):
                yield os.urandom(MIB)
            raise error

        with pytest.raises(type(error)) as caught:
            vault.store("abc/run/x", chunks())
        assert caught.value is error
        assert files(root) == []
        assert vault.keys() == []
        error.__traceback__ = None

    def test_what_was_there_before_stays(self, vault: Vault) -> None:
        def chunks() -> Iterator[bytes]:
            yield os.urandom(20 * MIB)
            raise ValueError("stop")

        vault.store("abc/x", [b"old"])
        with pytest.raises(ValueError, match="stop"):
            vault.store("abc/x", chunks())
        assert b"".join(vault.open("abc/x")) == b"old"

    def test_without_a_key_nothing_is_stored_and_nothing_is_asked_for(self, vault: Vault, key_file: Path) -> None:
        key_file.unlink()
        asked = []
        with pytest.raises(KeyUnusable):
            vault.store("abc/x", (asked.append(1) or b"" for _ in range(1)))
        with pytest.raises(KeyUnusable):
            vault.require_key()
        assert asked == []
        assert vault.keys() == []

    def test_a_key_that_others_can_read_is_refused(self, vault: Vault, key_file: Path) -> None:
        key_file.chmod(0o640)
        with pytest.raises(KeyUnusable):
            vault.require_key()

    @pytest.mark.parametrize(
        "call",
        [
            lambda vault: vault.store("abc/x", [b"text"]),
            lambda vault: list(vault.open("abc/x")),
            lambda vault: vault.keys(),
            lambda vault: vault.delete_below("abc"),
        ],
        ids=["store", "open", "keys", "delete_below"],
    )
    def test_a_root_that_is_no_folder_is_an_error_of_ours(
        self, vault: Vault, root: Path, call: Callable[[Vault], object]
    ) -> None:
        root.write_text("a file")
        with pytest.raises(StorageUnavailable, match="EXPORT_PIPELINE_STORAGE_URL") as caught:
            call(vault)
        assert str(root) not in str(caught.value), "the words of the library are not passed on"

    @pytest.mark.parametrize("url", ["s3://", "unknown://x"])
    def test_a_store_that_cannot_be_made_is_an_error_of_ours(self, url: str, key_file: Path) -> None:
        with pytest.raises(StorageUnavailable):
            Vault(url, key_file).keys()

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a small file system of its own")
    def test_a_full_disk_says_so_and_leaves_nothing(self, tmp_path: Path, key_file: Path) -> None:
        root = tmp_path / "small"
        root.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=False).returncode:
            pytest.skip("may not mount")
        try:
            vault = Vault(root.as_uri(), key_file)
            for size in (2, 20):
                with pytest.raises(StorageUnavailable, match="full"):
                    vault.store("abc/x", (os.urandom(MIB) for _ in range(size)))
                assert files(root) == []
            vault.store("abc/y", [b"fits"])
            assert b"".join(vault.open("abc/y")) == b"fits"
            del vault
        finally:
            subprocess.run(["umount", "--lazy", root], check=True)


class TestOpen:
    def test_what_is_not_there(self, vault: Vault) -> None:
        with pytest.raises(VaultError, match="gone") as caught:
            list(vault.open("abc/x"))
        assert not caught.value.retryable

    def test_damage_is_noticed(self, vault: Vault, root: Path) -> None:
        vault.store("abc/x", [b"text"])
        data = bytearray((root / "abc/x").read_bytes())
        data[-1] ^= 1
        (root / "abc/x").write_bytes(data)
        with pytest.raises(SealBroken, match="damaged"):
            list(vault.open("abc/x"))

    def test_an_object_for_other_keys(self, vault: Vault, root: Path, tmp_path: Path) -> None:
        vault.store("abc/x", [b"text"])
        keys.create(tmp_path / "other.txt")
        with pytest.raises(SealBroken, match="not sealed for any"):
            list(Vault(root.as_uri(), tmp_path / "other.txt").open("abc/x"))

    def test_a_reader_that_stops_early_leaves_no_thread(self, vault: Vault) -> None:
        vault.store("abc/x", [os.urandom(20 * MIB)])
        reader = vault.open("abc/x")
        next(reader)
        reader.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "unseal"]

    def test_a_store_that_goes_away_in_the_middle_is_an_error_of_ours(
        self, vault: Vault, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vault.store("abc/x", [b"text"])
        pieces = [bytes(obstore.get(vault._store, "abc/x").bytes())[:100]]

        class Breaking:
            def read(self, _: int) -> bytes:
                if pieces:
                    return pieces.pop()
                raise GenericError("https://bucket.example.org/abc?secret")

        monkeypatch.setattr(obstore, "open_reader", lambda *_, **__: Breaking())
        with pytest.raises(StorageUnavailable) as caught:
            list(vault.open("abc/x"))
        assert "secret" not in str(caught.value)


class TestDelete:
    def test_only_the_folder_goes(self, vault: Vault, root: Path) -> None:
        for key in ("abc/run1/a", "abc/run1/b", "abc/run2/a", "abc/c", "abcd/a", "ab/a"):
            vault.store(key, [b"text"])
        assert vault.delete_below("abc") == 4
        assert vault.keys() == ["ab/a", "abcd/a"]
        assert sorted(path.name for path in root.iterdir()) == ["ab", "abcd"]

    def test_a_folder_inside(self, vault: Vault, root: Path) -> None:
        for key in ("abc/run1/a", "abc/run2/a"):
            vault.store(key, [b"text"])
        assert vault.delete_below("abc/run1") == 1
        assert files(root) == ["abc/run2/a"]
        assert vault.delete_below("abc/run2") == 1
        assert list(root.iterdir()) == []

    def test_what_a_killed_upload_left_goes_too(self, vault: Vault, root: Path) -> None:
        (root / "abc/run").mkdir(parents=True)
        (root / "abc/run/export.age#1").write_bytes(b"half")
        (root / "abc/run/deep/er").mkdir(parents=True)
        vault.delete_below("abc")
        assert list(root.iterdir()) == []

    def test_a_real_killed_upload(self, vault: Vault, root: Path, key_file: Path) -> None:
        code = (
            "import sys, os\nfrom pathlib import Path\nfrom export_pipeline.vault.store import Vault\n"
            "def chunks():\n    for _ in range(40): yield os.urandom(1024 * 1024)\n    os.kill(os.getpid(), 9)\n"
            "Vault(sys.argv[1], Path(sys.argv[2])).store('abc/run/x', chunks())\n"
        )
        killed = subprocess.run([sys.executable, "-c", code, root.as_uri(), key_file], check=False)
        assert killed.returncode == -9
        assert vault.keys() == [], "what is not whole is not there"
        vault.delete_below("abc")
        assert list(root.iterdir()) == []

    def test_nothing_to_delete(self, vault: Vault) -> None:
        assert vault.delete_below("abc") == 0
        assert vault.delete_below("abc/run") == 0

    def test_the_root_stays(self, vault: Vault, root: Path) -> None:
        vault.store("abc/x", [b"text"])
        vault.delete_below("abc")
        assert root.is_dir()

    def test_two_that_delete_the_same_at_once(self, vault: Vault, root: Path, key_file: Path) -> None:
        """A run that lost its request clears its folder while the next one clears the request's."""
        faults: list[Exception] = []
        vaults = [vault, Vault(root.as_uri(), key_file)]
        for _ in range(20):
            for number in range(10):
                (root / f"abc/run1/{number}").mkdir(parents=True, exist_ok=True)
                (root / f"abc/run1/{number}/x#1").write_bytes(b"half")
            barrier = threading.Barrier(2)

            def delete(one: Vault, prefix: str, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                try:
                    one.delete_below(prefix)
                except Exception as error:
                    faults.append(error)

            threads = [
                threading.Thread(target=delete, args=args) for args in zip(vaults, ("abc", "abc/run1"), strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert faults == []
        assert list(root.iterdir()) == []


class TestRemote:
    """A store that is no folder; the S3 client is the same library."""

    @pytest.fixture
    def remote(self, key_file: Path) -> Vault:
        return Vault("memory:///", key_file)

    def test_objects_come_and_go(self, remote: Vault) -> None:
        for key in ("abc/run/a", "abc/b", "abcd/a"):
            remote.store(key, [b"text"])
        assert b"".join(remote.open("abc/b")) == b"text"
        assert remote.delete_below("abc") == 2
        assert remote.delete_below("abc") == 0
        assert remote.keys() == ["abcd/a"]

    def test_an_error_leaves_nothing(self, remote: Vault) -> None:
        def chunks() -> Iterator[bytes]:
            yield os.urandom(20 * MIB)
            raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            remote.store("abc/x", chunks())
        assert remote.keys() == []


class TestKeys:
    def test_below_a_folder(self, vault: Vault) -> None:
        for key in ("abc/b", "abc/a", "abcd/x"):
            vault.store(key, [b"text"])
        assert vault.keys() == ["abc/a", "abc/b", "abcd/x"]
        assert vault.keys("abc") == ["abc/a", "abc/b"]
        assert vault.keys("none") == []

    @pytest.mark.parametrize(
        "key", ["", "/", ".", "..", "../x", "abc/../../x", "abc//x", "/abc", "abc/", "abc/./x", "abc\0", "ab c", "~"]
    )
    def test_names_that_could_leave_the_root_are_refused(
        self, key: str, vault: Vault, tmp_path: Path, root: Path
    ) -> None:
        vault.store("abc/x", [b"text"])
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_text("not ours")
        calls = [lambda key: vault.store(key, [b"text"]), vault.delete_below, lambda key: list(vault.open(key))]
        for call in calls:
            for name in (key, str(outside)):
                with pytest.raises(VaultError):
                    call(name)
        if key:
            with pytest.raises(VaultError):
                vault.keys(key)
        assert (outside / "file").exists()
        assert files(root) == ["abc/x"]
