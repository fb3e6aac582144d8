"""The PDF report, read back with two readers: PDFium for the text, pypdf for the structure."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pypdf
import pypdfium2
import pytest

from export_pipeline.errors import ExportPipelineError, FileNotVerified
from export_pipeline.render import pdf_compiler, pdf_fonts
from export_pipeline.render.pdf import (
    Limits,
    Report,
    ReportSection,
    Volume,
    planned_attachments,
    render_report,
)
from export_pipeline.render.pdf_layout import MAX_TABLE_COLUMNS, is_table, table
from export_pipeline.render.pdf_text import flat, rich, spelled_out
from export_pipeline.render.pdf_values import humanised, moment, plain

NOON = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)

SCRIPTS = {
    "Arabic": "مرحبا بالعالم، هذا نص عربي",
    "Hebrew": "שלום עולם (7), זה טקסט",
    "Hindi": "नमस्ते दुनिया, यह हिंदी में है",
    "Thai": "สวัสดีชาวโลก นี่คือข้อความ",
    "Chinese": "你好,世界。这是中文",
    "Taiwan": "這是繁體中文,測試",
    "Japanese": "こんにちは世界。カタカナ漢字",
    "Korean": "안녕하세요 세계",
    "Emoji": "😀 👨‍👩‍👧 🇩🇪 👍🏽 ❤️",
    "Persian": "می‌خواهم آزمایش کنم",
    "Greek": "Καλημέρα κόσμε",
    "Russian": "Привет, мир — ёжик",
    "Vietnamese": "Xin chào thế giới",
    "Bengali": "ওহে বিশ্ব",
    "Tamil": "வணக்கம் உலகம்",
    "Georgian": "გამარჯობა მსოფლიო",
    "Armenian": "Բարեւ աշխարհ",
    "Amharic": "ሰላም ልዑል",
    "Khmer": "សួស្តី\u200bពិភពលោក",
    "Symbols": "∑ ∫ ✓ ✗ → ♞ €",
}

HOSTILE = [
    '#import "x": * #panic() $x^2$ @ref *bold* _it_ `raw` \\ // comment <label>',
    "<script>alert(1)</script> [link](javascript:alert(1)) {{7*7}} https://example.com/",
    "%PDF-1.7 (a) Tj ET endstream endobj 1 0 obj << /JS (x) >>",
    '\'; DROP TABLE users; -- "quoted"',
]


def report(*sections: ReportSection, **changes: object) -> Report:
    facts = {
        "request_id": "req-77",
        "user_id": "user-4711",
        "request_type": "gdpr",
        "requested_at": NOON,
        "snapshot_at": NOON + timedelta(minutes=2),
        "export_date": NOON + timedelta(minutes=3),
        "sections": sections,
    }
    return Report(**(facts | changes))


def section(name: str, columns: tuple[str, ...], rows: int, **more: str) -> ReportSection:
    return ReportSection(data_type=name, columns=columns, rows_total=rows, **more)


def render(rows_by_type: dict[str, list[list]], limits: Limits | None = None, **changes: object) -> list[Volume]:
    sections = [
        section(name, tuple(f"column_{at}" for at in range(len(rows[0]) if rows else 2)), len(rows))
        for name, rows in rows_by_type.items()
    ]
    return list(
        render_report(report(*sections, **changes), lambda part: iter(rows_by_type[part.data_type]), limits=limits)
    )


def text_of(volume: Volume) -> str:
    return "\n".join(pages_of(volume))


def pages_of(volume: Volume) -> list[str]:
    document = pypdfium2.PdfDocument(volume.content)
    try:
        return [page.get_textpage().get_text_bounded() for page in document]
    finally:
        document.close()


def squeezed(text: str) -> str:
    """Without white space, which a reader puts where a line ends; other forms of one letter made equal."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


def structure(volume: Volume) -> list[str]:
    """Names of the structure elements, in the order of reading."""
    names: list[str] = []

    def walk(node: object) -> None:
        node = node.get_object() if hasattr(node, "get_object") else node
        if isinstance(node, list):
            for child in node:
                walk(child)
        elif isinstance(node, dict):
            if "/S" in node:
                names.append(node["/S"])
            walk(node.get("/K", []))

    walk(reader(volume).trailer["/Root"]["/StructTreeRoot"])
    return names


def reader(volume: Volume) -> pypdf.PdfReader:
    return pypdf.PdfReader(io.BytesIO(volume.content))


# ---- one file


@pytest.fixture(scope="module")
def small() -> Volume:
    people = section("user_profiles", ("id", "full_name", "is_active", "last_login_ip"), 2, title="Your profile")
    visits = section("visits", ("at", "amount"), 1200, note="The column “amount” is rounded.")
    nothing = section("user_feedback", ("id", "text"), 0)
    rows = {
        "user_profiles": [[1, "Ann O'Neil", True, None], [2, "", False, "10.0.0.1"]],
        "visits": [[(NOON + timedelta(seconds=at)).isoformat(), Decimal(at) / 4] for at in range(1200)],
    }
    missing = (("user_payments", "The table could not be read."),)
    volumes = list(
        render_report(report(people, visits, nothing, not_exported=missing), lambda part: rows[part.data_type])
    )
    assert [volume.name for volume in volumes] == ["report.pdf"]
    return volumes[0]


def test_the_cover_says_who_what_and_when(small: Volume) -> None:
    cover = pages_of(small)[0]
    for said in (
        "Your data",
        "user-4711",
        "req-77",
        "right of access, GDPR",
        "3 November 2026, 12:00 UTC",
        "3 November 2026, 12:02 UTC",
        "3 November 2026, 12:03 UTC",
        "1,202 records in 3 kinds of data",
    ):
        assert said in cover


def test_the_summary_counts_every_type_and_says_where_it_is(small: Volume) -> None:
    cover = " ".join(pages_of(small)[0].split())
    assert "Your profile user_profiles 2 page 2" in cover
    assert "Visits visits 1,200 page 2" in cover
    assert "User feedback user_feedback 0 nothing is stored" in cover


def test_what_is_missing_is_named_with_its_reason(small: Volume) -> None:
    assert "User payments The table could not be read." in " ".join(text_of(small).split())


def test_a_type_without_rows_says_so(small: Volume) -> None:
    assert "Nothing of this kind is stored." in text_of(small)


def test_a_section_prints_its_note(small: Volume) -> None:
    assert "The column “amount” is rounded." in text_of(small)


def test_labels_are_plain_words(small: Volume) -> None:
    assert "ID Full name Is active Last login IP" in " ".join(text_of(small).split())


def test_every_row_is_there_once_and_in_order(small: Volume) -> None:
    stamps = re.findall(r"2026-11-03 (\d\d:\d\d:\d\d) UTC", text_of(small))
    assert stamps == [f"{NOON + timedelta(seconds=at):%H:%M:%S}" for at in range(1200)]


def test_null_is_not_an_empty_text(small: Volume) -> None:
    page = " ".join(pages_of(small)[1].split())
    assert "1 Ann O'Neil yes ⟨no value⟩ 2 ⟨empty⟩ no 10.0.0.1" in page


def test_every_page_has_its_number_and_every_table_page_its_header(small: Volume) -> None:
    pages = pages_of(small)
    assert len(pages) == small.pages > 10
    for number, page in enumerate(pages, 1):
        assert f"Page {number} of {len(pages)}" in page
        assert "Request req-77" in page
    for page in pages[1:-1]:
        assert re.search(r"At\s+Amount", page), "a page of the table lacks its header"


def test_it_declares_pdf_ua_with_title_and_language(small: Volume) -> None:
    root = reader(small).trailer["/Root"]
    metadata = root["/Metadata"].get_object().get_data().decode()
    assert re.search(r"pdfuaid:part>1<", metadata)
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"] == "en"
    assert root["/ViewerPreferences"]["/DisplayDocTitle"]
    assert reader(small).metadata.title == "Your data"


def test_tables_are_tagged_row_by_row(small: Volume) -> None:
    names = structure(small)
    # Header and rows of: summary, what is missing, profiles, visits.
    assert names.count("/TR") == (1 + 3) + (1 + 1) + (1 + 2) + (1 + 1200)
    assert names.count("/TH") == 4 + 2 + 4 + 2
    assert names.count("/Table") == 4


def test_each_data_type_has_a_bookmark(small: Volume) -> None:
    titles = [item.title for item in reader(small).outline]
    assert titles[-3:] == ["Your profile", "Visits", "User feedback"]


def test_only_fonts_of_the_packages_are_used_and_embedded(small: Volume) -> None:
    for page in reader(small).pages:
        for font in page["/Resources"].get("/Font", {}).values():
            inner = font.get_object()["/DescendantFonts"][0].get_object()
            name = inner["/BaseFont"].split("+")[1].split("-")[0]
            assert any(name.startswith(family.replace(" ", "")) for family in pdf_fonts.FAMILIES), name
            assert {"/FontFile2", "/FontFile3"} & set(inner["/FontDescriptor"].get_object())


def test_the_same_report_is_the_same_file() -> None:
    rows = {"a": [[1, "x"]]}
    assert render(rows)[0].content == render(rows)[0].content


# ---- scripts and hostile text


#: Readers put a bracket, a joiner or a stacked vowel of these a place too early or late; no letter is lost.
REORDERED = {"Hebrew", "Persian", "Khmer"}


def test_every_script_is_readable_and_copies_out_as_it_went_in() -> None:
    for name, text in SCRIPTS.items():
        (volume,) = render({"texts": [["x", text]]})
        found = squeezed(pages_of(volume)[1])
        assert "U+" not in found, name
        if name in REORDERED:
            assert set(squeezed(text)) <= set(found), name
        else:
            assert squeezed(text) in found, name


def test_right_to_left_values_stand_at_the_right() -> None:
    assert rich(SCRIPTS["Arabic"])["d"] == 2
    assert rich(SCRIPTS["Hebrew"])["d"] == 1
    assert "d" not in rich("Order אבג" + "\n")


def test_the_script_chooses_the_form_of_shared_characters() -> None:
    assert rich(SCRIPTS["Japanese"])["l"] == "ja"
    assert rich(SCRIPTS["Korean"])["l"] == "ko"
    assert rich(SCRIPTS["Chinese"]) == SCRIPTS["Chinese"]


def test_markup_is_printed_as_text_and_does_nothing() -> None:
    names = {"user_id": HOSTILE[0], "not_exported": ((HOSTILE[1], HOSTILE[2]),), "request_type": HOSTILE[3]}
    sections = [
        ReportSection(data_type="t", title=HOSTILE[0], columns=(HOSTILE[1], "b"), rows_total=4, note=HOSTILE[2])
    ]
    rows = [[text, {"key": text}] for text in HOSTILE]
    (volume,) = render_report(report(*sections, **names), lambda _: rows)
    found = squeezed(text_of(volume))
    for text in HOSTILE:
        assert found.count(squeezed(text)) >= 2, text
    assert "/URI" not in str([page.get("/Annots") for page in reader(volume).pages])
    assert not {"/JavaScript", "/OpenAction", "/AA", "/EmbeddedFiles"} & set(reader(volume).trailer["/Root"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\u2066a\u2069", "⟨U+2066⟩a⟨U+2069⟩"),
        ("\x00\x07\x1b\x7f\x85", "⟨U+0000 U+0007 U+001B U+007F U+0085⟩"),
        ("x\ud800y", "x⟨U+D800⟩y"),
        ("\ue000", "⟨U+E000⟩"),
        ("\U000e0fff", "⟨U+E0FFF⟩"),
        ("\u200bzero\u00adsoft\ufeff", "⟨U+200B⟩zero⟨U+00AD⟩soft⟨U+FEFF⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\U00013000 hieroglyph", "⟨U+13000⟩ hieroglyph"),
        ("\u0301 an accent without a letter", "⟨U+0301⟩ an accent without a letter"),
        ("e\u0301", "e\u0301"),
        ("क\u0301\u05b0", "क⟨U+0301 U+05B0⟩"),
        ("a\n\u0657", "a ⟨U+0657⟩"),
        ("\u200d", "⟨U+200D⟩"),
        ("⟨no value⟩", "⟨U+27E8⟩no value⟨U+27E9⟩"),
        ("\r", "⟨U+000D⟩"),
        ("a\r\nb", "a b"),
        ("a" + "\n" * 50 + "b", "a ⟨50 line breaks⟩ b"),
    ],
)
def test_no_character_is_dropped_silently(text: str, shown: str) -> None:
    assert flat(rich(text)) == shown


def test_unprintable_text_reaches_the_page_named() -> None:
    (volume,) = render({"notes": [[1, "bidi \u202eevil"], [2, "\x00\x1b"], [3, "\ud800"], [4, "⟨empty⟩"], [5, "ᚠ"]]})
    found = text_of(volume)
    for mark in ("⟨U+202E⟩", "⟨U+0000 U+001B⟩", "⟨U+D800⟩", "⟨U+27E8⟩empty⟨U+27E9⟩"):
        assert mark in found
    assert "\u202e" not in found


def test_the_fonts_inside_typst_have_what_we_say() -> None:
    codes = [code for first, last in pdf_fonts._embedded_ranges() for code in range(first, last + 1)]
    assert len(codes) > 3000
    assert compiles_at_once([" ".join(map(chr, codes[at : at + 50])) for at in range(0, len(codes), 50)])


def test_the_fonts_of_the_packages_have_what_we_say() -> None:
    covered = {
        code
        for ranges in pdf_fonts._coverage()
        for first, last in zip(*ranges, strict=True)
        for code in range(first, last + 1)
    }
    assert len(covered) > 50_000
    codes = random.Random(7).sample(sorted(covered), 4000)
    assert compiles_at_once(["".join(map(chr, codes[at : at + 40])) for at in range(0, len(codes), 40)])


def test_random_text_of_all_scripts_and_accents_compiles() -> None:
    chance = random.Random(11)
    pools = ["abc de\n\t", "\u200c\u200d\u200e\u200f\ufe0e\ufe0f", [chr(code) for code in range(0x300, 0x1200)]]
    pools.append([chr(chance.randrange(0x110000)) for _ in range(3000)])
    texts = ["".join(chance.choice(chance.choice(pools)) for _ in range(40)) for _ in range(300)]
    assert compiles_at_once(texts)


def compiles_at_once(texts: list[str]) -> bool:
    rows = [[text] for text in texts]
    data = {
        "title": "t",
        "description": "d",
        "running": "",
        "volume": "",
        "request": "r",
        "cover": None,
        "sections": [
            {
                "title": "s",
                "continued": False,
                "lead": "l",
                "notes": [],
                "tail": "",
                "body": table(("a",), rows, [False]),
            }
        ],
    }
    status, _ = pdf_compiler._run(data, NOON)
    return status == 0


def test_data_that_the_compiler_refuses_still_gives_a_pdf() -> None:
    refused = compiler_data(lead="\U00013000 and \n\u0301")
    assert pdf_compiler._run(refused, NOON)[0] != 0
    document = pypdfium2.PdfDocument(pdf_compiler.compile_pdf(refused, NOON))
    assert "⟨U+13000⟩ and" in document[0].get_textpage().get_text_bounded()
    document.close()


def compiler_data(lead: str) -> dict:
    part = {"title": "s", "continued": False, "lead": lead, "notes": [], "tail": "", "body": None}
    head = {"title": "t", "description": "d", "running": "", "volume": "", "request": "r", "cover": None}
    return {**head, "sections": [part]}


def test_spelling_out_keeps_letters_and_names_accents() -> None:
    assert flat(spelled_out("नमस्ते ok")) == "नमस⟨U+094D⟩त⟨U+0947⟩ ok"
    assert spelled_out({"rows": [["ascii", {"p": [0, "é\u0301"], "d": 1}]]}) == {
        "rows": [["ascii", {"p": [0, "é", {"m": "U+0301"}], "d": 1}]]
    }


# ---- values


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        ("", ""),
        (True, "yes"),
        (False, "no"),
        (12345678, "12345678"),
        (Decimal("1.10"), "1.10"),
        (Decimal("123456789012345678901234567890.1"), "123456789012345678901234567890.1"),
        ("2026-11-03T10:20:30.5+00:00", "2026-11-03 10:20:30.5 UTC"),
        ("2026-11-03T10:20:30", "2026-11-03 10:20:30"),
        ("2026-11-03T10:20:30+05:30", "2026-11-03 10:20:30 +05:30"),
        ("2026-11-03Today I wrote", "2026-11-03Today I wrote"),
        ({"a": [1, Decimal("2.50"), None, True], "ü": "é"}, '{"a": [1, 2.50, null, true], "ü": "é"}'),
        ([], "[]"),
    ],
)
def test_values_read_as_they_are_stored(value: object, shown: str | None) -> None:
    assert plain(value) == shown


def test_column_names_become_labels() -> None:
    assert humanised("last_login_ip") == "Last login IP"
    assert humanised("Prix (€)") == "Prix (€)"
    assert humanised("_") == "_"


def test_moments_are_told_in_utc() -> None:
    berlin = datetime(2026, 7, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    assert moment(berlin) == "30 June 2026, 22:30 UTC"


# ---- long and wide


def test_nothing_leaves_the_page() -> None:
    words = ["A" * 10_000, "W" * 300, "0f8fad5b-d9cb-469f-a165" * 20, "https://example.com/" + "path/" * 200]
    words += ["ن" * 600, "漢" * 500, "\x07" * 400, "x" * 40 + "\u0301" * 40, "word " * 900]
    words += ["ж" * 200, "Donaudampfschifffahrtsgesellschaftskapitänsmütze", "ब" * 90, "ส" * 300, "한" * 200]
    (volume,) = render(
        {
            "narrow": [[word, word[:60], "a", 1, 2, 3, 4] for word in words],
            "wide": [[word] + [word[:50]] * 9 for word in words],
            "W" * 90: [["a", "b"]],
        },
        user_id="U" * 255,
        request_id="R" * 255,
    )
    assert volume.pages > 5
    document = pypdfium2.PdfDocument(volume.content)
    for page in document:
        texts = page.get_textpage()
        for at in range(texts.count_chars()):
            left, _, right, _ = texts.get_charbox(at)
            assert left >= 40 and right <= page.get_width() - 40, texts.get_text_range(at, 1)
    document.close()
    assert text_of(volume).count("A") >= 2 * 10_000


def test_a_value_too_long_for_its_column_is_printed_below_its_row() -> None:
    long = " ".join(f"word{at}" for at in range(900))
    (volume,) = render({"posts": [[1, long, "short", "c", "d", "e"], [2, "next", "f", "g", "h", "i"]]})
    text = text_of(volume)
    assert text.index("⟨printed below⟩") < text.index("word0") < text.index("word899") < text.index("next")
    assert re.findall(r"word\d+", text) == long.split()


def test_many_columns_are_printed_as_records() -> None:
    width = MAX_TABLE_COLUMNS + 5
    (volume,) = render({"wide": [[f"value {row}.{at}" for at in range(width)] for row in range(3)]})
    text = " ".join(text_of(volume).split())
    for row in range(3):
        labelled = " ".join(f"Column {at} value {row}.{at}" for at in range(width))
        assert f"Record {row + 1} of 3 {labelled}" in text


def test_widths_fill_the_page_and_dates_stay_on_one_line() -> None:
    rows = [[str(100_000 + at), "2026-11-03 10:20:30 UTC", "long text " * 30, "more text " * 30] for at in range(50)]
    made = table(("id", "created_at", "body", "note"), rows, [True, False, False, False])
    assert sum(made["widths"]) == pytest.approx(487, abs=1)
    assert made["rows"][0][1] == "2026-11-03 10:20:30 UTC"
    assert made["widths"][1] > 95
    assert is_table(range(MAX_TABLE_COLUMNS)) and not is_table(range(MAX_TABLE_COLUMNS + 1))


# ---- volumes


def rows_of(number: int) -> list[list]:
    return [[at, f"entry number {at:05}", None if at % 3 else ""] for at in range(number)]


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    rows = {"clicks": rows_of(700), "likes": rows_of(40), "empty": [], "orders": rows_of(300)}
    return render(rows, Limits(volume_weight=40_000))


def test_volumes_are_numbered_and_the_cover_comes_last(volumes: list[Volume]) -> None:
    names = [volume.name for volume in volumes]
    assert len(names) > 3
    assert names == [*(f"report-{number:03}.pdf" for number in range(2, len(names) + 1)), "report.pdf"]


def test_every_row_is_in_exactly_one_volume(volumes: list[Volume]) -> None:
    entries = re.findall(r"entry number (\d+)", " ".join("\n".join(map(text_of, volumes)).split()))
    assert entries == [f"{at:05}" for number in (700, 40, 300) for at in range(number)]


def test_the_cover_lists_the_volumes_with_their_contents_and_pages(volumes: list[Volume]) -> None:
    cover = " ".join(text_of(volumes[-1]).split())
    assert "Clicks clicks 700 report-002.pdf to report-" in cover
    assert "Empty empty 0 nothing is stored" in cover
    told = re.findall(r"(report-\d+\.pdf) ((?:Clicks|Likes|Orders|Empty): .*?) (\d+)(?= report-| How )", cover)
    assert [(name, int(pages)) for name, _, pages in told] == [(one.name, one.pages) for one in volumes[:-1]]
    assert "Clicks: records 1 to" in told[0][1]


def test_each_volume_is_complete_in_itself(volumes: list[Volume]) -> None:
    for number, volume in enumerate(volumes[:-1], 2):
        assert reader(volume).metadata.title == f"Your data, volume {number}"
        assert f"Volume {number}" in pages_of(volume)[0]
        assert volume.pages == len(reader(volume).pages)
        assert "/StructTreeRoot" in reader(volume).trailer["/Root"]
    assert "Continued in the next volume." in text_of(volumes[0])
    assert "(continued)" in pages_of(volumes[1])[0]


def test_two_thousand_rows_are_one_file() -> None:
    rows = [
        [100_000 + at, NOON.isoformat(), "click", f"https://example.com/p/{at}", "some words of a note", Decimal(at)]
        for at in range(2000)
    ]
    assert [volume.name for volume in render({"clicks": rows})] == ["report.pdf"]


def test_what_is_too_much_is_referred_to_the_data_file() -> None:
    limits = Limits(rows_per_type=30)
    opened = iter(rows_of(100))
    sections = (section("clicks", ("a", "b", "c"), 100), section("likes", ("a", "b", "c"), 30, data_file="l.json"))
    made = report(*sections)
    (volume,) = render_report(made, lambda part: opened if part.data_type == "clicks" else rows_of(30), limits=limits)
    text = " ".join(text_of(volume).split())
    assert volume.attachments == planned_attachments(made, limits) == ("clicks",)
    assert "The first 30 of 100 records are printed here. All 100 are in the data file clicks.csv." in text
    assert "clicks.csv Clicks: All 100 records; 30 are printed." in text
    assert "The other 70 records are in the data file clicks.csv." in text
    assert len(re.findall(r"entry number", text)) == 60
    assert next(opened)[0] == 30, "more rows were read than are printed"


def test_a_value_too_long_to_print_is_referred_to_the_data_file() -> None:
    volumes = render({"posts": [[1, "x" * 700 + "END"]], "likes": [[1, "y"]]}, Limits(characters_per_value=500))
    (volume,) = volumes
    assert volume.attachments == ("posts",)
    text = " ".join(text_of(volume).split())
    assert "⟨203 more characters: see posts.csv⟩" in text
    assert "END" not in text
    assert "posts.csv Posts: The whole of 1 value too long to print." in text


@pytest.mark.parametrize("arrived", [0, 4, 6])
def test_another_number_of_rows_than_stated_is_refused(arrived: int) -> None:
    closed = []

    def rows(_: ReportSection):
        try:
            yield from rows_of(arrived)
        finally:
            closed.append(True)

    with pytest.raises(FileNotVerified) as refused:
        list(render_report(report(section("clicks", ("a", "b", "c"), 5)), rows))
    assert "clicks" in str(refused.value)
    assert "entry" not in str(refused.value)
    assert closed


def test_a_row_of_another_width_is_refused_without_its_values() -> None:
    with pytest.raises(FileNotVerified) as refused:
        list(render_report(report(section("clicks", ("a", "b"), 1)), lambda _: [["secret"]]))
    assert "secret" not in str(refused.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat() -> None:
    """Peak memory of renderer and compiler, of a report of several volumes, in processes of their own."""
    script = """
import json, resource
from datetime import datetime, UTC
from export_pipeline.render.pdf import Report, ReportSection, render_report
now = datetime.now(UTC)
part = ReportSection(data_type="t", columns=tuple("abcdef"), rows_total=5000)
report = Report(request_id="r", user_id="u", request_type="gdpr", requested_at=now, snapshot_at=now,
                export_date=now, sections=(part,))
words = "several words that differ from row to row and fill two lines"
row = lambda at: [at, now.isoformat(), "你好", f"https://example.com/{at}", f"{at} {words}", None]
volumes = sum(1 for _ in render_report(report, lambda _: map(row, range(5000))))
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
# Not ru_maxrss of our own: it begins with what the process that started us had.
own = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([volumes, own + children]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    volumes, megabytes = json.loads(done.stdout)
    assert volumes > 2
    assert megabytes < 350


# ---- the compiler's process


def test_nothing_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    render({"a": [[1, "x"]]})
    assert not list(tmp_path.rglob("*"))


def test_the_compiler_does_not_inherit_our_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "spy.py"
    spy.write_text("import os, sys; sys.stdin.buffer.read(); print(sorted(os.environ), sys.argv[1:])")
    monkeypatch.setattr(pdf_compiler, "_WORKER", spy)
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", "postgresql://secret")
    told = pdf_compiler.compile_pdf(compiler_data("x"), NOON).decode()
    assert "RAYON_NUM_THREADS" in told
    assert "EXPORT_PIPELINE" not in told
    assert told.rstrip().endswith("[]")


def test_a_compiler_that_fails_says_nothing_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import sys; sys.stderr.write(sys.stdin.read()); sys.exit(3)")
    monkeypatch.setattr(pdf_compiler, "_WORKER", broken)
    with pytest.raises(ExportPipelineError) as failed:
        pdf_compiler.compile_pdf(compiler_data("secret"), NOON)
    assert "status 3" in str(failed.value)
    assert "secret" not in str(failed.value) + "".join(capfd.readouterr())
