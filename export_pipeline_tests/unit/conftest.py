"""What several unit tests need: parts without a source, and every way to cut a stream into chunks."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from export_pipeline.collect.parts import Part
from export_pipeline.render.renderer import Document, FoundPart, Renderer


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def make_part(data_type: str, content: bytes, rows: int) -> Part:
    return Part(
        data_type=data_type,
        key=f"work/{data_type}.part",
        snapshot_id="10:10:",
        rows_in_snapshot=rows,
        rows=rows,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        crc32=zlib.crc32(content),
        packed_size=len(raw_deflate(content)),
        seconds=0.1,
    )


@dataclass
class Collected:
    """Parts as the collector would have left them: data type → rendered rows and their number."""

    contents: dict[str, tuple[bytes, int]]
    user_id: str = "user-1"
    manifest: dict[str, Any] = field(default_factory=lambda: {"format_version": 1})

    @property
    def parts(self) -> list[Part]:
        return [make_part(name, content, rows) for name, (content, rows) in self.contents.items()]

    @property
    def document(self) -> Document:
        return Document(
            user_id=self.user_id,
            request_id="request-1",
            export_date=datetime(2026, 11, 24, 5, 30, 16, tzinfo=UTC),
            manifest=self.manifest,
        )

    def frame(self, renderer: Renderer) -> bytes:
        return b"".join(renderer.frame(self.document, self.parts, self._read))

    @property
    def found(self) -> dict[str, FoundPart]:
        return {part.data_type: FoundPart(rows=part.rows, size=part.size, sha256=part.sha256) for part in self.parts}

    def _read(self, part: Part) -> Iterator[bytes]:
        yield from cut(raw_deflate(self.contents[part.data_type][0]), 7)


def cut(data: bytes, size: int) -> list[bytes]:
    """`data` in chunks of `size`."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def all_cuts(data: bytes) -> Iterator[list[bytes]]:
    """`data` cut at every one and at every two places, into single bytes, and with empty chunks in between."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    yield [piece for at in range(len(data)) for piece in (b"", data[at : at + 1], b"")]
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            yield [data[:first], data[first:second], data[second:]]


def flips(data: bytes) -> Iterator[bytes]:
    """`data` with one bit turned: a low, a middle and the high one of every byte."""
    for at in range(len(data)):
        for bit in (0x01, 0x10, 0x80):
            yield data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


@pytest.fixture
def collected() -> Callable[..., Collected]:
    return Collected


class Cutting:
    """How tests cut and damage streams."""

    cut = staticmethod(cut)
    all_cuts = staticmethod(all_cuts)
    flips = staticmethod(flips)


@pytest.fixture(scope="session")
def cutting() -> Cutting:
    return Cutting()
