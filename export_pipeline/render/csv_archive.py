"""CSV: a zip with one RFC 4180 file per data type, as PostgreSQL renders it, and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC

from export_pipeline.collect.parts import Part
from export_pipeline.collect.statements import RowEncoding
from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render import zip64
from export_pipeline.render.renderer import Document, FoundPart, Inspection
from export_pipeline.render.streams import json_object

_MANIFEST = "manifest.json"
_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'"\n'))


class CsvRenderer:
    """``<data_type>.csv`` for every data type, with a header even when there is no row, and ``manifest.json``."""

    format = ExportFormat.CSV
    encoding = RowEncoding.CSV
    media_type = "application/zip"
    extension = "zip"
    content_encoding = "identity"

    def frame(
        self, document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]]
    ) -> Iterator[bytes]:
        """See `Renderer.frame`."""
        return zip64.write(_members(document, parts, read), document.export_date.astimezone(UTC))

    def inspect(self, delivered: Iterable[bytes]) -> Inspection:
        """See `Renderer.inspect`."""
        manifest = None
        parts: dict[str, FoundPart] = {}
        for member in zip64.read(delivered):
            if member.name == _MANIFEST:
                manifest = json_object(b"".join(member.content), "manifest")
            else:
                parts[member.name.removesuffix(".csv")] = _count(member.content)
        if manifest is None:
            raise FileNotVerified("The archive holds no manifest.")
        return Inspection(manifest=manifest, parts=parts)


def _members(
    document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]]
) -> Iterator[zip64.Member]:
    for part in parts:
        yield zip64.Member(
            name=f"{part.data_type}.csv",
            size=part.size,
            crc32=part.crc32,
            packed_size=part.packed_size,
            packed=read(part),
        )
    manifest = {"user_id": document.user_id, **document.manifest}
    yield zip64.text_member(_MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode())


def _count(content: Iterable[bytes]) -> FoundPart:
    """Count records: newlines outside quotes, less the header."""
    rows, size, quoted = -1, 0, 0
    sha256 = hashlib.sha256()
    for piece in content:
        size += len(piece)
        sha256.update(piece)
        # Only quotes and newlines matter, and two quotes with no newline between them change nothing.
        marks = piece.translate(None, _ALL_BUT_MARKS).replace(b'""', b"")
        # Between two quotes lies a quoted text; a doubled quote inside it opens an empty text outside.
        texts = marks.split(b'"')
        rows += sum(map(len, texts[quoted::2]))
        quoted ^= (len(texts) - 1) & 1
    return FoundPart(rows=rows, size=size, sha256=sha256.hexdigest())
