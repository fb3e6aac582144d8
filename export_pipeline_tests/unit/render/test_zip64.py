"""Archives: read by the standard library, by ourselves in a stream, and by nobody when a single bit is wrong."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.errors import FileNotVerified
from export_pipeline.render import zip64
from export_pipeline.render.zip64 import Member

MODIFIED = datetime(2026, 11, 24, 23, 59, 58, tzinfo=UTC)
GIB = 2**30
FILES = {
    "users.csv": b"id,name\n1,Ada\n",
    "Gr\u00f6\u00dfe \u6f22\u5b57 \U0001f600.csv": "\u00e9\n".encode(),
    "empty.csv": b"",
    "large.csv": b"row\n" * 100_000,
}


def archive_of(files: dict[str, bytes]) -> bytes:
    return b"".join(zip64.write((zip64.text_member(name, text) for name, text in files.items()), MODIFIED))


def stored(name: str, text: bytes) -> Member:
    return Member(
        name=name, size=len(text), crc32=zlib.crc32(text), packed_size=len(text), packed=[text], deflated=False
    )


def read_all(chunks: Any) -> dict[str, bytes]:
    return {member.name: b"".join(member.content) for member in zip64.read(chunks)}


SMALL = b"".join(zip64.write([zip64.text_member("\u00e9.csv", b"id\n1\n"), stored("b.csv", b"id\n")], MODIFIED))


class TestWrite:
    def test_the_standard_library_reads_it(self) -> None:
        with zipfile.ZipFile(io.BytesIO(archive_of(FILES))) as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist()} == FILES

    def test_members_stand_in_order_with_time_and_owner_only_mode(self) -> None:
        with zipfile.ZipFile(io.BytesIO(archive_of(FILES))) as archive:
            assert archive.namelist() == list(FILES)
            for info in archive.infolist():
                assert info.date_time == (2026, 11, 24, 23, 59, 58)
                assert stat.S_IMODE(info.external_attr >> 16) == 0o600
                assert info.flag_bits & 0x800, "names are UTF-8"

    def test_a_stored_member(self) -> None:
        with zipfile.ZipFile(io.BytesIO(SMALL)) as archive:
            assert archive.getinfo("b.csv").compress_type == zipfile.ZIP_STORED
            assert archive.read("b.csv") == b"id\n"

    def test_an_archive_of_nothing(self) -> None:
        with zipfile.ZipFile(io.BytesIO(archive_of({}))) as archive:
            assert archive.namelist() == []

    def test_it_is_a_stream_that_asks_for_one_member_at_a_time(self) -> None:
        asked = []

        def members() -> Iterator[Member]:
            for name in ("a", "b"):
                asked.append(name)
                yield zip64.text_member(name, b"x")

        stream = zip64.write(members(), MODIFIED)
        next(stream)
        assert asked == ["a"]

    def test_headers_carry_sizes_and_offsets_above_4_gib(self) -> None:
        sizes = {"one": (6 * GIB, 5 * GIB), "two": (2**40, 9 * GIB), "three": (3, 3)}
        members = [
            Member(name=name, size=size, crc32=7, packed_size=packed, packed=[])
            for name, (size, packed) in sizes.items()
        ]
        *locals_, central, end = zip64.write(members, MODIFIED)
        offset = 0
        for header, (name, (size, packed)) in zip(locals_, sizes.items(), strict=True):
            assert header[18:26] == b"\xff" * 8, "the 32-bit sizes say: look into the extra field"
            extra = header[30 + len(name) :]
            assert struct.unpack("<HHQQ", extra) == (1, 16, size, packed)
            entry, central = central[: 46 + len(name) + 28], central[46 + len(name) + 28 :]
            assert entry[42:46] == b"\xff" * 4
            assert struct.unpack("<HHQQQ", entry[46 + len(name) :]) == (1, 24, size, packed, offset)
            offset += len(header) + packed
        assert central == b""
        end64, locator = end[:56], end[56:76]
        entries = struct.unpack("<QQ", end64[24:40])
        length, start = struct.unpack("<QQ", end64[40:56])
        assert entries == (3, 3)
        assert start == offset
        assert struct.unpack("<Q", locator[8:16]) == (offset + length,)

    def test_the_standard_library_finds_a_member_behind_5_gib(self, tmp_path: Path) -> None:
        hole = object()
        members = [
            Member(name="hole", size=5 * GIB, crc32=0, packed_size=5 * GIB, packed=[hole], deflated=False),  # type: ignore[list-item]
            zip64.text_member("after.csv", b"id\n1\n"),
        ]
        file = tmp_path / "sparse.zip"
        with file.open("wb") as out:
            for chunk in zip64.write(members, MODIFIED):
                if chunk is hole:
                    out.seek(5 * GIB, io.SEEK_CUR)
                else:
                    out.write(chunk)
        with zipfile.ZipFile(file) as archive:
            assert archive.getinfo("hole").file_size == 5 * GIB
            assert archive.read("after.csv") == b"id\n1\n"
        file.unlink()


class TestRead:
    @pytest.mark.parametrize("size", [1, 2, 7, 1000, 10**6])
    def test_it_reads_what_write_made_however_it_is_cut(self, size: int, cutting: Any) -> None:
        assert read_all(cutting.cut(archive_of(FILES), size)) == FILES

    def test_cut_at_every_place(self) -> None:
        for at in range(len(SMALL)):
            assert read_all([SMALL[:at], b"", SMALL[at:]]) == {"\u00e9.csv": b"id\n1\n", "b.csv": b"id\n"}

    def test_an_archive_of_nothing(self) -> None:
        assert read_all([archive_of({})]) == {}

    def test_cut_off_anywhere_is_noticed(self, cutting: Any) -> None:
        for end in range(len(SMALL)):
            for size in (1, len(SMALL)):
                with pytest.raises(FileNotVerified):
                    read_all(cutting.cut(SMALL[:end], size))

    def test_every_turned_bit_is_noticed(self, cutting: Any) -> None:
        accepted = []
        for damaged in cutting.flips(SMALL):
            try:
                accepted.append((read_all([damaged]), damaged))
            except FileNotVerified:
                continue
        # The last byte of a deflate stream has bits that mean nothing; whoever reads the archive gets the same.
        assert len(accepted) <= 2
        for files, damaged in accepted:
            with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
                assert files == read_all([SMALL]) == {name: archive.read(name) for name in archive.namelist()}

    def test_nothing_may_follow(self) -> None:
        for more in (b"\0", SMALL):
            with pytest.raises(FileNotVerified):
                read_all([SMALL + more])

    def test_a_member_twice_is_refused(self) -> None:
        twice = b"".join(zip64.write([zip64.text_member("a", b"1"), zip64.text_member("a", b"2")], MODIFIED))
        with pytest.raises(FileNotVerified):
            read_all([twice])

    def test_bytes_that_hide_behind_a_members_stream_are_refused(self) -> None:
        honest = zip64.text_member("a", b"text")
        packed = b"".join(honest.packed) + b"hidden"
        hiding = Member(name="a", size=4, crc32=honest.crc32, packed_size=len(packed), packed=[packed])
        with pytest.raises(FileNotVerified):
            read_all(zip64.write([hiding], MODIFIED))

    def test_a_member_that_lies_about_its_content_is_refused(self) -> None:
        packed = zlib.compress(b"text", wbits=-15)
        for size, crc32 in ((5, zlib.crc32(b"text")), (4, 0)):
            lying = Member(name="a", size=size, crc32=crc32, packed_size=len(packed), packed=[packed])
            with pytest.raises(FileNotVerified, match="damaged"):
                read_all(zip64.write([lying], MODIFIED))

    def test_an_archive_of_another_program_is_refused(self) -> None:
        other = io.BytesIO()
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("a.csv", "x")
        with pytest.raises(FileNotVerified, match="not made by this program"):
            read_all([other.getvalue()])

    @pytest.mark.parametrize("text", [b"", b"PK", b"{}\n" * 50, bytes(100)])
    def test_something_else_is_refused(self, text: bytes) -> None:
        with pytest.raises(FileNotVerified):
            read_all([text])

    def test_a_bomb_comes_out_in_steps(self) -> None:
        bomb = archive_of({"a": bytes(30 * 2**20)})
        for member in zip64.read([bomb]):
            lengths = [len(piece) for piece in member.content]
        assert sum(lengths) == 30 * 2**20
        assert max(lengths) <= 2**20
