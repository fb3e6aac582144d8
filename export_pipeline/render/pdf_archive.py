"""PDF: a zip with the report in one or more volumes, the complete data files that it refers to, and the manifest."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from export_pipeline.collect.parts import Part
from export_pipeline.collect.statements import RowEncoding
from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render import zip64
from export_pipeline.render.archive import MANIFEST, read_manifest
from export_pipeline.render.ndjson_archive import NdjsonRenderer
from export_pipeline.render.renderer import Document, Inspection
from export_pipeline.render.streams import gathered, inflate

_MAGIC = b"%PDF-"
#: Bytes of a volume; a full one has some two million.
_VOLUME_MOST = 256 * 1024 * 1024
#: Levels of a value that is printed as it stands, and signs of a row that may hold one.
_DEEP = 100
_LONG_NUMBER = 4000
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]', re.DOTALL)


class PdfRenderer(NdjsonRenderer):
    """``report.pdf`` (and ``report-002.pdf`` …), ``<data_type>.ndjson`` for every data type, ``manifest.json``.

    Rows cannot be read back exactly from paper, and a quarter of a million of them is no report: the data files hold
    everything, and are what is counted when the file is read back. The manifest in the file lists the volumes.
    """

    format = ExportFormat.PDF
    encoding = RowEncoding.NDJSON

    def frame(
        self, document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]]
    ) -> Iterator[bytes]:
        """See `Renderer.frame`."""
        return zip64.write(self._all_members(document, parts, read), document.export_date.astimezone(UTC))

    def inspect(self, delivered: Iterable[bytes]) -> Inspection:
        """See `Renderer.inspect`."""
        manifest = None
        parts, volumes = {}, []
        for member in zip64.read(delivered):
            if member.name == MANIFEST:
                manifest = read_manifest(member.content)
            elif member.name.endswith(".pdf"):
                volumes.append(_stated(member.name, gathered(member.content, _VOLUME_MOST, "volume")))
            elif member.name.endswith(self.suffix):
                parts[member.name.removesuffix(self.suffix)] = self.found(member.content)
            else:
                raise FileNotVerified("The archive holds something that no export holds.")
        if manifest is None:
            raise FileNotVerified("The archive holds no manifest.")
        if manifest.get("volumes") != volumes or not volumes:
            raise FileNotVerified("The volumes of the report are not those that the manifest names.")
        return Inspection(manifest=manifest, parts=parts, user_id=manifest.get("user_id"))

    def _all_members(
        self, document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]]
    ) -> Iterator[zip64.Member]:
        from export_pipeline.render.pdf import render_report

        volumes = []
        by_type = {part.data_type: part for part in parts}
        for volume in render_report(_report(document), lambda section: _rows(read(by_type[section.data_type]))):
            volumes.append(_stated(volume.name, volume.content))
            yield _plain_member(volume.name, volume.content)
        yield from self._members(document, parts, read, volumes=volumes)


def _report(document: Document) -> Any:
    from export_pipeline.render.pdf import Report, ReportSection

    contents = document.manifest
    return Report(
        request_id=document.request_id,
        user_id=document.user_id,
        request_type=contents["request_type"],
        requested_at=datetime.fromisoformat(contents["requested_at"]),
        snapshot_at=datetime.fromisoformat(contents["snapshot"]["taken_at"]),
        export_date=document.export_date,
        sections=tuple(
            ReportSection(
                data_type=part["data_type"],
                title=part["title"],
                columns=tuple(part["columns"]),
                rows_total=part["rows"],
                note=_note(part["altered"]),
                data_file=f"{part['data_type']}.ndjson",
            )
            for part in contents["parts"]
        ),
        not_exported=tuple((missing["data_type"], missing["reason"]) for missing in contents["not_exported"]),
    )


def _note(altered: Sequence[dict[str, str]]) -> str:
    if not altered:
        return ""
    named = ", ".join(f"{entry['column']} ({_DONE[entry['policy']]})" for entry in altered)
    return f"Some details were altered to protect people: {named}."


_DONE = {
    "drop": "left out",
    "mask": "masked",
    "hash": "replaced by a code",
    "truncate": "made less precise",
    "replace": "replaced",
}


def _rows(packed: Iterator[bytes]) -> Iterator[list[Any]]:
    """Values of each row, in the order of the columns; a float keeps its digits."""
    begun: list[bytes] = []
    with closing(packed) as opened:  # type: ignore[type-var]
        for piece in inflate(opened):
            first, *others = piece.split(b"\n")
            begun.append(first)
            if others:
                yield _values(b"".join(begun))
                *lines, last = others
                yield from map(_values, lines)
                begun = [last]


def _values(line: bytes) -> list[Any]:
    if line.count(b"[") + line.count(b"{") <= _DEEP:
        return list(_decoded(line).values())
    # Python's decoder gives up at some hundred levels, and so do those who walk through what it gives.
    return [text if depth > _DEEP else _decoded(text) for text, depth in _members(line.decode())]


def _decoded(text: str | bytes) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=_whole)


def _whole(digits: str) -> int | Decimal:
    """Python refuses to make an int of thousands of digits."""
    return int(digits) if len(digits) <= _LONG_NUMBER else Decimal(digits)


def _members(row: str) -> Iterator[tuple[str, int]]:
    """The text of each value of a row, and how many levels it has."""
    depth = deepest = start = 0
    for token in _TOKEN.finditer(row):
        sign = row[token.start()]
        if depth == 1 and sign == ":":
            start, deepest = token.end(), 0
        elif sign in "[{":
            depth += 1
            deepest = max(deepest, depth - 1)
        elif depth == 1 and sign in ",}":
            yield row[start : token.start()].strip(), deepest
        elif sign in "]}":
            depth -= 1


def _plain_member(name: str, content: bytes) -> zip64.Member:
    return zip64.Member(
        name=name,
        size=len(content),
        crc32=zlib.crc32(content),
        packed_size=len(content),
        packed=[content],
        deflated=False,
    )


def _stated(name: str, content: bytes) -> dict[str, Any]:
    if not content.startswith(_MAGIC):
        raise FileNotVerified("A volume of the report is no PDF.")
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
