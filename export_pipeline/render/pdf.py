"""The PDF report: what a person is handed.

A small export is one file, ``report.pdf``. A larger one becomes several volumes, each a complete tagged PDF:
``report-002.pdf``, ``report-003.pdf`` … hold the data, and ``report.pdf`` comes last with the cover, the summary
and the list of the other volumes, because only then it knows what each of them holds. At most one volume's rows
are in memory. What is too much for paper is referred, in so many words, to a data file that must be attached.

Rows go through `pdf_values` (values → words), `pdf_layout` (words → table or records), `pdf_text` (words → what
can be printed) and `pdf_compiler` (→ PDF); `pdf_cover` writes the first page, `pdf_fonts` knows the fonts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any

from export_pipeline.errors import FileNotVerified
from export_pipeline.render import pdf_layout
from export_pipeline.render.pdf_compiler import compile_pdf, page_count
from export_pipeline.render.pdf_cover import Finished, cover
from export_pipeline.render.pdf_layout import Beginning
from export_pipeline.render.pdf_report import Limits, Report, ReportSection, Volume
from export_pipeline.render.pdf_text import flat, rich
from export_pipeline.render.pdf_values import Value, count, plain

__all__ = ["Limits", "ReadRows", "Report", "ReportSection", "Volume", "planned_attachments", "render_report"]

FIRST_NAME = "report.pdf"
#: A report of so many rows may be a little heavier than a volume, so that it stays one file.
_SMALL = 2000
_INDULGENCE = 1.35
# Room for a word, in points at the size of a table: the letters here are larger.
_HEADING_ROOM = 220.0
_LINE_ROOM = 400.0

#: Opens a data type's rows: values in the order of the section's columns.
ReadRows = Callable[[ReportSection], Iterable[Sequence[Value]]]


def planned_attachments(report: Report, limits: Limits | None = None) -> tuple[str, ...]:
    """Data types that are certain to need their data file, known before any row is read.

    `render_report` may add others: a single value can be too long to print.
    """
    most = (limits or Limits()).rows_per_type
    return tuple(section.data_type for section in report.sections if section.rows_total > most)


def render_report(report: Report, read_rows: ReadRows, *, limits: Limits | None = None) -> Iterator[Volume]:
    """Render the report, volume by volume, holding one volume's rows at a time.

    Args:
        report: Who, what, when.
        read_rows: Called once for each section, in order; an iterator with ``close`` is closed.
        limits: How much is printed.

    Yields:
        The volumes. The one with the cover is the last.

    Raises:
        FileNotVerified: A data type yields another number of rows than its section states.
        ExportPipelineError: The compiler failed.
    """
    return _Writer(report, limits or Limits()).volumes(read_rows)


@dataclass(kw_only=True)
class _Part:
    """Rows of one data type within one volume."""

    section: ReportSection
    first: int
    printed: int
    rows: list[pdf_layout.Row] = field(default_factory=list)
    numbers: list[bool] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.first + len(self.rows) - 1

    @property
    def range(self) -> str:
        """Which of the rows these are, in words."""
        total = self.section.rows_total
        if not total:
            return "nothing stored"
        if self.first == 1 and self.last == total:
            return count(total, "record")
        return f"records {count(self.first)} to {count(self.last)} of {count(total)}"

    def add(self, raw: Sequence[Value], row: pdf_layout.Row) -> None:
        """Take a row, as values and as text."""
        if not self.rows:
            self.numbers, self.seen = [True] * len(row), [False] * len(row)
        for at, value in enumerate(raw):
            if value is not None:
                self.seen[at] = True
                self.numbers[at] = self.numbers[at] and _is_number(value)
        self.rows.append(row)

    def body(self) -> dict[str, Any] | None:
        """The rows for the template."""
        if not self.rows:
            return None
        columns = self.section.columns
        if not pdf_layout.is_table(columns):
            return pdf_layout.records(columns, self.rows, self.first, self.section.rows_total)
        numeric = [number and seen for number, seen in zip(self.numbers, self.seen, strict=True)]
        return pdf_layout.table(columns, self.rows, numeric)


@dataclass(kw_only=True)
class _Draft:
    """A volume that is being filled."""

    number: int
    weight: int = 0
    parts: list[_Part] = field(default_factory=list)


class _Writer:
    """One rendering of one report."""

    def __init__(self, report: Report, limits: Limits) -> None:
        self._report = report
        self._limits = limits
        total = sum(section.rows_total for section in report.sections)
        self._room = limits.volume_weight * (_INDULGENCE if total <= _SMALL else 1)
        self._cut: dict[str, int] = {}
        self._done: list[Finished] = []
        self._draft = _Draft(number=2)

    def volumes(self, read_rows: ReadRows) -> Iterator[Volume]:
        for section in self._report.sections:
            yield from self._section(section, read_rows)
        if not self._done:
            yield self._last_volume(self._draft.parts)
            return
        if self._draft.parts:
            yield self._finished()
        yield self._last_volume([])

    def _section(self, section: ReportSection, read_rows: ReadRows) -> Iterator[Volume]:
        printed = min(section.rows_total, self._limits.rows_per_type)
        part = self._open(section, 1, printed)
        table = pdf_layout.is_table(section.columns)
        arrived = 0
        for raw in self._rows(section, read_rows, printed):
            arrived += 1
            row = [self._text(section, value) for value in raw]
            weight = pdf_layout.weight(row, table=table)
            if self._draft.weight + weight > self._room and self._draft.weight:
                yield self._finished()
                part = self._open(section, arrived, printed)
            part.add(raw, row)
            self._draft.weight += weight
        if arrived != printed:
            raise FileNotVerified(
                f"{section.data_type}: {section.rows_total} rows were collected, another number was read back."
            )

    def _rows(self, section: ReportSection, read_rows: ReadRows, printed: int) -> Iterator[Sequence[Value]]:
        if not section.rows_total:
            return
        # One row more than stated is asked for, so that a surplus is noticed; beyond the limit there may be more.
        surplus = 1 if printed == section.rows_total else 0
        rows = iter(read_rows(section))
        try:
            for raw in islice(rows, printed + surplus):
                if len(raw) != len(section.columns):
                    raise FileNotVerified(f"{section.data_type}: a row has another number of values than columns.")
                yield raw
        finally:
            if hasattr(rows, "close"):
                rows.close()

    def _text(self, section: ReportSection, value: Value) -> str | None:
        text = plain(value)
        most = self._limits.characters_per_value
        if text is None or len(text) <= most:
            return text
        self._cut[section.data_type] = self._cut.get(section.data_type, 0) + 1
        return Beginning.of(text, most, f"{count(len(text) - most)} more characters: see {section.attachment}")

    def _open(self, section: ReportSection, first: int, printed: int) -> _Part:
        part = _Part(section=section, first=first, printed=printed)
        self._draft.parts.append(part)
        return part

    def _finished(self) -> Volume:
        """Compile the draft, remember what it holds, begin the next."""
        draft, self._draft = self._draft, _Draft(number=self._draft.number + 1)
        parts = [part for part in draft.parts if part.rows or not part.section.rows_total]
        name = f"report-{draft.number:03}.pdf"
        content = self._compiled(f"Volume {draft.number}", parts, front=None)
        pages = page_count(content)
        contents = tuple((part.section, part.range) for part in parts)
        self._done.append(Finished(name=name, pages=pages, contents=contents))
        return Volume(name=name, content=content, pages=pages)

    def _last_volume(self, parts: list[_Part]) -> Volume:
        attachments = self._attachments()
        volume = f"Volume 1 of {len(self._done) + 1}" if self._done else ""
        content = self._compiled(volume, parts, front=cover(self._report, self._done, attachments))
        return Volume(name=FIRST_NAME, content=content, pages=page_count(content), attachments=tuple(attachments))

    def _compiled(self, volume: str, parts: list[_Part], *, front: dict[str, Any] | None) -> bytes:
        request = rich(self._report.request_id, room=_LINE_ROOM)
        title = "Your data" if not volume or front else f"Your data, {volume.lower()}"
        return compile_pdf(
            {
                "title": title,
                "description": f"Copy of stored data, request {flat(request)}",
                "running": "Your data",
                "volume": volume,
                "request": request,
                "cover": front,
                "sections": [self._printed(part) for part in parts],
            },
            self._report.export_date,
        )

    def _printed(self, part: _Part) -> dict[str, Any]:
        section = part.section
        tail = _tail(part) if part.rows else ""
        return {
            "title": rich(section.label, room=_HEADING_ROOM),
            "continued": part.first > 1,
            "lead": rich(_lead(part), room=_LINE_ROOM),
            "notes": [rich(note, room=_LINE_ROOM) for note in self._notes(section)],
            "body": part.body(),
            "tail": rich(tail, room=_LINE_ROOM) if tail else "",
        }

    def _notes(self, section: ReportSection) -> Iterator[str]:
        if section.note:
            yield section.note
        printed = self._limits.rows_per_type
        if section.rows_total > printed:
            yield (
                f"The first {count(printed)} of {count(section.rows_total)} records are printed here. "
                f"All {count(section.rows_total)} are in the data file {section.attachment}."
            )

    def _attachments(self) -> dict[str, str]:
        """Data type → why its data file is needed."""
        reasons: dict[str, str] = {}
        for section in self._report.sections:
            said = []
            if section.rows_total > self._limits.rows_per_type:
                said.append(
                    f"All {count(section.rows_total)} records; {count(self._limits.rows_per_type)} are printed."
                )
            if cut := self._cut.get(section.data_type):
                said.append(f"The whole of {count(cut, 'value')} too long to print.")
            if said:
                reasons[section.data_type] = f"{section.label}: {' '.join(said)}"
        return reasons


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _lead(part: _Part) -> str:
    section = part.section
    if not section.rows_total:
        return "Nothing of this kind is stored."
    said = part.range
    return f"{said[0].upper()}{said[1:]}. Name in the system: {section.data_type}."


def _tail(part: _Part) -> str:
    """What stands below the last row of a volume."""
    if part.last < part.printed:
        return "Continued in the next volume."
    left = part.section.rows_total - part.printed
    if not left:
        return ""
    return f"The other {count(left, 'record')} are in the data file {part.section.attachment}."
