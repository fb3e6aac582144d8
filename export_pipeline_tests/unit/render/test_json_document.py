"""The JSON document: what frames it must be read back alike, whatever stands in rows, names and the user's id."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render.json_document import JsonRenderer

RENDERER = JsonRenderer()
HOSTILE_VALUES = [
    "\n]",
    "\n],\n",
    '"]}',
    '"": [\n',
    '"data": {\n',
    "\u2028\u0085",
    "\x00\x1f",
    "é漢\U0001f600",
    "]" * 99,
]


def lines(*rows: object) -> tuple[bytes, int]:
    """Rows as the collector leaves them: one object a line, a comma at the end of every line but the last."""
    return ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(), len(rows)


def delivered(collected: Any) -> bytes:
    return gzip.decompress(collected.frame(RENDERER))


@pytest.fixture
def small(collected: Callable[..., Any]) -> Any:
    return collected({"clicks": lines({"id": 1}, {"id": 2}), "empty": lines(), "users": lines({"n": "é"})})


def test_it_is_the_specifications_document(small: Any) -> None:
    document = json.loads(delivered(small))
    assert document == {
        "user_id": "user-1",
        "request_id": "request-1",
        "export_date": "2026-11-24T05:30:16+00:00",
        "data": {"clicks": [{"id": 1}, {"id": 2}], "empty": [], "users": [{"n": "é"}]},
        "metadata": {"format_version": 1},
    }
    assert list(document["data"]) == ["clicks", "empty", "users"], "in the order of the plan"


def test_what_it_says_of_itself() -> None:
    assert (RENDERER.format, RENDERER.media_type, RENDERER.extension, RENDERER.content_encoding) == (
        ExportFormat.JSON,
        "application/json",
        "json",
        "gzip",
    )


@pytest.mark.parametrize("empty", [(), ("a",), ("a", "b"), ("c",), ("b", "c"), ("a", "b", "c")])
def test_empty_types_anywhere_leave_no_comma_behind(collected: Callable[..., Any], empty: tuple[str, ...]) -> None:
    export = collected({name: lines() if name in empty else lines({"of": name}) for name in "abc"})
    text = delivered(export)
    assert {name: len(rows) for name, rows in json.loads(text)["data"].items()} == {
        name: int(name not in empty) for name in "abc"
    }
    assert RENDERER.inspect([text]).parts == export.found


def test_a_document_without_types(collected: Callable[..., Any]) -> None:
    export = collected({})
    assert json.loads(delivered(export))["data"] == {}
    assert RENDERER.inspect([delivered(export)]).parts == {}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 10**6])
def test_inspect_finds_what_was_framed_however_it_is_cut(small: Any, size: int, cutting: Any) -> None:
    found = RENDERER.inspect(cutting.cut(delivered(small), size))
    assert found.parts == small.found
    assert found.manifest == small.manifest


def test_inspect_at_every_cut(small: Any) -> None:
    text = delivered(small)
    for at in range(len(text)):
        assert RENDERER.inspect([text[:at], b"", text[at:]]).parts == small.found


@pytest.mark.parametrize("size", [1, 10**6])
def test_rows_that_look_like_the_layout(collected: Callable[..., Any], size: int, cutting: Any) -> None:
    rows = [{value: value, "nested": [[value], [], {}]} for value in HOSTILE_VALUES]
    export = collected({"a": lines(*rows), "b": lines({"": ""})})
    text = delivered(export)
    assert json.loads(text)["data"]["a"] == rows
    assert RENDERER.inspect(cutting.cut(text, size)).parts == export.found


@pytest.mark.parametrize(
    "user_id", ['","data": {', '\n"data": {\n', "'; --", "\\", '\\"', "\u2028", "漢", "{}", "]\n},\n", '"user": [\n']
)
def test_user_ids_that_look_like_the_layout(collected: Callable[..., Any], user_id: str) -> None:
    export = collected({"a": lines({"id": 1})}, user_id=user_id, manifest={"title": user_id, "data": {"a": []}})
    text = delivered(export)
    assert json.loads(text)["user_id"] == user_id
    assert RENDERER.inspect([text]).parts == export.found
    assert RENDERER.inspect([text]).manifest == export.manifest


def test_types_that_share_a_beginning(collected: Callable[..., Any]) -> None:
    export = collected({name: lines({"of": name}) for name in ("user", "user_", "users", "user-s", "data", "metadata")})
    assert RENDERER.inspect([delivered(export)]).parts == export.found


def test_many_rows_are_counted(collected: Callable[..., Any], cutting: Any) -> None:
    export = collected({"a": lines(*({"id": number} for number in range(5000)))})
    assert RENDERER.inspect(cutting.cut(delivered(export), 4096)).parts["a"].rows == 5000


def test_cut_off_anywhere_is_noticed(small: Any) -> None:
    text = delivered(small)
    # The very last newline means nothing.
    for end in range(len(text) - 1):
        with pytest.raises(FileNotVerified):
            RENDERER.inspect([text[:end]])


def test_a_turned_bit_is_noticed_or_is_no_damage(small: Any, cutting: Any) -> None:
    text = delivered(small)
    original, inspected = json.loads(text), RENDERER.inspect([text])
    for damaged in cutting.flips(text):
        try:
            found = RENDERER.inspect([damaged])
        except FileNotVerified:
            continue
        if found == inspected:
            reread = json.loads(damaged.decode())
            assert list(reread) == list(original), damaged
            assert (reread["data"], reread["metadata"]) == (original["data"], original["metadata"])


def edited(small: Any, old: bytes, new: bytes) -> bytes:
    text = delivered(small)
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"empty": [\n]', b'"clicks": [\n]'),
        (b'"metadata": ', b'"metadata": [], "x": '),
        (b'"metadata": {\n "format_version": 1\n}', b'"metadata": []'),
        (b'"metadata": {\n "format_version": 1\n}', b'"metadata": 1'),
        (b'"metadata": ', b'"other": '),
        (b'"format_version"', b'"\xff"'),
        (b'"clicks": [\n', b'"\xff": [\n'),
        (b'],\n"users', b']xy"users'),
        (b'\n},\n"metadata', b'\n} "metadata'),
        (b'\n},\n"metadata', b' },\n"metadata'),
        (b'"user_id": "user-1",\n', b""),
        (b'"user_id": ', b'"user_id" '),
        (b'"user_id": "user-1"', b'"user_id": "\xff"'),
        (b'"format_version": 1', b'"format_version": ' + b"[" * 100_000),
        (b'{\n"user_id', b'[\n"user_id'),
    ],
)
def test_what_frame_would_not_write_is_refused(small: Any, old: bytes, new: bytes) -> None:
    with pytest.raises(FileNotVerified):
        RENDERER.inspect([edited(small, old, new)])


@pytest.mark.parametrize("text", [b"", b"{}", b"[]\n", b'{\n"data": {\n', b"PK\x03\x04" + bytes(100), b"\n" * 100])
def test_something_else_is_refused(text: bytes) -> None:
    with pytest.raises(FileNotVerified):
        RENDERER.inspect([text])


def test_text_behind_the_document_is_refused(small: Any) -> None:
    with pytest.raises(FileNotVerified):
        RENDERER.inspect([delivered(small) + b'{"more": 1}'])


def test_parts_are_copied_and_not_compressed_again(collected: Callable[..., Any]) -> None:
    export = collected({"a": lines(*({"id": number} for number in range(1000)))})
    packed = b"".join(export._read(export.parts[0]))
    assert packed in export.frame(RENDERER)
