"""What every store must do, whichever kind it is: a local folder, memory, an S3-compatible server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyrage
import pytest
from pyrage import x25519

from export_pipeline.errors import SealBroken, VaultError
from export_pipeline.vault import keys
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

    def test_the_listing_tells_names_sizes_and_times(self, vault: Vault) -> None:
        stored = {vault.store(key, [b"text" * 1000]).size: key for key in ("abc/run/export.age", "x/y/z.part")}
        listing = vault.listing()
        assert sorted(found.key for found in listing) == sorted(["abc/run/export.age", "x/y/z.part"])
        assert {found.size for found in listing} == set(stored)
        assert all(abs(datetime.now(UTC) - found.modified) < timedelta(minutes=1) for found in listing)

    def test_one_of_a_listing_can_be_deleted(self, vault: Vault) -> None:
        for key in ("abc/run/a", "abc/run/b"):
            vault.store(key, [b"text"])
        [first, _] = sorted(vault.listing(), key=lambda found: found.key)
        for _ in range(2):  # somebody else may have been quicker
            vault.delete(first)
        assert vault.keys() == ["abc/run/b"]

    def test_other_keys_open_what_they_sealed(self, vault: Vault) -> None:
        """For a recipient: the object itself is an age file, and the installation's keys are of no use."""
        person = x25519.Identity.generate()
        own = vault.with_keys(keys.RunKeys(person.to_public()))
        own.store("abc/x", [b"text" * 100_000])
        watched: list[bytes] = []

        def watch(chunks: Iterator[bytes]) -> Iterator[bytes]:
            for chunk in chunks:
                watched.append(chunk)
                yield chunk

        assert b"".join(own.open("abc/x", watch=watch)) == b"text" * 100_000
        sealed = b"".join(vault.sealed("abc/x"))
        assert b"".join(watched) == sealed
        assert pyrage.decrypt(sealed, [person]) == b"text" * 100_000
        with pytest.raises(SealBroken):
            list(vault.open("abc/x"))
