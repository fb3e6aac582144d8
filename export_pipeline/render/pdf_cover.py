"""The cover of the PDF report: who, what, when, what it contains, what is missing, how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export_pipeline.render.pdf_report import Report, ReportSection
from export_pipeline.render.pdf_text import Rich, rich
from export_pipeline.render.pdf_values import count, humanised, moment

# Room for a word, in points at the size of a table: the letters here are larger.
_FACT_ROOM = 270.0
_NAME_ROOM = 110.0

_KINDS = {
    "gdpr": "Copy of personal data (right of access, GDPR)",
    "backup": "Backup copy",
    "audit": "Copy for an audit",
    "custom": "Selected data",
}
_INTRO = (
    "This report is a copy of the data that is stored about one person. "
    "All of it was read at one single moment, so its parts fit together."
)
_SECTIONS_NOTE = (
    "Each kind of data has a section of its own. Within a section, each row or each numbered record is one entry."
)
_VALUES_NOTE = (
    "Values are printed as they are stored. Only truth values read “yes” and “no”, and points in time are written "
    "with a space between day and time. UTC is Coordinated Universal Time."
)
_MARKS_NOTE: Rich = {
    "p": [
        "Grey text in angle brackets is ours, not part of the data: ",
        {"m": "no value"},
        " means that nothing was stored, ",
        {"m": "empty"},
        " that a text without any characters was stored, and ",
        {"m": "U+0007"},
        " names, by its Unicode number, a character that is invisible or that cannot be printed.",
    ]
}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A volume that is compiled, as the cover lists it.

    Attributes:
        contents: Sections, and in words which of their rows.
    """

    name: str
    pages: int
    contents: tuple[tuple[ReportSection, str], ...]


def cover(report: Report, finished: Sequence[Finished], attachments: Mapping[str, str]) -> dict[str, Any]:
    """The cover for the template.

    Args:
        report: Who, what, when.
        finished: The other volumes; none when the data is in the file of the cover.
        attachments: Data type → why its data file is needed.
    """
    return {
        "kicker": "DATA REPORT",
        "title": "Your data",
        "intro": _INTRO,
        "facts": _facts(report),
        "total": _total(report),
        "summary-head": ["Data", "Name in the system", "Records", "Where"],
        "summary": [_summary(number, section, finished) for number, section in enumerate(report.sections)],
        "volumes": [[volume.name, _contents(volume), count(volume.pages)] for volume in finished],
        "attached": [
            [rich(section.attachment, room=_NAME_ROOM), rich(attachments[section.data_type], room=_FACT_ROOM)]
            for section in report.sections
            if section.data_type in attachments
        ],
        "missing": [
            [rich(humanised(name), room=_NAME_ROOM), rich(reason, room=_FACT_ROOM)]
            for name, reason in report.not_exported
        ],
        "notes": [_SECTIONS_NOTE, rich(_VALUES_NOTE), _MARKS_NOTE],
    }


def _facts(report: Report) -> list[tuple[str, Rich]]:
    return [
        ("Data about", rich(report.user_id, room=_FACT_ROOM)),
        ("Request", rich(report.request_id, room=_FACT_ROOM)),
        ("Kind of request", _KINDS.get(report.request_type) or rich(report.request_type, room=_FACT_ROOM)),
        ("Requested on", moment(report.requested_at)),
        ("Data as it was on", moment(report.snapshot_at)),
        ("Report made on", moment(report.export_date)),
    ]


def _total(report: Report) -> str:
    total = sum(section.rows_total for section in report.sections)
    said = f"{count(total, 'record')} in {count(len(report.sections), 'kind')} of data."
    return f"{said} Something that was asked for is not in it; see below." if report.not_exported else said


def _summary(number: int, section: ReportSection, finished: Sequence[Finished]) -> list[Rich | int]:
    return [
        rich(section.label, room=_NAME_ROOM),
        rich(section.data_type, room=_NAME_ROOM),
        count(section.rows_total),
        _where(number, section, finished),
    ]


def _where(number: int, section: ReportSection, finished: Sequence[Finished]) -> str | int:
    """Words, or the section's number in the file of the cover: the template finds its page."""
    if not section.rows_total:
        return "nothing is stored"
    names = [volume.name for volume in finished if any(held is section for held, _ in volume.contents)]
    if not names:
        return number
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _contents(volume: Finished) -> Rich:
    return rich("; ".join(f"{section.label}: {part}" for section, part in volume.contents), room=_FACT_ROOM)
