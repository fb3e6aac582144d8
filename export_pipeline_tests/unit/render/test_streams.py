"""Streams arrive cut anywhere: at every place of a short text, in single bytes, with empty chunks in between."""

from __future__ import annotations

import gzip
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest

from export_pipeline.errors import FileNotVerified
from export_pipeline.render.streams import Scanner, gunzip, gzip_member, gzip_text, inflate

MIB = 1024 * 1024
TEXT = b"name \xc3\xa9\n\x00 tail" * 3


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


class TestScanner:
    @pytest.mark.parametrize(
        ("text", "marker", "before"),
        [
            (b'users": [\nrows', b'": [\n', b"users"),
            (b'": [\nrows', b'": [\n', b""),
            (b'users": [\n', b'": [\n', b"users"),
            (b"aaab.", b"aab", b"a"),
            (b"\n\n\n]x", b"\n]", b"\n\n"),
            (b'a": b": [": [\n', b'": [\n', b'a": b": ['),
            (b"abcMARKabcMARK", b"MARK", b"abc"),
            (b"a]b", b"]", b"a"),
        ],
    )
    def test_until_gives_what_stands_before_the_marker_however_the_stream_is_cut(
        self, text: bytes, marker: bytes, before: bytes, cutting: Any
    ) -> None:
        for chunks in cutting.all_cuts(text):
            scanner = Scanner(chunks)
            assert b"".join(scanner.until(marker)) == before, chunks
            assert b"".join(scanner.rest()) == text[len(before) + len(marker) :], chunks

    def test_until_finds_markers_one_after_the_other(self, cutting: Any) -> None:
        for chunks in cutting.all_cuts(b"a, b, , c"):
            scanner = Scanner(chunks)
            assert [b"".join(scanner.until(b", ")) for _ in range(3)] == [b"a", b"b", b""]
            assert b"".join(scanner.rest()) == b"c"

    def test_until_a_marker_that_never_comes_is_a_file_that_is_cut_off(self, cutting: Any) -> None:
        for chunks in cutting.all_cuts(b"abcMAR"):
            got = []
            with pytest.raises(FileNotVerified, match="cut off"):
                got += Scanner(chunks).until(b"MARK")

    def test_until_yields_early_what_cannot_belong_to_the_marker(self) -> None:
        pieces = Scanner(iter([b"x" * 1000, b"MARK"])).until(b"MARK")
        assert len(next(pieces)) >= 1000 - 3

    def test_exactly_gives_that_many_bytes(self, cutting: Any) -> None:
        for chunks in cutting.all_cuts(b"abcdef"):
            scanner = Scanner(chunks)
            assert [scanner.exactly(size) for size in (0, 1, 3, 2, 0)] == [b"", b"a", b"bcd", b"ef", b""]
            with pytest.raises(FileNotVerified):
                scanner.exactly(1)

    def test_pieces_give_that_many_bytes_and_leave_the_rest(self, cutting: Any) -> None:
        for chunks in cutting.all_cuts(b"abcdef"):
            scanner = Scanner(chunks)
            assert b"".join(scanner.pieces(0)) == b""
            assert b"".join(scanner.pieces(4)) == b"abcd"
            assert b"".join(scanner.rest()) == b"ef"

    def test_pieces_of_a_stream_that_ends_before(self, cutting: Any) -> None:
        for chunks in cutting.all_cuts(b"abc"):
            with pytest.raises(FileNotVerified, match="cut off"):
                list(Scanner(chunks).pieces(4))

    def test_a_stream_of_nothing(self) -> None:
        assert list(Scanner([]).rest()) == []
        with pytest.raises(FileNotVerified):
            Scanner([]).exactly(1)


class TestGzip:
    def test_a_member_is_what_gzip_reads(self) -> None:
        member = b"".join(gzip_member([raw_deflate(TEXT)], zlib.crc32(TEXT), len(TEXT)))
        assert gzip.decompress(member) == TEXT
        assert gzip.decompress(gzip_text(TEXT) + gzip_text(b"") + member) == TEXT * 2

    def test_a_member_carries_no_time_and_no_name(self) -> None:
        assert gzip_text(b"x")[3:8] == bytes(5)

    def test_the_size_of_a_large_member_wraps_as_the_format_says(self) -> None:
        (*_, trailer) = gzip_member([], 1, 5 * 2**32 + 7)
        assert struct.unpack("<LL", trailer) == (1, 7)

    def test_members_are_read_however_they_are_cut(self, cutting: Any) -> None:
        stream = gzip_text(b"one, ") + gzip_text(b"") + gzip.compress(b"two") + gzip_text(b", three")
        for chunks in cutting.all_cuts(stream):
            assert b"".join(gunzip(chunks)) == b"one, two, three"

    def test_a_member_with_a_name_is_read(self, cutting: Any) -> None:
        head = b"\x1f\x8b\x08\x08" + bytes(4) + b"\x02\xff" + b"a name\x00"
        stream = head + raw_deflate(TEXT) + struct.pack("<LL", zlib.crc32(TEXT), len(TEXT))
        assert gzip.decompress(stream) == TEXT
        for size in (1, 3, len(stream)):
            assert b"".join(gunzip(cutting.cut(stream, size))) == TEXT

    def test_cut_off_anywhere_is_noticed(self, cutting: Any) -> None:
        first, second = gzip_text(TEXT), gzip_text(b"second")
        stream = first + second
        for end in set(range(1, len(stream))) - {len(first)}:
            for size in (1, 5, len(stream)):
                with pytest.raises(FileNotVerified, match="cut off"):
                    list(gunzip(cutting.cut(stream[:end], size)))

    def test_a_turned_bit_is_noticed_or_changes_nothing(self, cutting: Any) -> None:
        for damaged in cutting.flips(gzip_text(TEXT)):
            for size in (1, len(damaged)):
                with suppress(FileNotVerified):
                    assert b"".join(gunzip(cutting.cut(damaged, size))) == TEXT

    @pytest.mark.parametrize("at", [-1, -4, -5, -8], ids=["size", "size", "checksum", "checksum"])
    def test_checksum_and_size_are_compared(self, at: int) -> None:
        damaged = bytearray(gzip_text(TEXT))
        damaged[at] ^= 1
        with pytest.raises(FileNotVerified):
            list(gunzip([bytes(damaged)]))

    @pytest.mark.parametrize("garbage", [b"garbage", b"\x00", b"\x1f\x8b", b"PK\x03\x04"])
    def test_what_follows_the_last_member_must_be_a_member(self, garbage: bytes, cutting: Any) -> None:
        for size in (1, 1000):
            with pytest.raises(FileNotVerified):
                list(gunzip(cutting.cut(gzip_text(TEXT) + garbage, size)))

    @pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 20 * MIB + 3])
    @pytest.mark.parametrize("chunk", [1, 64 * 1024])
    def test_a_bomb_is_defused_in_steps(self, size: int, chunk: int, cutting: Any) -> None:
        if chunk == 1 and size > 2 * MIB:
            size = 3 * MIB + 5
        lengths = [len(piece) for piece in gunzip(cutting.cut(gzip.compress(bytes(size)), chunk))]
        assert sum(lengths) == size
        assert max(lengths, default=0) <= MIB

    def test_output_that_waits_inside_is_not_lost_when_the_trailer_comes_later(self) -> None:
        bomb = gzip.compress(bytes(5 * MIB))
        for cut in range(1, 12):
            assert sum(map(len, gunzip([bomb[:-cut], bomb[-cut:]]))) == 5 * MIB


class TestInflate:
    def test_a_stream_is_read_however_it_is_cut(self, cutting: Any) -> None:
        for chunks in cutting.all_cuts(raw_deflate(TEXT)):
            assert b"".join(inflate(chunks)) == TEXT

    @pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 3, 20 * MIB])
    @pytest.mark.parametrize("chunk", [1, 7, 64 * 1024])
    def test_a_bomb_is_defused_in_steps(self, size: int, chunk: int, cutting: Any) -> None:
        if chunk < 64 * 1024 and size > 2 * MIB:
            size = 3 * MIB + 5
        lengths = [len(piece) for piece in inflate(cutting.cut(raw_deflate(bytes(size)), chunk))]
        assert sum(lengths) == size
        assert max(lengths, default=0) <= MIB

    def test_cut_off_anywhere_is_noticed(self) -> None:
        stream = raw_deflate(TEXT)
        for end in range(len(stream)):
            with pytest.raises(FileNotVerified, match="cut off"):
                list(inflate([stream[:end]]))

    def test_damage_is_an_error_of_ours_or_other_content(self, cutting: Any) -> None:
        for damaged in cutting.flips(raw_deflate(TEXT)):
            with suppress(FileNotVerified):
                b"".join(inflate([damaged]))

    @pytest.mark.parametrize("apart", [False, True])
    def test_nothing_may_hide_behind_the_end_of_the_stream(self, apart: bool) -> None:
        stream = raw_deflate(TEXT)
        with pytest.raises(FileNotVerified, match="damaged"):
            list(inflate([stream, b"hidden"] if apart else [stream + b"hidden"]))
