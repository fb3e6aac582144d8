"""Which piece of a file a request wants: the headers Range and If-Range (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some of the bytes of a file.

    Attributes:
        start: The first.
        end: The one after the last.
    """

    start: int
    end: int


class Unsatisfiable(Exception):
    """The piece begins behind the end of the file."""


def piece(header: str | None, size: int) -> Piece | None:
    """Read a Range header; None means the whole file.

    Several ranges at once, another unit and what cannot be read get the whole file, as the standard allows.

    Args:
        header: Its value.
        size: Bytes of the file.

    Raises:
        Unsatisfiable: No byte of the file is in it.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(size, int(found[2] or size) + 1)
        if found[2] and int(found[2]) < start:
            return None
    if start >= end:
        raise Unsatisfiable
    return Piece(start=start, end=end)


def still_the_same(header: str | None, *, etag: str, modified_at: datetime) -> bool:
    """Whether an If-Range header, where there is one, names the file as it is now."""
    if header is None or header.strip() == etag:
        return True
    try:
        return parsedate_to_datetime(header) == modified_at.replace(microsecond=0)
    except (TypeError, ValueError):
        return False


def http_date(moment: datetime) -> str:
    """As Last-Modified has it."""
    return format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)
