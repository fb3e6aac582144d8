"""The CSV archive: records are counted right whatever stands in the values and wherever the stream is cut."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render import zip64
from export_pipeline.render.csv_archive import CsvRenderer

RENDERER = CsvRenderer()
HOSTILE_VALUES = [
    '"',
    '""',
    '"\n"',
    "\n",
    "\r\n",
    "\r",
    ",",
    "\\.",
    "a\n\nb",
    '"a"\n',
    "",
    " ",
    "é漢\U0001f600",
    "=1+1",
]


def table(header: list[str], *rows: list[str]) -> tuple[bytes, int]:
    """A table as RFC 4180 has it, with lines that end as PostgreSQL's do."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().encode(), len(rows)


@pytest.fixture
def small(collected: Callable[..., Any]) -> Any:
    return collected({"users": table(["id", "name"], ["1", 'A "x"\ny']), "empty": table(["id"])})


def open_zip(export: Any) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(export.frame(RENDERER)))


def archive(**members: bytes) -> bytes:
    files = (zip64.text_member(name.replace("__", "."), text) for name, text in members.items())
    return b"".join(zip64.write(files, datetime(2026, 1, 1, tzinfo=UTC)))


def test_it_holds_one_file_for_each_type_and_the_manifest(small: Any) -> None:
    with open_zip(small) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["users.csv", "empty.csv", "manifest.json"]
        assert opened.read("empty.csv") == b"id\n"
        assert json.loads(opened.read("manifest.json")) == {"user_id": "user-1", **small.manifest}
        with opened.open("users.csv") as file:
            rows = list(csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline="")))
    assert rows == [["id", "name"], ["1", 'A "x"\ny']]


def test_what_it_says_of_itself() -> None:
    assert (RENDERER.format, RENDERER.media_type, RENDERER.extension, RENDERER.content_encoding) == (
        ExportFormat.CSV,
        "application/zip",
        "zip",
        "identity",
    )


def test_members_carry_the_export_date_in_utc(small: Any) -> None:
    with open_zip(small) as opened:
        assert {info.date_time for info in opened.infolist()} == {(2026, 11, 24, 5, 30, 16)}


@pytest.mark.parametrize("size", [1, 2, 3, 64, 10**6])
def test_inspect_finds_what_was_framed_however_it_is_cut(small: Any, size: int, cutting: Any) -> None:
    found = RENDERER.inspect(cutting.cut(small.frame(RENDERER), size))
    assert found.parts == small.found
    assert {name: found.manifest[name] for name in small.manifest} == small.manifest


@pytest.mark.parametrize("value", HOSTILE_VALUES)
def test_a_record_with_such_a_value_is_one_record(collected: Callable[..., Any], value: str) -> None:
    export = collected({"t": table([value, "b"], [value, value], ["x", value], [value, "y"])})
    assert RENDERER.inspect([export.frame(RENDERER)]).parts["t"].rows == 3


def test_counting_does_not_depend_on_where_the_content_is_cut(collected: Callable[..., Any]) -> None:
    """Stored members reach the counter exactly as they are cut."""
    content, rows = table(['he "said"\n', "b"], ['"', "\n"], ['a""\n"', '"\n\n"'], ["", '""'])
    head, tail = archive_around(content)
    for first in range(len(content) + 1):
        for second in range(first, len(content) + 1):
            chunks = [head, content[:first], content[first:second], content[second:], tail]
            assert RENDERER.inspect(chunks).parts["t"].rows == rows, (first, second)
    assert RENDERER.inspect([head, *(bytes([byte]) for byte in content), tail]).parts["t"].rows == rows


def archive_around(content: bytes) -> tuple[bytes, bytes]:
    """An archive whose first member is `content`, not compressed: what stands before it and behind it."""
    deflated = zip64.text_member("t.csv", content)
    stored = zip64.Member(
        name="t.csv", size=len(content), crc32=deflated.crc32, packed_size=len(content), packed=[], deflated=False
    )
    manifest = zip64.text_member("manifest.json", b"{}")
    head, *tail = zip64.write([stored, manifest], datetime(2026, 1, 1, tzinfo=UTC))
    return head, b"".join(tail)


def test_a_type_without_rows_counts_as_zero(small: Any) -> None:
    assert RENDERER.inspect([small.frame(RENDERER)]).parts["empty"].rows == 0


def test_an_archive_without_a_manifest_is_refused() -> None:
    with pytest.raises(FileNotVerified, match="manifest"):
        RENDERER.inspect([archive(t__csv=b"id\n")])


@pytest.mark.parametrize("manifest", [b"", b"{", b"\xff", b"[]", b"1", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(manifest: bytes) -> None:
    with pytest.raises(FileNotVerified, match="manifest"):
        RENDERER.inspect([archive(t__csv=b"id\n", manifest__json=manifest)])


def test_damage_is_noticed_and_nothing_but_an_error_of_ours(small: Any, cutting: Any) -> None:
    text = small.frame(RENDERER)
    for end in range(len(text)):
        with pytest.raises(FileNotVerified):
            RENDERER.inspect([text[:end]])
    for damaged in cutting.flips(text):
        # Accepted are only bits that mean nothing: those behind the last code of a deflate stream.
        with suppress(FileNotVerified):
            assert RENDERER.inspect([damaged]).parts == small.found


def test_parts_are_copied_and_not_compressed_again(small: Any) -> None:
    packed = b"".join(small._read(small.parts[0]))
    assert packed in small.frame(RENDERER)
