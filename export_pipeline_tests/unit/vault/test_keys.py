"""The key file: made once, owner-only, and never used when it could be somebody else's."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pyrage
import pytest
from pyrage import x25519

from export_pipeline.errors import KeyUnusable, SealBroken
from export_pipeline.vault import keys
from export_pipeline.vault.seal import seal, unseal
from export_pipeline.vault.store import Vault

as_root = os.geteuid() == 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "age.txt"


def write(file: Path, text: str | bytes, mode: int = 0o600) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(mode)


def test_a_new_key_file_is_owner_only_and_alone(file: Path) -> None:
    assert keys.create(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_nlink == 1
    assert list(file.parent.iterdir()) == [file]


def test_modes_do_not_depend_on_the_umask(file: Path) -> None:
    before = os.umask(0)
    try:
        keys.create(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_it_is_a_file_of_age_keygen(file: Path) -> None:
    keys.create(file)
    created, public, identity = file.read_text().splitlines()
    assert created.startswith("# created: ")
    assert created.endswith("+00:00")
    assert public == f"# public key: {x25519.Identity.from_str(identity).to_public()}"


def test_a_key_that_is_there_stays(file: Path) -> None:
    keys.create(file)
    before = file.read_bytes()
    assert not keys.create(file)
    assert file.read_bytes() == before


def test_threads_that_make_the_first_key_at_once_get_one(file: Path) -> None:
    count = 8
    made: list[object] = []
    barrier = threading.Barrier(count)

    def make() -> None:
        barrier.wait()
        try:
            made.append((keys.create(file), str(keys.load(file).recipient)))
        except Exception as error:
            made.append(error)

    threads = [threading.Thread(target=make) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [error for error in made if isinstance(error, Exception)] == []
    assert sorted(won for won, _ in made) == [False] * (count - 1) + [True]
    assert len({recipient for _, recipient in made}) == 1
    assert list(file.parent.iterdir()) == [file]


def test_what_a_dead_process_left_does_not_stop_us(file: Path) -> None:
    """In a container, process ids repeat."""
    write(file.with_name(f".{file.name}.{os.getpid()}"), "half a key")
    assert keys.create(file)


def test_a_name_that_is_taken_in_the_last_moment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.create(file)
    before = file.read_bytes()
    monkeypatch.setattr(Path, "exists", lambda self, **_: False)
    assert not keys.create(file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    write(tmp_path / "keys" / "file", "")
    with pytest.raises(KeyUnusable, match="cannot be made"):
        keys.create(tmp_path / "keys" / "file" / "age.txt")


def test_a_name_that_no_file_can_have_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="cannot be made"):
        keys.create(tmp_path / ("age" * 100))


@pytest.mark.skipif(as_root, reason="root may write everywhere")
def test_a_folder_without_rights_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(KeyUnusable, match="cannot be made"):
        keys.create(tmp_path / "age.txt")


def test_the_first_key_seals_and_all_are_kept(file: Path) -> None:
    identities = [x25519.Identity.generate() for _ in range(3)]
    write(file, "# new\n" + "\n\n# old\n".join(map(str, identities)) + "\r\n")
    ring = keys.load(file)
    assert [str(identity) for identity in ring.identities] == [str(identity) for identity in identities]
    assert str(ring.recipient) == str(identities[0].to_public())


def test_an_indented_key_is_a_key(file: Path) -> None:
    identity = x25519.Identity.generate()
    write(file, f"  {identity}  \n")
    assert str(keys.load(file).recipient) == str(identity.to_public())


def test_an_absent_file_says_how_to_mend_it(file: Path) -> None:
    with pytest.raises(KeyUnusable, match=r"does not exist.*export-pipeline migrate"):
        keys.load(file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o644, 0o777])
def test_a_file_that_others_can_use_is_refused(file: Path, mode: int) -> None:
    write(file, str(x25519.Identity.generate()), mode)
    with pytest.raises(KeyUnusable, match=r"read by others\. Run `chmod 600"):
        keys.load(file)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_the_owner_is_used(file: Path, mode: int) -> None:
    write(file, str(x25519.Identity.generate()), mode)
    assert keys.load(file).identities


@pytest.mark.parametrize("text", ["", "\n \n", "# only a comment\n"])
def test_a_file_without_a_key_is_refused(file: Path, text: str) -> None:
    write(file, text)
    with pytest.raises(KeyUnusable, match="holds no age identity"):
        keys.load(file)


def test_a_damaged_key_is_refused_and_not_shown(file: Path) -> None:
    secret = str(x25519.Identity.generate())
    damaged = secret[:-1] + ("Q" if secret[-1] != "Q" else "P")
    write(file, f"{x25519.Identity.generate()}\n{damaged}\n")
    with pytest.raises(KeyUnusable, match="damaged key") as caught:
        keys.load(file)
    assert damaged[20:] not in str(caught.value)


@pytest.mark.parametrize("line", ["age1qqqq", "x" * 1000, "AGE-PLUGIN-X-1QQ", "XGE-SECRET-KEY-1QQ"])
def test_a_line_that_is_no_key_is_not_skipped(file: Path, line: str) -> None:
    write(file, f"{x25519.Identity.generate()}\n{line}\n")
    with pytest.raises(KeyUnusable, match="damaged key"):
        keys.load(file)


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    write(file, b"\xff\xfe")
    with pytest.raises(KeyUnusable, match=r"cannot be read \(UnicodeDecodeError\)"):
        keys.load(file)


def test_a_folder_in_its_place_is_refused(file: Path) -> None:
    file.mkdir(parents=True, mode=0o700)
    with pytest.raises(KeyUnusable, match="cannot be read"):
        keys.load(file)


def test_a_ring_does_not_show_its_secrets(file: Path) -> None:
    keys.create(file)
    ring = keys.load(file)
    assert "SECRET" not in f"{ring} {ring!r} {ring.recipient}"


# --- rotation


def test_rotation_adds_a_first_key_and_keeps_every_line(file: Path) -> None:
    keys.create(file)
    before, old = file.read_text(), keys.load(file)
    public_key = keys.rotate(file)
    ring = keys.load(file)
    assert public_key == str(ring.recipient) != str(old.recipient)
    assert [str(identity) for identity in ring.identities[1:]] == [str(identity) for identity in old.identities]
    assert file.read_text().endswith(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == ["age.txt"]


def test_what_the_old_key_sealed_opens_after_rotation(file: Path, tmp_path: Path) -> None:
    """Also in a process that has read the old file: it notices."""
    keys.create(file)
    vault = Vault((tmp_path / "store").as_uri(), file)
    first = vault.store("a", [b"old"])
    public_key = keys.rotate(file)
    second = vault.store("b", [b"new"])
    assert (first.sealed_for, second.sealed_for) == (str(keys.load(file).identities[1].to_public()), public_key)
    assert b"".join(vault.open("a")) == b"old"
    # The new file is for the new key alone.
    file.write_text(f"{keys.load(file).identities[0]}\n")
    assert b"".join(vault.open("b")) == b"new"
    with pytest.raises(SealBroken, match="not sealed for any of"):
        list(vault.open("a"))


def test_threads_that_rotate_at_once_lose_no_key(file: Path) -> None:
    keys.create(file)
    source, made = keys.KeyFile(file), []
    rings: list[keys.KeyRing] = []
    barrier = threading.Barrier(6)

    def rotate() -> None:
        barrier.wait()
        made.append(keys.rotate(file))
        rings.append(source.ring())

    threads = [threading.Thread(target=rotate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {str(identity.to_public()) for identity in keys.load(file).identities} > set(made)
    assert len(set(made)) == len(rings) == 6
    assert len(source.ring().identities) == 7


def test_a_file_that_went_away_is_not_used_from_memory(file: Path) -> None:
    keys.create(file)
    source = keys.KeyFile(file)
    source.ring()
    file.unlink()
    with pytest.raises(KeyUnusable, match="does not exist"):
        source.ring()


def test_an_unchanged_file_is_read_once(file: Path) -> None:
    keys.create(file)
    source = keys.KeyFile(file)
    assert source.ring() is source.ring()


def test_a_damaged_file_is_not_rotated(file: Path) -> None:
    write(file, f"{x25519.Identity.generate()}\nnonsense\n")
    before = file.read_bytes()
    with pytest.raises(KeyUnusable, match="damaged key"):
        keys.rotate(file)
    assert file.read_bytes() == before


def test_an_absent_file_is_not_made_by_rotation(file: Path) -> None:
    with pytest.raises(KeyUnusable, match="does not exist"):
        keys.rotate(file)
    assert not file.parent.exists()


@pytest.mark.skipif(not as_root, reason="only root can give files away")
def test_a_file_stays_with_its_account_when_root_rotates(file: Path) -> None:
    keys.create(file)
    os.chown(file, 12345, 12345)
    keys.rotate(file)
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12345)


def test_facts_tell_public_keys_and_when_they_were_made(file: Path) -> None:
    old = x25519.Identity.generate()
    write(file, f"# somebody's own comment\n# created: yesterday\n{old}\n")
    keys.rotate(file)
    new, kept = keys.facts(file)
    assert new.created is not None
    assert new.created.tzinfo is not None
    assert (kept.public_key, kept.created, kept.wrapped) == (str(old.to_public()), None, False)
    assert "SECRET" not in f"{new}{kept}"


# --- from the environment


@pytest.mark.parametrize("between", ["\n", " ", ",", ", ", "\r\n", "\n# a comment, with words\n"])
def test_keys_of_the_environment(between: str) -> None:
    identities = [x25519.Identity.generate() for _ in range(2)]
    source = keys.EnvironmentKeys(between.join(map(str, identities)))
    assert [str(identity) for identity in source.ring().identities] == [str(identity) for identity in identities]
    assert "SECRET" not in repr(source)


@pytest.mark.parametrize("text", ["", "# only a comment", "age1qqq", "AGE-SECRET-KEY-1QQ"])
def test_unusable_keys_of_the_environment_name_the_setting(text: str) -> None:
    with pytest.raises(KeyUnusable, match="EXPORT_PIPELINE_KEYS holds"):
        keys.EnvironmentKeys(text).ring()


# --- of one run


def test_keys_of_a_run_are_for_it_and_others_alone() -> None:
    other = x25519.Identity.generate()
    ring = keys.RunKeys(other.to_public()).ring()
    sealed = bytearray()
    seal([b"text"], ring, sealed.extend)
    assert pyrage.decrypt(bytes(sealed), [other]) == b"text"
    assert b"".join(unseal([bytes(sealed)], ring)) == b"text"
    with pytest.raises(SealBroken):
        list(unseal([bytes(sealed)], keys.RunKeys().ring()))
