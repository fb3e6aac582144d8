"""No plaintext reaches a disk: every file that exists at any moment of an export is searched for what the source holds.

A watcher looks as fast as it can at the state folder, the folder for temporary files, the working folder and the files
that our processes hold open, those without a name too. The exports are slow enough to be looked at many times.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from pyrage import x25519
from typer.testing import CliRunner

from export_pipeline.cli.app import app
from export_pipeline.models import Actor, ExportFormat, ExportRequest
from export_pipeline.settings import Settings
from export_pipeline.wiring import Services
from export_pipeline_tests.exporting import execute

ME = Actor(id="tester")
USER = "user-0004"
#: In a text column, so it stands in every format as it is; in the PDF's data file, and packed in the report.
CANARY = "c4n4ry-7f3e9d21"
ROWS = 60_000
_CHUNK = 1024 * 1024
_AGE = b"age-encryption.org/v1\n"


class Watcher:
    """Searches files for a text, again and again, until told to stop.

    Attributes:
        found: Where the text stood, or what lies where sealed objects lie and is not sealed: the text could be packed.
        looks: Rounds over all places.
        files: Different files that were read, with or without a name.
        elsewhere: Files outside of the state folder, and those that have no name.
    """

    def __init__(self, text: str, home: Path, *roots: Path) -> None:
        self._wanted = [text.encode(), text.encode("utf-16-le"), text.encode().hex().encode()]
        self._roots = (home, *roots)
        self._sealed = (home / "storage", home / "work")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher")
        self._read: dict[tuple[int, int], tuple[int, int]] = {}
        self.found: set[str] = set()
        self.files: set[tuple[int, int]] = set()
        self.elsewhere: set[str] = set()
        self.looks = 0
        #: The test runner's own, for what is printed.
        self._before: set[str] = set()
        self._before = {str(link.readlink()) for link in self._open_files()}
        self.elsewhere.clear()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self.look()
            time.sleep(0.002)  # the export needs the processor too

    def look(self) -> None:
        for path in self._paths():
            with suppress(OSError):
                self._search(path)
        self.looks += 1

    def _paths(self) -> Iterator[Path]:
        for root in self._roots:
            for folder, _, names in os.walk(root):
                yield from (Path(folder, name) for name in names)
                if root != self._roots[0]:
                    self.elsewhere |= {str(Path(folder, name)) for name in names}
        yield from self._open_files()

    def _open_files(self) -> Iterator[Path]:
        """What we and our children hold open: also files that were never given a name, or have lost it."""
        for pid in family(os.getpid()):
            with suppress(OSError):
                yield from self._open_files_of(Path(f"/proc/{pid}/fd"))

    def _open_files_of(self, folder: Path) -> Iterator[Path]:
        for link in folder.iterdir():
            with suppress(OSError):
                target = str(link.readlink())
                if not target.startswith("/") or target.startswith(("/dev/", "/proc/")) or target in self._before:
                    continue
                if target.endswith("(deleted)"):
                    self.elsewhere.add(target)
                yield link

    def _search(self, path: Path) -> None:
        status = path.stat()
        place, state = (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
        if not path.is_file() or self._read.get(place) == state:
            return
        self._read[place] = state
        self.files.add(place)
        rest = b""
        with path.open("rb") as opened:
            magic = opened.read(len(_AGE))
            opened.seek(0)
            # Parts of an upload may be written before the first one: a hole is no text.
            if magic.strip(b"\0") and any(root in path.parents for root in self._sealed) and not _AGE.startswith(magic):
                self.found.add(f"not sealed: {path}")
            while chunk := opened.read(_CHUNK):
                text = rest + chunk
                if any(wanted in text for wanted in self._wanted):
                    self.found.add(str(path))
                    return
                rest = chunk[-200:]


def family(pid: int) -> Iterator[int]:
    """A process and those that it started, but for the source: that is where the text comes from."""
    with suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().strip() == "postgres":
            return
        yield pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from family(int(child))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of our own, wherever a library asks for it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def watched(services: Services, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """The source holds the canary; whoever asks for temporary files or the working folder is watched."""
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    with psycopg.connect(services.source_url) as connection:
        # Numbers that do not repeat, or compression would make the files too small to be caught.
        connection.execute(
            "INSERT INTO user_clicks (user_id, element_id, timestamp)"
            " SELECT %s, %s || md5(i::text), now() FROM generate_series(1, %s) AS i",
            [USER, CANARY, ROWS],
        )
        connection.execute(
            "INSERT INTO user_errors (user_id, error_message, timestamp) VALUES (%s, %s, now())", [USER, CANARY]
        )
    return Watcher(CANARY, services.settings.home, temporary, tmp_path / "working")


def export(services: Services, form: str, recipient: str | None) -> ExportRequest:
    request = services.intake.request(
        user_id=USER, data_types=["user_clicks", "user_errors"], actor=ME, format=form, recipient=recipient
    )
    return execute(services, request.request_id)


@pytest.mark.parametrize("form", ExportFormat)
@pytest.mark.parametrize("sealed_for", ["installation", "recipient"])
def test_no_file_ever_holds_plaintext(services: Services, watched: Watcher, form: str, sealed_for: str) -> None:
    recipient = str(x25519.Identity.generate().to_public()) if sealed_for == "recipient" else None
    with watched:
        export(services, form, recipient)
        services.retention.purge()
    watched.look()
    assert watched.found == set()
    assert watched.elsewhere == set(), "not even packed: no temporary file has come into being"
    assert watched.looks > 5  # often enough to have seen the export; how often depends on the machine
    assert len(watched.files) > 3, "parts, the file, keys: it has seen the places where data goes"


def test_nor_while_a_file_is_fetched(
    services: Services, watched: Watcher, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the one that the person asked for, which is for its owner only from its first byte on."""
    monkeypatch.setenv("EXPORT_PIPELINE_HOME", str(settings.home))
    monkeypatch.setenv("EXPORT_PIPELINE_DATABASE_URL", settings.database_url.get_secret_value())
    request = export(services, "json", None)
    file = tmp_path / "out" / "file"
    file.parent.mkdir()
    with watched:
        done = CliRunner().invoke(app, ["download", request.request_id, "-o", str(file)])
    assert done.exit_code == 0, done
    own = {str(Path("/proc") / str(os.getpid()) / "fd")}
    assert {str(Path(place).parent) for place in watched.found} <= own, "held open by the command while it writes"
    assert watched.elsewhere == set()
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("way", ["file", "unlinked", "nameless"])
def test_the_watcher_finds_what_there_is(watched: Watcher, temporary: Path, way: str) -> None:
    """Or its silence would mean nothing."""
    if way == "nameless" and not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    flags = os.O_RDWR | (os.O_TMPFILE if way == "nameless" else os.O_CREAT)
    descriptor = os.open(temporary if way == "nameless" else temporary / "leak", flags, 0o600)
    try:
        os.write(descriptor, b"x" * (_CHUNK - 5) + CANARY.encode())
        if way == "unlinked":
            (temporary / "leak").unlink()
        watched.look()
    finally:
        os.close(descriptor)
    assert watched.found
    assert watched.elsewhere


def test_the_watcher_finds_what_is_not_sealed(services: Services, watched: Watcher) -> None:
    file = services.settings.home / "storage" / "packed"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(zlib.compress(CANARY.encode()))
    watched.look()
    assert watched.found == {f"not sealed: {file}"}
