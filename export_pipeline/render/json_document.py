"""JSON: the specification's document. Every row stands on a line of its own, so that the file can be read back in a
stream; it is stored as gzip members, so that parts are copied and not compressed again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from export_pipeline.collect.parts import Part
from export_pipeline.collect.statements import RowEncoding
from export_pipeline.errors import FileNotVerified
from export_pipeline.models import DATA_TYPE_PATTERN, ExportFormat
from export_pipeline.render.renderer import Document, FoundPart, Inspection
from export_pipeline.render.streams import (
    MANIFEST_MOST,
    Digest,
    Scanner,
    gathered,
    gzip_member,
    gzip_text,
    json_object,
)

_OPENING_MOST = 64 * 1024
_OPENING = ("user_id", "request_id", "export_date")


class JsonRenderer:
    """``{"user_id", "request_id", "export_date", "data": {type: [row, …]}, "metadata"}``."""

    format = ExportFormat.JSON
    encoding = RowEncoding.JSON
    media_type = "application/json"
    extension = "json"
    content_encoding = "gzip"

    def frame(
        self, document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]]
    ) -> Iterator[bytes]:
        """See `Renderer.frame`."""
        glue = _opening(document)
        for part in parts:
            yield gzip_text((glue + json.dumps(part.data_type) + ": [\n").encode())
            yield from gzip_member(read(part), part.crc32, part.size)
            glue = ("\n" if part.rows else "") + "],\n"
        yield gzip_text((glue.rstrip(",\n") + "\n},\n" + _closing(document.stated())).encode())

    def inspect(self, delivered: Iterable[bytes]) -> Inspection:
        """See `Renderer.inspect`."""
        scanner = Scanner(delivered)
        opening = _read_opening(gathered(scanner.until(b',\n"data": {\n'), _OPENING_MOST, "opening"))
        parts: dict[str, FoundPart] = {}
        after = scanner.exactly(1)
        while after.endswith(b'"'):
            name = gathered(scanner.until(b'": [\n'), _OPENING_MOST, "name of a data type").decode(errors="replace")
            if name in parts or not DATA_TYPE_PATTERN.fullmatch(name):
                raise _strange()
            parts[name] = _count(scanner)
            after = scanner.exactly(3)
            if after not in {b',\n"', b"\n},"}:
                raise _strange()
        if after == b"}":
            after += scanner.exactly(1)
        if not after.endswith(b"},"):
            raise _strange()
        metadata = _metadata(scanner)
        if any(metadata.get(name, opening[name]) != opening[name] for name in ("request_id", "export_date")):
            raise FileNotVerified("The beginning of the file does not agree with its metadata.")
        return Inspection(manifest=metadata, parts=parts, user_id=opening["user_id"])


def _strange() -> FileNotVerified:
    return FileNotVerified("The file is not laid out as an export.")


def _opening(document: Document) -> str:
    values = (document.user_id, document.request_id, document.export_date.isoformat())
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n"
        for name, value in zip(_OPENING, values, strict=True)
    ]
    return "{\n" + "".join(lines) + '"data": {\n'


def _closing(manifest: dict[str, Any]) -> str:
    return '"metadata": ' + json.dumps(manifest, ensure_ascii=False, indent=1) + "\n}\n"


def _count(scanner: Scanner) -> FoundPart:
    """Read an array: it ends at the first line that begins with a bracket, as no row does."""
    rows, digest = 0, Digest()
    if (first := scanner.exactly(1)) != b"]":
        rows = 1
        for piece in digest.watch(chain([first], scanner.until(b"\n]"))):
            rows += piece.count(b"\n")
    return FoundPart(rows=rows, size=digest.size, sha256=digest.sha256)


def _read_opening(text: bytes) -> dict[str, str]:
    fields = json_object(text + b"}", "opening")
    if list(fields) != list(_OPENING) or not all(isinstance(value, str) for value in fields.values()):
        raise _strange()
    return fields


def _metadata(scanner: Scanner) -> dict[str, Any]:
    text = gathered(scanner.rest(), MANIFEST_MOST, "metadata")
    closing = json_object(b"{" + text, "metadata")
    metadata = closing.get("metadata")
    if list(closing) != ["metadata"] or not isinstance(metadata, dict):
        raise FileNotVerified("The file has no readable metadata.")
    if text != b"\n" + _closing(metadata).encode():
        # JSON can say the same in many ways, such as a key twice; we say it in one.
        raise _strange()
    return metadata
