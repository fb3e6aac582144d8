"""What every store must do, whichever kind it is: a local folder, memory, an S3-compatible server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from export_pipeline.errors import VaultError
from export_pipeline.vault.store import Vault

MIB = 1024 * 1024


class StoreSuite:
    """Subclasses give a fixture `vault`: an empty store."""

    @pytest.mark.parametrize("size", [0, 1, 5 * MIB, 16 * MIB, 40 * MIB])
    def test_what_is_stored_can_be_opened(self, vault: Vault, size: int) -> None:
        data = os.urandom(size)
        stored = vault.store("abc/run/export.age", (data[at : at + MIB] for at in range(0, size, MIB)))
        assert b"".join(vault.open("abc/run/export.age")) == data
        assert stored.key == "abc/run/export.age"
        assert stored.url.endswith("/abc/run/export.age")
        assert stored.size > size

    def test_a_second_one_takes_the_place_of_the_first(self, vault: Vault) -> None:
        vault.store("abc/x", [b"first"])
        vault.store("abc/x", [b"second"])
        assert b"".join(vault.open("abc/x")) == b"second"
        assert vault.keys() == ["abc/x"]

    @pytest.mark.parametrize("before", [0, 1, 40], ids="after {} MiB".format)
    def test_an_error_in_the_middle_leaves_nothing(self, vault: Vault, before: int) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(before):
                yield os.urandom(MIB)
            raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            vault.store("abc/x", chunks())
        assert vault.keys() == []

    def test_nothing_is_visible_before_it_is_whole(self, vault: Vault) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(40):
                yield os.urandom(MIB)
            assert vault.keys() == []

        vault.store("abc/x", chunks())
        assert vault.keys() == ["abc/x"]

    def test_what_is_not_there(self, vault: Vault) -> None:
        with pytest.raises(VaultError, match="gone") as caught:
            list(vault.open("abc/x"))
        assert not caught.value.retryable

    def test_names_below_a_folder(self, vault: Vault) -> None:
        for key in ("abc/b", "abc/run/a", "abcd/x"):
            vault.store(key, [b"text"])
        assert vault.keys() == ["abc/b", "abc/run/a", "abcd/x"]
        assert vault.keys("abc") == ["abc/b", "abc/run/a"]
        assert vault.keys("ab") == []

    def test_only_what_is_below_the_folder_is_deleted(self, vault: Vault) -> None:
        for key in ("abc/run1/a", "abc/run1/b", "abc/run2/a", "abc/c", "abcd/a", "ab/a"):
            vault.store(key, [b"text"])
        assert vault.delete_below("abc/run1") == 2
        assert vault.delete_below("abc") == 2
        assert vault.delete_below("abc") == 0
        assert vault.keys() == ["ab/a", "abcd/a"]
