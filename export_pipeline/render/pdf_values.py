"""Values, names, moments and counts as people read them. What characters they consist of is not looked at here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

#: What the JSON of a row decodes to.
Value = str | int | float | Decimal | bool | list[Any] | dict[str, Any] | None

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d(?:\.\d+)?)(Z|[+-]\d\d(?::?\d\d)?)?")
_MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)


def plain(value: Value) -> str | None:
    """A value as people read it; None stays None.

    Timestamps lose the ``T``, and ``+00:00`` becomes ``UTC``; nothing else about a text is changed here.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _readable(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return "".join(_compact(value))
    return str(value)


def _readable(text: str) -> str:
    if len(text) < 19 or text[10] != "T":
        return text
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return text
    day, time, zone = match.groups()
    return f"{day} {time}{_zone(zone)}"


def _zone(zone: str | None) -> str:
    if not zone:
        return ""
    return " UTC" if zone in ("Z", "+00:00", "+00", "+0000") else f" {zone}"


def _compact(value: Value) -> Iterator[str]:
    """JSON text in which a Decimal keeps its digits and other scripts stay readable."""
    if isinstance(value, dict):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            yield f"{', ' if index else ''}{json.dumps(key, ensure_ascii=False)}: "
            yield from _compact(item)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _compact(item)
        yield "]"
    else:
        yield str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)


def humanised(name: str) -> str:
    """A column's or type's machine name as a label: ``last_login_ip`` → ``Last login IP``."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):  # somebody chose these letters: keep them
        return name
    words = [word.upper() if word in _ABBREVIATIONS else word for word in name.split("_") if word]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


_ABBREVIATIONS = frozenset("id ip url uri uuid ua utc json xml html iban bic vat sms gps api os".split())  # noqa: SIM905


def moment(when: datetime) -> str:
    """An aware moment for people: ``3 November 2026, 14:05 UTC``."""
    at = when.astimezone(UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M} UTC"


def count(number: int, noun: str = "") -> str:
    """A number with thousands separators, with its noun in the right form."""
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun if number == 1 else noun + 's'}"
