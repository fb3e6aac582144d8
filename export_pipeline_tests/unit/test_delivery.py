"""Writing what is delivered, in the clear, to a file: whole or not at all, and for its owner only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipeline.delivery import write
from export_pipeline.errors import ConfigurationError, SealBroken


def broken() -> Iterator[bytes]:
    yield b"half"
    raise SealBroken("The sealed file is damaged.")


def test_a_file_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    write([b"a", b"b"], file)
    assert file.read_bytes() == b"ab"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("bait", ["file", "link"])
def test_what_somebody_else_put_there_before_gets_nothing(tmp_path: Path, bait: str) -> None:
    file, elsewhere = tmp_path / "export.json", tmp_path / "elsewhere"
    elsewhere.touch(0o666)
    guessed = tmp_path / f".export.json.{os.getpid()}.part"
    if bait == "link":
        guessed.symlink_to(elsewhere)
    else:
        guessed.hardlink_to(elsewhere)
    file.symlink_to(elsewhere)
    write([b"personal"], file)
    assert elsewhere.read_bytes() == b""
    assert (file.read_bytes(), file.is_symlink()) == (b"personal", False)


def test_half_a_file_is_none(tmp_path: Path) -> None:
    with pytest.raises(SealBroken):
        write(broken(), tmp_path / "export.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["absent/export.json", "file/export.json", "folder", ".", "/"])
def test_where_nothing_can_be_written_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write([b"x"], tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
