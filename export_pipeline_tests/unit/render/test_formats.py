"""Every format that can be asked for has a renderer that keeps its word."""

from __future__ import annotations

import gzip

import pytest

from export_pipeline.errors import FileNotVerified
from export_pipeline.models import ExportFormat
from export_pipeline.render.formats import RENDERERS, delivered


def test_every_format_has_its_renderer() -> None:
    assert set(RENDERERS) == set(ExportFormat)
    assert all(renderer.format is name for name, renderer in RENDERERS.items())


@pytest.mark.parametrize("format", list(ExportFormat))
def test_what_a_renderer_says_of_itself(format: ExportFormat) -> None:
    renderer = RENDERERS[format]
    assert renderer.content_encoding in {"gzip", "identity"}
    assert renderer.extension.isalnum()
    assert renderer.media_type.count("/") == 1


def test_delivery_decompresses_what_is_stored_compressed() -> None:
    assert b"".join(delivered(iter([gzip.compress(b"text")]), "gzip")) == b"text"


def test_delivery_leaves_the_rest_as_it_is() -> None:
    assert list(delivered(iter([b"\x1f\x8b", b"x"]), "identity")) == [b"\x1f\x8b", b"x"]


def test_delivery_of_damage_is_an_error() -> None:
    with pytest.raises(FileNotVerified):
        list(delivered([gzip.compress(b"text")[:-1]], "gzip"))
