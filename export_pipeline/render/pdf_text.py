"""Values as text that the PDF can show: every character is either printed or named, none is dropped.

What this module adds stands in ⟨angle brackets⟩ and is set in grey: ``⟨no value⟩``, ``⟨empty⟩``, ``⟨U+202E⟩``.
An angle bracket in the data is itself named, so that nobody can forge such a mark.

The template knows two shapes: a plain string, and ``{"p": pieces}`` where a piece is a string, ``{"m": mark}``,
``0``, a place where a line may break, or ``1``, the end of a line. ``"d"`` says right to left, 2 in Arabic letters,
else 1; ``"l"`` is the language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import Any

from export_pipeline.render.pdf_fonts import fonts_with

#: A text for the template, see above.
Rich = str | dict[str, Any]
Piece = str | int | dict[str, str]

NO_VALUE: Rich = {"p": [{"m": "no value"}]}
EMPTY: Rich = {"p": [{"m": "empty"}]}

#: Invisible, and needed by Persian, Indic scripts, emoji and Hebrew; none of them can move other text.
_JOINERS = frozenset("\u200c\u200d\u200e\u200f\ufe0e\ufe0f")
#: Controls, formats (bidi overrides), surrogates, private use, unassigned, line and paragraph separators.
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_DIRECTIONS = {"L": 0, "R": 1, "AL": 2}
_BRACKETS = frozenset("\u27e8\u27e9")

_WORD = re.compile(r"\S+")
#: Where the compiler breaks a line by itself: behind a slash or hyphen, before a letter.
_NATURAL_BREAK = re.compile("(?<=[/-])(?=[A-Za-z])")
#: Size of the text in a table, in points.
_SIZE = 8
#: Widths of the ASCII characters from space on in Noto Sans, in thousandths of its size.
_ADVANCES = """
260 269 408 646 572 831 732 225 300 300 551 572 268 322 268 372 572 572 572 572 572 572 572 572 572 572 268 268 572
572 572 434 899 639 650 632 730 556 519 728 741 339 273 619 524 907 760 781 605 781 622 549 556 731 600 930 586 566
572 329 372 329 572 444 281 561 615 480 615 564 344 615 618 258 258 534 258 935 618 605 615 615 413 479 361 618 508
786 529 510 470 380 551 380 572
"""
_LATIN_WIDTHS = (*[0.0] * 32, *(int(advance) * _SIZE / 1000 for advance in _ADVANCES.split()), 0.0)
WIDEST_LETTER = max(_LATIN_WIDTHS)
_LINES = re.compile("\n+|[^\n]+")
#: Empty lines by the thousand would be empty pages by the hundred.
_MOST_LINES = 4
_KANA = re.compile("[\u3041-\u30ff]")
#: Thai, Lao, Burmese, Khmer: written without spaces, so that U+200B between words is spelling, not a trick.
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
#: These, and Chinese, Japanese, Korean.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff]")
_HANGUL = re.compile("[\u1100-\u11ff\uac00-\ud7a3]")


def rich(text: str | None, *, room: float = 0, suffix: str = "") -> Rich:
    """A text for the template.

    Args:
        text: Any text, however hostile; None is the database's NULL.
        room: Points that a line has; a word that is wider may break anywhere. 0 breaks none.
        suffix: A mark to put behind it, or empty.
    """
    if text is None:
        return NO_VALUE
    if not text:
        return EMPTY
    if text.isascii() and text.isprintable():
        if not suffix and not _has_wide_word(text, room):
            return text
    elif "\t" in text or "\r\n" in text:
        text = text.replace("\r\n", "\n").replace("\t", "    ")
    pieces = [piece for part in _marked(text) for piece in _breakable(part, room)]
    if suffix:
        pieces.append({"m": suffix})
    return _labelled(text, pieces)


def _labelled(text: str, pieces: list[Any]) -> Rich:
    shape: dict[str, Any] = {"p": pieces}
    if not text.isascii():
        if direction := _right_to_left(text):
            shape["d"] = direction
        if language := _language(text):
            shape["l"] = language
    if len(shape) == 1 and len(pieces) == 1 and isinstance(pieces[0], str):
        return pieces[0]
    return shape


def _marked(text: str) -> Iterator[Piece]:
    """Cut a text into what can be shown, what must be named, and ends of lines."""
    # The compiler never sees a newline: it would take it and an accent behind it for one letter, of no font.
    for run in _LINES.findall(text):
        if run[0] != "\n":
            yield from _named(run)
        elif len(run) <= _MOST_LINES:
            yield from [1] * len(run)
        else:
            yield from (1, {"m": f"{len(run)} line breaks"}, 1)


def _named(text: str) -> Iterator[Piece]:
    characters = set(text)
    unshown = {character for character in characters if not _shown(character)}
    if "\u200b" in unshown and _SPACELESS.search(text):
        unshown.discard("\u200b")
    if not unshown and not any(map(_attaches, characters)):
        yield text
        return
    naming = zip(_must_be_named(text, unshown), text, strict=True)
    for named, run in groupby(naming, lambda pair: pair[0]):
        if named:
            yield {"m": " ".join(f"U+{ord(character):04X}" for _, character in run)}
        else:
            yield "".join(character for _, character in run)


def _must_be_named(text: str, unshown: set[str]) -> Iterator[bool]:
    """For each character, whether it cannot be shown where it stands.

    Accents and joiners need a letter before them, of a font that has both: the compiler fails otherwise.
    """
    fonts = 0  # that have the whole letter so far
    for character in text:
        if character in unshown:
            fonts = 0
            yield True
        elif character in _JOINERS:
            yield not fonts
        elif _attaches(character):
            fonts &= fonts_with(character)
            yield not fonts
        else:
            fonts = 0 if character.isspace() else fonts_with(character)
            yield False


@lru_cache(maxsize=20_000)
def _attaches(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character)[0] == "M"


def marks_in(text: str) -> int:
    """How many characters of a text are named instead of shown."""
    return sum(text.count(character) for character in set(text) if not _shown(character))


@lru_cache(maxsize=20_000)
def _shown(character: str) -> bool:
    if character in _JOINERS or character == "\n":
        return True
    if character in _BRACKETS or unicodedata.category(character) in _UNSHOWN:
        return False
    return fonts_with(character) != 0


def _breakable(part: Piece, room: float) -> Iterator[Piece]:
    """Put break places into words that are wider than their column."""
    if not isinstance(part, str) or not _has_wide_word(part, room):
        yield part
        return
    done = 0
    for word in _WORD.finditer(part):
        if _too_wide(word.group(), room):
            if done < word.start():
                yield part[done : word.start()]
            yield from _cut(word.group(), room)
            done = word.end()
    if done < len(part):
        yield part[done:]


def _has_wide_word(text: str, room: float) -> bool:
    if not room or len(text) * WIDEST_LETTER <= room:
        return False
    return any(_too_wide(word.group(), room) for word in _WORD.finditer(text))


def _too_wide(word: str, room: float) -> bool:
    if len(word) * WIDEST_LETTER <= room:
        return False
    if _UNSPACED.search(word):
        return width(word) > 4 * room  # the compiler knows where such a script breaks
    return any(width(segment) > room for segment in _NATURAL_BREAK.split(word))


def _cut(word: str, room: float) -> Iterator[str | int]:
    # Half a line at a time wastes little room.
    size = max(1, int(room / WIDEST_LETTER / 2))
    start = 0
    while start < len(word):
        end = _letter_end(word, start + size)
        yield 0
        yield word[start:end]
        start = end
    yield 0


def _letter_end(word: str, at: int) -> int:
    """The first place from `at` on that does not part a letter from its marks."""
    while at < len(word) and (_attaches(word[at]) or word[at - 1] == "\u200d"):
        at += 1
    return at


def _right_to_left(text: str) -> int:
    """Whether a text runs from right to left: 0 no, 1 yes, 2 yes and in Arabic letters."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in _DIRECTIONS:
            return _DIRECTIONS[kind]
    return 0


def _language(text: str) -> str | None:
    """Language of a text, where its script leaves no doubt: it chooses between forms of one character."""
    if _KANA.search(text):
        return "ja"
    return "ko" if _HANGUL.search(text) else None


def width(text: str) -> float:
    """About how wide a text is, in points, at the size of a table."""
    if text.isascii():
        return sum(map(_LATIN_WIDTHS.__getitem__, text.encode()))
    return sum(
        _LATIN_WIDTHS[ord(character)]
        if character < "\x80"
        else 8.0
        if unicodedata.east_asian_width(character) in "WF"
        else 5.6
        for character in text
    )


def spelled_out(data: Any) -> Any:
    """The template's data with every accent and joiner named: what to try when the compiler refuses the data.

    The compiler has faults of its own with letters that no language writes; a report must come out all the same.
    """
    if isinstance(data, str):
        return data if data.isascii() else {"p": list(_spelled(data))}
    if isinstance(data, dict) and "p" in data:
        pieces = (_spelled(piece) if isinstance(piece, str) else [piece] for piece in data["p"])
        return {**data, "p": [piece for spelled in pieces for piece in spelled]}
    if isinstance(data, dict):
        return {key: spelled_out(value) for key, value in data.items()}
    return [spelled_out(item) for item in data] if isinstance(data, list | tuple) else data


def _spelled(text: str) -> Iterator[Piece]:
    for named, run in groupby(text, lambda character: _attaches(character) or not _shown(character)):
        characters = list(run)
        yield {"m": " ".join(f"U+{ord(character):04X}" for character in characters)} if named else "".join(characters)


def flat(text: Rich) -> str:
    """A text for the template as one string, for places that take nothing else."""
    if isinstance(text, str):
        return text
    return "".join(_flat_piece(piece) for piece in text["p"])


def _flat_piece(piece: Piece) -> str:
    if isinstance(piece, int):
        return " " if piece else ""
    return piece if isinstance(piece, str) else f"\u27e8{piece['m']}\u27e9"
