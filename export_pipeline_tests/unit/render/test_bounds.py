"""Files that are none, and files made to hurt: refused before they are in memory."""

from __future__ import annotations

import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path

import pytest
from isal import isal_zlib

from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render import archive, json_document, pdf_archive, streams, zip64
from export_pipeline.render.formats import RENDERERS
from export_pipeline.verify import verify

MIB = 1024 * 1024
MANY = 64


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of gigabytes would take their time."""
    for module in (streams, archive, json_document):
        monkeypatch.setattr(module, "MANIFEST_MOST", 4 * MIB)
    monkeypatch.setattr("export_pipeline.verify.MANIFEST_MOST", 4 * MIB)
    monkeypatch.setattr(pdf_archive, "_VOLUME_MOST", 4 * MIB)


@pytest.fixture(autouse=True)
def frugal() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


def blanks() -> Iterator[bytes]:
    return repeat(b" " * MIB, MANY)


def document(*beginnings: bytes) -> Iterator[bytes]:
    yield from beginnings
    yield from blanks()


def swollen(name: str) -> Iterator[bytes]:
    """An archive whose one member is a few kilobytes of nothing, a thousand times as large."""
    compressor = isal_zlib.compressobj(3, isal_zlib.DEFLATED, -15)
    packed, crc32 = bytearray(), 0
    for piece in blanks():
        packed += compressor.compress(piece)
        crc32 = isal_zlib.crc32(piece, crc32)
    packed += compressor.flush()
    member = zip64.Member(name=name, size=MANY * MIB, crc32=crc32, packed_size=len(packed), packed=[bytes(packed)])
    return zip64.write([member], datetime(2026, 11, 24, tzinfo=UTC))


BEGUN = b'{\n"user_id": "u",\n"request_id": "r",\n"export_date": "d",\n"data": {\n'
REFUSED: dict[str, tuple[ExportFormat, Callable[[], Iterator[bytes]]]] = {
    "opening": (ExportFormat.JSON, lambda: document(b"{\n")),
    "name": (ExportFormat.JSON, lambda: document(BEGUN, b'"')),
    "metadata": (ExportFormat.JSON, lambda: document(BEGUN, b"},")),
    "manifest": (ExportFormat.CSV, lambda: swollen("manifest.json")),
    "manifest beside a report": (ExportFormat.PDF, lambda: swollen("manifest.json")),
    "volume": (ExportFormat.PDF, lambda: swollen("report.pdf")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_far_too_large_is_refused(case: str) -> None:
    form, made = REFUSED[case]
    with pytest.raises(FileNotVerified, match="has no readable"):
        RENDERERS[form].inspect(made())


def test_so_is_it_when_only_its_format_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "export.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made, made.open("manifest.json", "w") as manifest:
        for piece in blanks():
            manifest.write(piece)
    with pytest.raises(FileNotVerified, match="has no readable manifest"):
        verify(file)


def test_whatever_is_wrong_with_an_archive_is_said_alike(tmp_path: Path) -> None:
    """The standard library has a dozen words for it, and some are those of other modules."""
    file = tmp_path / "export.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("manifest.json", json.dumps({"format": "csv", "parts": [str(number) for number in range(300)]}))
    whole, chance = file.read_bytes(), random.Random(20261124)
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged)
        with pytest.raises(FileNotVerified):
            verify(file)
