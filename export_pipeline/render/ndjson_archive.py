"""NDJSON: a zip with one file per data type, a JSON object on each line, and the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from export_pipeline.collect.statements import RowEncoding
from export_pipeline.models import ExportFormat
from export_pipeline.render.archive import ArchiveRenderer
from export_pipeline.render.renderer import FoundPart


class NdjsonRenderer(ArchiveRenderer):
    """``<data_type>.ndjson`` for every data type, empty when there is no row, and ``manifest.json``."""

    format = ExportFormat.NDJSON
    encoding = RowEncoding.NDJSON
    suffix = ".ndjson"

    def count(self, content: Iterable[bytes]) -> FoundPart:
        """Count lines: a newline ends each, the last one too, and stands nowhere else."""
        rows = size = 0
        sha256 = hashlib.sha256()
        for piece in content:
            rows += piece.count(b"\n")
            size += len(piece)
            sha256.update(piece)
        return FoundPart(rows=rows, size=size, sha256=sha256.hexdigest())
