"""Parquet: a zip with one file per data type, stored as it is because it compresses itself, and the manifest."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable

from export_pipeline.collect.statements import RowEncoding
from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render.archive import ArchiveRenderer

#: The footer stands at the end and says its size last; the collector makes row groups large enough to keep it small.
_LONGEST_FOOTER = 8 * 1024 * 1024
_ENDING = struct.Struct("<L4s")
_MAGIC = b"PAR1"


class ParquetRenderer(ArchiveRenderer):
    """``<data_type>.parquet`` for every data type, without row groups when there is no row, and ``manifest.json``."""

    format = ExportFormat.PARQUET
    encoding = RowEncoding.PARQUET
    suffix = ".parquet"
    deflated = False

    def count(self, content: Iterable[bytes]) -> int:
        """Read the rows off the footer, once the member is known to be whole: only its end is kept."""
        end = _End(_LONGEST_FOOTER)
        for piece in content:
            end.add(piece)
        return _rows(end)


class _End:
    """The end of a stream.

    Args:
        size: Bytes to keep.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = 0
        self._pieces: deque[bytes] = deque()

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._kept += len(piece)
        while self._kept - len(self._pieces[0]) >= self._size:
            self._kept -= len(self._pieces.popleft())

    def last(self, size: int) -> bytes:
        """The last `size` bytes, or fewer when there are no more."""
        taken: deque[bytes] = deque()
        for piece in reversed(self._pieces):
            if size <= 0:
                break
            taken.appendleft(piece[-size:])
            size -= len(taken[0])
        return b"".join(taken)


def _rows(end: _End) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pa_parquet

    ending = end.last(_ENDING.size)
    if len(ending) < _ENDING.size or ending[-len(_MAGIC) :] != _MAGIC:
        raise FileNotVerified("A file in the archive is not Parquet.")
    size, _ = _ENDING.unpack(ending)
    footer = end.last(size + _ENDING.size)
    try:
        return int(pa_parquet.read_metadata(pa.BufferReader(_MAGIC + footer)).num_rows)
    except (pa.ArrowException, OSError):
        raise FileNotVerified("A Parquet file in the archive has no readable footer.") from None
