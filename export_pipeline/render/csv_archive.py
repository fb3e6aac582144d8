"""CSV: a zip with one RFC 4180 file per data type, as PostgreSQL renders it, and the manifest."""

from __future__ import annotations

from collections.abc import Iterable

from export_pipeline.collect.statements import RowEncoding
from export_pipeline.models import ExportFormat
from export_pipeline.render.archive import ArchiveRenderer

_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'"\n'))


class CsvRenderer(ArchiveRenderer):
    """``<data_type>.csv`` for every data type, with a header even when there is no row, and ``manifest.json``."""

    format = ExportFormat.CSV
    encoding = RowEncoding.CSV
    suffix = ".csv"

    def count(self, content: Iterable[bytes]) -> int:
        """Count records: newlines outside quotes, less the header."""
        rows, quoted = -1, 0
        for piece in content:
            # Only quotes and newlines matter, and two quotes with no newline between them change nothing.
            marks = piece.translate(None, _ALL_BUT_MARKS).replace(b'""', b"")
            # Between two quotes lies a quoted text; a doubled quote inside it opens an empty text outside.
            texts = marks.split(b'"')
            rows += sum(map(len, texts[quoted::2]))
            quoted ^= (len(texts) - 1) & 1
        return rows
