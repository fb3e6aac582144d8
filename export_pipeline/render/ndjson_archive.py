"""NDJSON: a zip with one file per data type, a JSON object on each line, and the manifest."""

from __future__ import annotations

from collections.abc import Iterable

from export_pipeline.collect.statements import RowEncoding
from export_pipeline.models import ExportFormat
from export_pipeline.render.archive import ArchiveRenderer


class NdjsonRenderer(ArchiveRenderer):
    """``<data_type>.ndjson`` for every data type, empty when there is no row, and ``manifest.json``."""

    format = ExportFormat.NDJSON
    encoding = RowEncoding.NDJSON
    suffix = ".ndjson"

    def count(self, content: Iterable[bytes]) -> int:
        """Count lines: a newline ends each, the last one too, and stands nowhere else."""
        return sum(piece.count(b"\n") for piece in content)
