"""What the formats have in common that are a zip: one file for each data type, and the manifest as the last one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC
from typing import Any, ClassVar

from export_pipeline.collect.parts import Part
from export_pipeline.collect.statements import RowEncoding
from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.pump import ahead
from export_pipeline.render import zip64
from export_pipeline.render.renderer import Document, FoundPart, Inspection
from export_pipeline.render.streams import MANIFEST_MOST, Digest, gathered, json_object

MANIFEST = "manifest.json"


class ArchiveRenderer(ABC):
    """``<data_type>.<suffix>`` for every data type, also when it has no row, and ``manifest.json``.

    Attributes:
        suffix: Of the members, with the dot.
        deflated: Whether parts are raw deflate streams; else they compress by themselves and are stored as they are.
    """

    format: ExportFormat
    encoding: RowEncoding
    media_type = "application/zip"
    extension = "zip"
    content_encoding = "identity"
    suffix: ClassVar[str]
    deflated: ClassVar[bool] = True

    @abstractmethod
    def count(self, content: Iterable[bytes]) -> int:
        """Read a member to its end, in constant memory and without work per row, and say how many rows it holds.

        Raises:
            FileNotVerified: It is no such member.
        """

    def frame(
        self, document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]]
    ) -> Iterator[bytes]:
        """See `Renderer.frame`."""
        return zip64.write(self._members(document, parts, read), document.export_date.astimezone(UTC))

    def inspect(self, delivered: Iterable[bytes]) -> Inspection:
        """See `Renderer.inspect`."""
        manifest = None
        parts: dict[str, FoundPart] = {}
        for member in zip64.read(delivered):
            if member.name == MANIFEST:
                manifest = read_manifest(member.content)
            elif member.name.endswith(self.suffix):
                parts[member.name.removesuffix(self.suffix)] = self.found(member.content)
            else:
                raise FileNotVerified(f"The archive holds something else than {self.suffix} files.")
        if manifest is None:
            raise FileNotVerified("The archive holds no manifest.")
        return Inspection(manifest=manifest, parts=parts, user_id=manifest.get("user_id"))

    def found(self, content: Iterable[bytes]) -> FoundPart:
        """Read a member to its end and say what it is."""
        digest = Digest()
        # One processor decompresses, the other one hashes and counts. Counting holds Python's lock and hashing lets go
        # of it: in one thread they leave the decompression enough room, counting alone would bring it to a halt.
        rows = self.count(digest.watch(ahead(content)))
        return FoundPart(rows=rows, size=digest.size, sha256=digest.sha256)

    def _members(
        self, document: Document, parts: Sequence[Part], read: Callable[[Part], Iterator[bytes]], **more: Any
    ) -> Iterator[zip64.Member]:
        for part in parts:
            yield zip64.Member(
                name=f"{part.data_type}{self.suffix}",
                size=part.size,
                crc32=part.crc32,
                packed_size=part.packed_size,
                packed=read(part),
                deflated=self.deflated,
            )
        manifest = {"user_id": document.user_id, **document.stated(**more)}
        yield zip64.text_member(MANIFEST, _written(manifest))


def read_manifest(content: Iterable[bytes]) -> dict[str, Any]:
    """Read the manifest of an archive.

    Raises:
        FileNotVerified: It is not written as we write it. JSON can say things in many ways, such as a key twice, and
            two readers could understand it differently.
    """
    text = gathered(content, MANIFEST_MOST, "manifest")
    manifest = json_object(text, "manifest")
    if text != _written(manifest):
        raise FileNotVerified("The manifest is not written as an export's.")
    return manifest


def _written(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, ensure_ascii=False, indent=1).encode(errors="surrogatepass")
