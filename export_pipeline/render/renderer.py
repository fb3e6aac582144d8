"""The plug point for formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from export_pipeline.collect.parts import Part
from export_pipeline.collect.statements import RowEncoding
from export_pipeline.models import ExportFormat


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a delivered file says beside its rows.

    Attributes:
        user_id: Whose data it is.
        request_id: The request that it answers.
        export_date: When it was made.
        manifest: As `manifest.build` states it.
        sign: Signs a statement; None leaves the file unsigned.
    """

    user_id: str
    request_id: str
    export_date: datetime
    manifest: dict[str, Any]
    sign: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def stated(self, **more: Any) -> dict[str, Any]:
        """The manifest as it stands in the file: with what the format adds, and signed together with the user's id."""
        contents = {**self.manifest, **more}
        if self.sign is None:
            return contents
        return {**contents, "signature": self.sign({"user_id": self.user_id, **contents})}


@dataclass(frozen=True, kw_only=True)
class FoundPart:
    """What a data type turned out to be when the file was read back.

    Attributes:
        rows: Rows counted.
        size: Bytes of the rendered rows.
        sha256: Hex digest of the rendered rows.
    """

    rows: int
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a delivered file turned out to be when it was read back.

    Attributes:
        manifest: The manifest inside.
        parts: Data type → what was found.
        user_id: Whose data it says it is.
    """

    manifest: dict[str, Any]
    parts: dict[str, FoundPart]
    user_id: str | None = None


class Renderer(Protocol):
    """One format. A new one is done when it passes `export_pipeline_tests/integration/test_renderers.py`.

    Attributes:
        format: Its name in requests.
        encoding: The row encoding that it frames.
        media_type: MIME type of the delivered file.
        extension: Of the delivered file, without the dot.
        content_encoding: ``gzip`` when what `frame` yields must be decompressed on delivery, else ``identity``.
    """

    format: ExportFormat
    encoding: RowEncoding
    media_type: str
    extension: str
    content_encoding: str

    def frame(
        self, document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]]
    ) -> Iterator[bytes]:
        """Yield the bytes to store, in constant memory.

        Args:
            document: What the file says beside its rows.
            parts: The collected data types, in the file's order.
            read: Opens a part: its content as the encoding packs it, mostly a raw deflate stream.
        """
        ...

    def inspect(self, delivered: Iterable[bytes]) -> Inspection:
        """Read a delivered (decrypted, decompressed) file in constant memory and say what is in it.

        Raises:
            FileNotVerified: It is not a file that `frame` could have made.
        """
        ...
