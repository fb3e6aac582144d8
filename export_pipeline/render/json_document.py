"""JSON: the specification's document. Every row stands on a line of its own, so that the file can be read back in a
stream; it is stored as gzip members, so that parts are copied and not compressed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from export_pipeline.collect.parts import Part
from export_pipeline.collect.statements import RowEncoding
from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render.renderer import Document, FoundPart, Inspection
from export_pipeline.render.streams import Scanner, gzip_member, gzip_text


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
        yield gzip_text((glue.rstrip(",\n") + "\n},\n" + _closing(document)).encode())

    def inspect(self, delivered: Iterable[bytes]) -> Inspection:
        """See `Renderer.inspect`."""
        scanner = Scanner(delivered)
        for _ in scanner.until(b'\n"data": {\n'):
            pass
        parts: dict[str, FoundPart] = {}
        while (first := scanner.exactly(1)) == b'"':
            name = b"".join(scanner.until(b'": [\n')).decode()
            parts[name] = _count(scanner)
            scanner.exactly(1 if scanner.exactly(1) == b"," else 0)
        if first != b"}":
            raise FileNotVerified("The file is not laid out as an export.")
        return Inspection(manifest=_metadata(scanner), parts=parts)


def _opening(document: Document) -> str:
    fields = {
        "user_id": document.user_id,
        "request_id": document.request_id,
        "export_date": document.export_date.isoformat(),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n" for name, value in fields.items()]
    return "{\n" + "".join(lines) + '"data": {\n'


def _closing(document: Document) -> str:
    return '"metadata": ' + json.dumps(document.manifest, ensure_ascii=False, indent=1) + "\n}\n"


def _count(scanner: Scanner) -> FoundPart:
    """Read an array: it ends at the first line that begins with a bracket, as no row does."""
    rows = size = 0
    sha256 = hashlib.sha256()
    if (first := scanner.exactly(1)) != b"]":
        rows = 1
        for piece in chain([first], scanner.until(b"\n]")):
            rows += piece.count(b"\n")
            size += len(piece)
            sha256.update(piece)
    return FoundPart(rows=rows, size=size, sha256=sha256.hexdigest())


def _metadata(scanner: Scanner) -> dict[str, object]:
    text = b"".join(scanner.rest()).decode()
    try:
        metadata = json.loads("{" + text.removeprefix(","))["metadata"]
    except (ValueError, KeyError):
        raise FileNotVerified("The file has no readable metadata.") from None
    return dict(metadata)
