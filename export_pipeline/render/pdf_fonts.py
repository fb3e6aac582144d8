"""The fonts of the PDF report, and which characters they can show.

The fonts come from registry packages under the SIL Open Font License, so a machine without any font renders
every script alike; fonts of the machine are never used. The last four families sit inside the typst package.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from mmap import ACCESS_READ, mmap
from pathlib import Path

from export_pipeline.errors import ConfigurationError

#: Packages that carry the fonts. Amiri stands before Noto's Arabic: other fonts compose letters from parts or join
#: them into ligatures, and a reader that copies text out of the PDF then finds letters doubled or turned around.
FONT_PACKAGES = ("manimgx_fonts", "fontpkg_amiri", "noto_cjk_sans_otc")

#: Order of preference; each character takes the first family that has it. The big scripts stand first: every
#: family that is tried in vain costs time.
FAMILIES = (
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Emoji",
    "Amiri",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Telugu",
    "Noto Sans Gujarati",
    "Noto Sans Gurmukhi",
    "Noto Sans Kannada",
    "Noto Sans Malayalam",
    "Noto Sans Oriya",
    "Noto Sans Sinhala",
    "Noto Sans Khmer",
    "Noto Sans Lao",
    "Noto Sans Myanmar",
    "Noto Sans Ethiopic",
    "Noto Sans Armenian",
    "Noto Sans Georgian",
    "Noto Sans Symbols",
    "DejaVu Sans Mono",
    "New Computer Modern Math",
    "New Computer Modern",
    "Libertinus Serif",
)

#: What only the fonts inside typst have (arrows, mathematics, Cherokee …). They cannot be read from here, so
#: the ranges were found by trial, and a test compiles every one of them.
_EMBEDDED = """
3e2-3ef 13a0-13f5 13f8-13fd 219a-21a8 21ab-21b7 21ba-21c3 21c7-21ca 21cd-21cf 21d1 21d3 21d5-21e5 21ea-21f4
21f6-21ff 2201 2204 220c-220e 2210 2214 2216-2219 221b-221c 2221-2222 2224 222f-2233 2238-223c 223e-2242 2244
2246-2247 2249-224b 224d-225f 2263 2268-2269 226c-226d 2270-2271 2274-2275 2278-2281 2288-2289 228c-2294
229a-229f 22a1-22a4 22a6-22be 22c0-22d9 22dc-22ed 22f0-22ff 2310 2316 2319 2320-2321 2324-2327 232b 2336-237b
237d-237f 2395 239b-23ae 23b2-23bd 23dc-23e1 23f4-23f7 23fb-23ff 2422 25ac-25b0 25b4-25b5 25b8-25bb 25be-25bf
25c2-25c5 25c8 25cd 25d4-25e1 25e7-25ee 25f0-25fa 25ff 2607-2608 2610 2612 2619-261b 2621 263c 2654-265e
2680-268b 26ac 2701 2703-2704 2706-2707 270e 2710-2711 2715 2717-2719 271b-271c 2722-2727 2729-2732 2735-273c
273e 2741-2743 2745-2746 2748-274b 274d 274f-2752 2758-275e 2761-2762 2765-2775 2794 2798-27a0 27a2-27af
27b1-27be 27c0-2920 2923-2933 2936-29be 29c0-29f9 29fc-2b04 2b08-2b19 2b1d-2b4f 2b51-2b54 2b56-2b73 2b76-2b94
2b97-2bff 2c80-2cee 2cf2-2cf3 2cf9-2cff a46a-a46b ab70-abbf 1d106-1d107 1d400-1d454 1d456-1d49c 1d49e-1d49f
1d4a2 1d4a5-1d4a6 1d4a9-1d4ac 1d4ae-1d4b9 1d4bb 1d4bd-1d4c3 1d4c5-1d505 1d507-1d50a 1d50d-1d514 1d516-1d51c
1d51e-1d539 1d53b-1d53e 1d540-1d544 1d546 1d54a-1d550 1d552-1d6a5 1d6a8-1d7cb 1d7ce-1d7ff 1ee00-1ee03
1ee05-1ee1f 1ee21-1ee22 1ee24 1ee27 1ee29-1ee32 1ee34-1ee37 1ee39 1ee3b 1ee42 1ee47 1ee49 1ee4b 1ee4d-1ee4f
1ee51-1ee52 1ee54 1ee57 1ee59 1ee5b 1ee5d 1ee5f 1ee61-1ee62 1ee64 1ee67-1ee6a 1ee6c-1ee72 1ee74-1ee77
1ee79-1ee7c 1ee7e 1ee80-1ee89 1ee8b-1ee9b 1eea1-1eea3 1eea5-1eea9 1eeab-1eebb 1eef0-1eef1 1f780-1f7d8
1f800-1f80b 1f810-1f847 1f850-1f859 1f860-1f887 1f890-1f8ad 1f8b0-1f8b1
"""

#: Which face of the CJK collection is "Noto Sans CJK SC".
_CJK_FACE = 2

Range = tuple[int, int]
Font = bytes | mmap


@cache
def font_folders() -> tuple[str, ...]:
    """Folders of the font packages.

    Raises:
        ConfigurationError: A font package is not installed.
    """
    return tuple(_folder(package) for package in FONT_PACKAGES)


def _folder(package: str) -> str:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"The font package {package} is missing.",
            hint="Install export-pipeline again with its dependencies.",
        )
    return spec.submodule_search_locations[0]


@lru_cache(maxsize=20_000)
def fonts_with(character: str) -> int:
    """The fonts that have a glyph for this character, as a set of bits; 0 is none.

    A letter and its accents must come from one font: the sets of both must meet.
    """
    return sum(1 << number for number, ranges in enumerate(_coverage()) if _contains(ranges, ord(character)))


def _contains(ranges: tuple[list[int], list[int]], code: int) -> bool:
    starts, ends = ranges
    at = bisect_right(starts, code) - 1
    return at >= 0 and code <= ends[at]


@cache
def _coverage() -> list[tuple[list[int], list[int]]]:
    fonts = [list(_embedded_ranges())]
    for folder in font_folders():
        for path in sorted(Path(folder).rglob("*.tt[fc]")):
            # Mapped, not read: the CJK collection has 19 MB, its character map a few kilobytes.
            with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as font:
                fonts.append(font_ranges(font))
    return [_merged(ranges) for ranges in fonts]


def _embedded_ranges() -> Iterator[Range]:
    for item in _EMBEDDED.split():
        first, _, last = item.partition("-")
        yield int(first, 16), int(last or first, 16)


def _merged(ranges: list[Range]) -> tuple[list[int], list[int]]:
    starts: list[int] = []
    ends: list[int] = []
    for first, last in sorted(ranges):
        if ends and first <= ends[-1] + 1:
            ends[-1] = max(ends[-1], last)
        else:
            starts.append(first)
            ends.append(last)
    return starts, ends


def font_ranges(font: Font) -> list[Range]:
    """Ranges of code points in a font's character map (OpenType cmap, formats 4 and 12)."""
    cmap = _cmap_offset(font)
    ranges: list[Range] = []
    (count,) = struct.unpack_from(">H", font, cmap + 2)
    for index in range(count):
        platform, encoding, offset = struct.unpack_from(">HHI", font, cmap + 4 + 8 * index)
        if platform == 0 or (platform == 3 and encoding in (1, 10)):
            ranges.extend(_subtable_ranges(font, cmap + offset))
    return ranges


def _cmap_offset(font: Font) -> int:
    face = 0
    if font[:4] == b"ttcf":
        (face,) = struct.unpack_from(">I", font, 12 + 4 * _CJK_FACE)
    (tables,) = struct.unpack_from(">H", font, face + 4)
    for index in range(tables):
        tag, _, offset, _ = struct.unpack_from(">4sIII", font, face + 12 + 16 * index)
        if tag == b"cmap":
            return int(offset)
    raise ConfigurationError("A font file has no character map.", hint="Install the font packages again.")


def _subtable_ranges(font: Font, at: int) -> Iterator[Range]:
    (kind,) = struct.unpack_from(">H", font, at)
    if kind == 4:
        yield from _segments(font, at)
    elif kind == 12:
        (groups,) = struct.unpack_from(">I", font, at + 12)
        for index in range(groups):
            first, last, glyph = struct.unpack_from(">III", font, at + 16 + 12 * index)
            yield first + (glyph == 0), last


def _segments(font: Font, at: int) -> Iterator[Range]:
    (doubled,) = struct.unpack_from(">H", font, at + 6)
    ends, starts = at + 14, at + 16 + doubled
    for step in range(0, doubled, 2):
        (last,) = struct.unpack_from(">H", font, ends + step)
        (first,) = struct.unpack_from(">H", font, starts + step)
        (delta,) = struct.unpack_from(">H", font, starts + doubled + step)
        slot = starts + 2 * doubled + step
        (shift,) = struct.unpack_from(">H", font, slot)
        for code in range(first, last + 1):
            glyph = struct.unpack_from(">H", font, slot + shift + 2 * (code - first))[0] if shift else code + delta
            if glyph & 0xFFFF and code != 0xFFFF:
                yield code, code
