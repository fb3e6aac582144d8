"""Who competes on the data path. Each prepares (imports, connects), then works; `child` measures the work alone."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from benchmarks import heavy_user, scene
from export_pipeline import embedded, wiring
from export_pipeline.collect import statements
from export_pipeline.collect.encoders import ENCODERS
from export_pipeline.collect.statements import RowEncoding
from export_pipeline.export_run import ExportRun
from export_pipeline.models import ExportFormat
from export_pipeline.postgres.programs import find_binaries
from export_pipeline.pump import ahead
from export_pipeline.render import zip64
from export_pipeline.render.csv_archive import CsvRenderer
from export_pipeline.render.formats import RENDERERS
from export_pipeline.render.pdf_compiler import page_count
from export_pipeline.render.streams import Digest, inflate
from export_pipeline.wiring import Services

#: What may be worth knowing about the work, such as the bytes written: asked for when the clock stands.
Facts = Callable[[], dict[str, Any]]
Work = Callable[[], Facts]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way of getting a user's rows out.

    Attributes:
        title: For the table.
        prepare: Opens everything that the work needs.
        most_rows: More would not fit into memory, or be endless.
        absent: Why it cannot compete on this machine; empty when it can.
    """

    title: str
    prepare: Callable[[Path, int], AbstractContextManager[Work]]
    most_rows: int = 10**9
    absent: str = ""


# --- ours


def _ours(form: ExportFormat) -> Callable[[Path, int], AbstractContextManager[Work]]:
    """The steps of a run, without Dagster: planned, collected, rendered, sealed, stored and read back."""

    @contextmanager
    def prepare(home: Path, rows: int) -> Iterator[Work]:
        with _run(home, rows, form) as (services, run):
            yield lambda: _export(services, run, rows)

    return prepare


@contextmanager
def _run(home: Path, rows: int, form: ExportFormat) -> Iterator[tuple[Services, ExportRun]]:
    """A run that owns a request for all rows; what it stored is removed afterwards."""
    with wiring.connect(scene.settings(home)) as services:
        request = services.intake.request(
            user_id=heavy_user.USER, data_types=[heavy_user.data_type(rows)], actor=scene.ACTOR, format=form.value
        )
        services.requests.claim(1000)
        run = services.run(request.request_id, "benchmark", reopen=False)
        try:
            yield services, run
        finally:
            run.fail("This was a benchmark.")
            run.close()


def _export(services: Services, run: ExportRun, rows: int) -> Facts:
    plan = run.plan()
    parts = [run.collect(plan, planned.data_type) for planned in plan.types]
    stored = run.render_and_store(plan, parts, {})
    if stored.manifest["total_records"] != rows:
        raise AssertionError("The export is not complete.")

    def facts() -> dict[str, Any]:
        told = {"bytes": stored.size, "stored_bytes": stored.stored_size}
        if plan.format is ExportFormat.PDF:
            told["pages"] = _pages(services.vault().open(stored.key))
        return told

    return facts


def _pages(archive: Iterable[bytes]) -> int:
    pages = 0
    for member in zip64.read(archive):
        for piece in member.content if not member.name.endswith(".pdf") else [b"".join(member.content)]:
            pages += page_count(piece) if piece.startswith(b"%PDF-") else 0
    return pages


@contextmanager
def _straight(home: Path, rows: int) -> Iterator[Work]:
    """CSV in one stream: no part is staged, so nothing is opened and sealed again. Without the frame of a zip."""
    with _run(home, rows, ExportFormat.CSV) as (services, run):
        yield lambda: _stream(services, run)


def _stream(services: Services, run: ExportRun) -> Facts:
    extract = run.plan().types[0].extract
    vault, encoder = services.vault(), ENCODERS[RowEncoding.CSV]
    key, written, found = f"{run.request_id}/{run.run_id}/straight.age", Digest(), Digest()
    with services.source().snapshot() as snapshot, snapshot.attempt() as connection, connection.cursor() as cursor:
        cursor.execute(statements.count(extract, heavy_user.USER))
        with closing(encoder.content(cursor, extract, heavy_user.USER)) as rendered:
            stored = vault.store(key, encoder.pack(written.watch(rendered)))
        counted = cursor.rowcount
    rows = CsvRenderer().count(found.watch(ahead(inflate(vault.open(key)))))
    if (rows, found.sha256) != (counted, written.sha256):
        raise AssertionError("The export is not complete.")
    return lambda: {"bytes": stored.size, "stored_bytes": stored.size}


# --- psql


def _psql(command: str, *, gzip: bool = False) -> Callable[[Path, int], AbstractContextManager[Work]]:
    """Let psql run `command`, whose ``{select}`` is what the export selects; its output is thrown away or gzipped."""

    @contextmanager
    def prepare(home: Path, rows: int) -> Iterator[Work]:
        url = embedded.url(scene.settings(home))
        statement = command.format(select=heavy_user.select(rows).as_string())
        psql = [str(find_binaries() / "psql"), "--no-psqlrc", "--quiet", "--command", statement]
        with tempfile.TemporaryDirectory(dir=home) as folder:
            file = Path(folder) / "export.csv.gz"
            yield (lambda: _pipe(psql, _login(url), file)) if gzip else (lambda: _discard(psql, _login(url)))

    return prepare


def _discard(psql: list[str], login: dict[str, str]) -> Facts:
    subprocess.run(psql, env={**os.environ, **login}, stdout=subprocess.DEVNULL, check=True)
    return dict


def _pipe(psql: list[str], login: dict[str, str], file: Path) -> Facts:
    """``psql | gzip -1 > file``, without a shell."""
    with file.open("wb") as out, subprocess.Popen(psql, env={**os.environ, **login}, stdout=subprocess.PIPE) as source:
        subprocess.run(["gzip", "-1"], stdin=source.stdout, stdout=out, check=True)
    if source.returncode:
        raise subprocess.CalledProcessError(source.returncode, "psql")
    return _size_of(file)


def _size_of(file: Path) -> Facts:
    size = file.stat().st_size
    return lambda: {"bytes": size}


def _login(url: str) -> dict[str, str]:
    """Variables of libpq: a password does not belong on a command line."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    return {names[name]: str(value) for name, value in conninfo_to_dict(url).items() if name in names}


# --- what people write first


@contextmanager
def _sketch(home: Path, rows: int) -> Iterator[Work]:
    """The specification's way: all rows as dicts, one `json.dumps`, one text file."""
    with (
        psycopg.connect(embedded.url(scene.settings(home)), row_factory=dict_row) as connection,
        tempfile.TemporaryDirectory(dir=home) as folder,
    ):

        def work() -> Facts:
            found = connection.execute(heavy_user.select(rows)).fetchall()
            document = {"user_id": heavy_user.USER, "data": {"heavy": found}, "metadata": {"total": len(found)}}
            file = Path(folder) / "export.json"
            file.write_text(json.dumps(document, default=str, indent=2))
            return _size_of(file)

        yield work


@contextmanager
def _sketch_csv(home: Path, rows: int) -> Iterator[Work]:
    """The specification's CSV: all rows as dicts, DictWriter into memory, a zip in memory."""
    with (
        psycopg.connect(embedded.url(scene.settings(home)), row_factory=dict_row) as connection,
        tempfile.TemporaryDirectory(dir=home) as folder,
    ):

        def work() -> Facts:
            found = connection.execute(heavy_user.select(rows)).fetchall()
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(found[0]))
            writer.writeheader()
            writer.writerows(found)
            file = Path(folder) / "export.zip"
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("heavy.csv", text.getvalue())
            return _size_of(file)

        yield work


@contextmanager
def _pandas(home: Path, rows: int) -> Iterator[Work]:
    """The usual script: read_sql over a server-side cursor in chunks, to_csv."""
    import pandas  # type: ignore[import-untyped, unused-ignore]
    from sqlalchemy import create_engine, text

    engine = create_engine(
        embedded.url(scene.settings(home)).replace("postgresql://", "postgresql+psycopg2://"),
        execution_options={"stream_results": True},
    )
    with engine.connect() as connection, tempfile.TemporaryDirectory(dir=home) as folder:
        query = text(heavy_user.select(rows).as_string())

        def work() -> Facts:
            file = Path(folder) / "export.csv"
            for number, frame in enumerate(pandas.read_sql(query, connection, chunksize=50_000)):
                frame.to_csv(file, mode="a", index=False, header=number == 0)
            return _size_of(file)

        yield work
    engine.dispose()


_NO_GZIP = "" if shutil.which("gzip") else "there is no gzip here"
_NO_PANDAS = (
    "" if importlib.util.find_spec("pandas") else "pandas is not installed (pip install 'export-pipeline[bench]')"
)

CONTESTANTS = {
    **{form.value: Contestant(title=f"ours, {form.value}", prepare=_ours(form)) for form in RENDERERS},
    "pdf": Contestant(title="ours, pdf", prepare=_ours(ExportFormat.PDF), most_rows=10**5),
    "straight": Contestant(title="csv in one stream, no parts", prepare=_straight),
    "psql_null": Contestant(
        title="psql \\copy csv to /dev/null",
        prepare=_psql("\\copy ({select}) TO '/dev/null' WITH (FORMAT csv, HEADER)"),
    ),
    "psql_gzip": Contestant(
        title="psql \\copy csv | gzip -1 > file",
        prepare=_psql("\\copy ({select}) TO STDOUT WITH (FORMAT csv, HEADER)", gzip=True),
        absent=_NO_GZIP,
    ),
    "copy_json": Contestant(
        title="psql COPY row_to_json to /dev/null",
        prepare=_psql("COPY (SELECT row_to_json(r) FROM ({select}) AS r) TO STDOUT"),
    ),
    "sketch": Contestant(title="specification's sketch, json", prepare=_sketch, most_rows=10**6),
    "sketch_csv": Contestant(title="specification's sketch, csv", prepare=_sketch_csv, most_rows=10**6),
    "pandas": Contestant(title="pandas.read_sql in chunks, csv", prepare=_pandas, most_rows=10**6, absent=_NO_PANDAS),
}
