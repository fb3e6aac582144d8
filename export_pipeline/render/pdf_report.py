"""What a PDF report is made of, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from export_pipeline.render.pdf_values import humanised


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """One data type.

    Attributes:
        data_type: Its name in the system.
        title: What people call it; empty means a title made from its name.
        columns: In the order of the rows' values.
        rows_total: Rows that the export holds.
        note: What a reader must know, such as columns that were altered; or empty.
        data_file: Name of the file that holds all its rows, to be attached when the report refers to it; empty
            means the data type's name with ``.csv``.
    """

    data_type: str
    title: str = ""
    columns: tuple[str, ...]
    rows_total: int
    note: str = ""
    data_file: str = ""

    @property
    def label(self) -> str:
        """The title that is printed."""
        return self.title or humanised(self.data_type)

    @property
    def attachment(self) -> str:
        """Name of the data file that is printed."""
        return self.data_file or f"{self.data_type}.csv"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Who, what, when.

    Attributes:
        user_id: Whose data it is.
        requested_at: Aware, as are all moments here.
        snapshot_at: The moment that the data shows.
        export_date: When the report was made; also the files' creation date.
        sections: In the order of the report.
        not_exported: Data type and reason, for what was asked and is not in the report.
    """

    request_id: str
    user_id: str
    request_type: str
    requested_at: datetime
    snapshot_at: datetime
    export_date: datetime
    sections: tuple[ReportSection, ...]
    not_exported: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is printed.

    Attributes:
        rows_per_type: Rows of one data type that are printed; the rest stands in its data file only.
        characters_per_value: Characters of one value that are printed; the whole value stands in the data file.
        volume_weight: Size of a volume, in characters of memory (see `pdf_layout.weight`): the default is about
            1,500 rows of six columns and keeps the compiler under 300 MB. A report of up to 2,000 rows may be
            somewhat heavier, so that it stays one file.
    """

    rows_per_type: int = 20_000
    characters_per_value: int = 20_000
    volume_weight: int = 390_000


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One PDF file of the report.

    Attributes:
        name: File name: ``report.pdf`` holds the cover and comes last.
        content: The PDF.
        pages: How many pages it has.
        attachments: Data types whose data file must be delivered beside the report; only the last volume names
            them.
    """

    name: str
    content: bytes
    pages: int
    attachments: tuple[str, ...] = ()
