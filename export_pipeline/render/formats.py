"""Every format that can be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from export_pipeline.models import ExportFormat
from export_pipeline.pump import ahead
from export_pipeline.render.csv_archive import CsvRenderer
from export_pipeline.render.json_document import JsonRenderer
from export_pipeline.render.ndjson_archive import NdjsonRenderer
from export_pipeline.render.parquet_archive import ParquetRenderer
from export_pipeline.render.pdf_archive import PdfRenderer
from export_pipeline.render.renderer import Renderer
from export_pipeline.render.streams import gunzip

RENDERERS: dict[ExportFormat, Renderer] = {
    renderer.format: renderer
    for renderer in (JsonRenderer(), CsvRenderer(), NdjsonRenderer(), ParquetRenderer(), PdfRenderer())
}


def delivered(stored: Iterable[bytes], content_encoding: str) -> Iterator[bytes]:
    """Turn decrypted bytes of the store into the file that people get."""
    return ahead(gunzip(stored)) if content_encoding == "gzip" else iter(stored)
