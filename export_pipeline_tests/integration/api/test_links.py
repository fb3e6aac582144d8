"""Links and downloads over real HTTP: what a link opens, for how long, how often, and how the bytes come."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from export_pipeline import wiring
from export_pipeline.api import file_desk
from export_pipeline.cli.app import app
from export_pipeline.errors import InvalidRequest, LinkRefused, RequestNotFound, WrongStatus
from export_pipeline.links import PATH
from export_pipeline.models import AuditAction
from export_pipeline.settings import Settings
from export_pipeline.vault import link_tokens
from export_pipeline_tests import servers
from export_pipeline_tests.file_server import ANN, CONTENT, MIB, Answer, Installation
from export_pipeline_tests.serving import served


@pytest.fixture
def settings(tmp_path: Path, migrated_url: str) -> Settings:
    made = Settings(_env_file=None, home=tmp_path / "home", database_url=SecretStr(migrated_url), max_downloads=8)
    wiring.make_keys(made)
    return made


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the file and its headers


def test_a_link_gives_the_file(running: Installation) -> None:
    answer = running.get(running.link().url_path)
    assert (answer.status, answer.body == CONTENT) == (200, True)
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="export-one.zip"'
    assert answer.headers["etag"] == f'"{_sha256(CONTENT)}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
    assert answer.headers["accept-ranges"] == "bytes"
    assert "no-store" in answer.headers["cache-control"]


def test_json_is_decompressed_on_the_way_and_ranges_count_what_is_delivered(running: Installation) -> None:
    text = b'{"rows": [' + b"1234567, " * 300_000 + b"0]}"
    running.place("two", [text[:1000], text[1000:]], encoding="gzip")
    path = running.link("two").url_path
    whole, piece = running.get(path), running.get(path, Range="bytes=2000000-2000099")
    assert (whole.body, whole.headers["content-type"]) == (text, "application/json")
    assert "content-encoding" not in whole.headers
    assert (piece.status, piece.body) == (206, text[2_000_000:2_000_100])


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, len(CONTENT)),
        ("bytes=262143-262145", 262_143, 262_146),
        ("bytes=1048576-", 1_048_576, len(CONTENT)),
        (f"bytes={len(CONTENT) - 1}-", len(CONTENT) - 1, len(CONTENT)),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT)),
        (f"bytes=-{len(CONTENT) * 2}", 0, len(CONTENT)),
        (f"bytes=10-{len(CONTENT) * 2}", 10, len(CONTENT)),
    ],
)
def test_a_range_gives_its_piece(running: Installation, header: str, start: int, end: int) -> None:
    answer = running.get(running.link().url_path, Range=header)
    assert (answer.status, answer.body == CONTENT[start:end]) == (206, True)
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "lines=1-2", "bytes=5-2", "bytes=-", "bytes=a-b", "bytes"])
def test_what_is_no_single_range_gives_the_file(running: Installation, header: str) -> None:
    answer = running.get(running.link().url_path, Range=header)
    assert (answer.status, answer.body == CONTENT) == (200, True)


@pytest.mark.parametrize("header", [f"bytes={len(CONTENT)}-", "bytes=-0", "bytes=99999999999999999-"])
def test_a_range_behind_the_end_gives_nothing(running: Installation, header: str) -> None:
    answer = running.get(running.link().url_path, Range=header)
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(CONTENT)}")
    assert answer.headers["content-type"] == "application/problem+json"


def test_if_range_gives_the_piece_only_of_the_same_file(running: Installation) -> None:
    path = running.link().url_path
    seen = running.get(path, "HEAD").headers
    for validator in (seen["etag"], seen["last-modified"]):
        assert running.get(path, Range="bytes=5-9", If_Range=validator).body == CONTENT[5:10]
    for validator in ('"another"', f"W/{seen['etag']}", "Thu, 01 Jan 1970 00:00:00 GMT", "nonsense"):
        assert running.get(path, Range="bytes=5-9", If_Range=validator).status == 200


# --- what opens nothing


def refused(answer: Answer, status: int, words: str) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.body.decode()
    assert len(answer.body) < 1000
    assert not any(CONTENT[at : at + 16] in answer.body for at in range(0, 2000, 8))


def test_every_altered_letter_ends_a_link(running: Installation) -> None:
    path = running.link().url_path
    token = path.removeprefix(PATH)
    for place in range(len(token)):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(LinkRefused):
            running.services.links.redeem(token[:place] + other + token[place + 1 :])
    for altered in (
        path[:-1],
        path + "A",
        path + "=",
        PATH + "x",
        PATH + "%00" * 96,
        path[:-1] + "%C3%A9",
        path.upper(),
    ):
        assert running.get(altered).status in {403, 404}
    refused(running.get(path[:-2] + ("AA" if not path.endswith("AA") else "BB")), 403, "altered")
    assert running.downloads() == 0


def test_a_later_expiry_cannot_be_written_into_a_token(running: Installation) -> None:
    raw = bytearray(base64.urlsafe_b64decode(running.link().url_path.removeprefix(PATH)))
    raw[16:24] = int(datetime(2999, 1, 1, tzinfo=UTC).timestamp()).to_bytes(8, "big")
    refused(running.get(PATH + base64.urlsafe_b64encode(raw).decode()), 403, "altered")


def test_links_of_another_installation_open_nothing(running: Installation, tmp_path: Path) -> None:
    path = running.link().url_path
    claim = link_tokens.read(running.services.settings.home / "keys" / "links.txt", path.removeprefix(PATH))
    link_tokens.create(tmp_path / "links.txt")
    refused(running.get(PATH + link_tokens.sign(tmp_path / "links.txt", claim)), 403, "not one of our")
    # Signed by our key, and yet not issued here: a copy of the key on another database.
    running.execute("DELETE FROM export_pipeline.export_links")
    refused(running.get(path), 403, "did not issue")


@pytest.mark.parametrize("clock", ["database", "token"])
def test_an_expired_link_opens_nothing(running: Installation, clock: str) -> None:
    path = running.link().url_path
    if clock == "database":
        running.execute("UPDATE export_pipeline.export_links SET expires_at = now()")
    else:
        file = running.services.settings.home / "keys" / "links.txt"
        claim = replace(link_tokens.read(file, path.removeprefix(PATH)), expires_at=datetime.now(UTC))
        path = PATH + link_tokens.sign(file, claim)
    for method, headers in (("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=5-"})):
        answer = running.get(path, method, **headers)
        assert answer.status == 410
    refused(running.get(path), 410, "expired")
    assert running.downloads() == 0


def test_a_revoked_link_opens_nothing_and_others_stay(running: Installation) -> None:
    links, first, second = running.services.links, running.link(), running.link()
    assert running.get(first.url_path).status == 200
    assert links.revoke(first.link_id, ANN).revoked_at is not None
    links.revoke(first.link_id, ANN)
    refused(running.get(first.url_path), 410, "revoked")
    assert running.get(second.url_path).status == 200
    assert links.revoke_all("one", ANN) == 1
    refused(running.get(second.url_path), 410, "revoked")
    trail = [entry.action for entry in running.services.requests.trail("one")]
    assert (trail.count(AuditAction.LINK_ISSUED), trail.count(AuditAction.LINK_REVOKED)) == (2, 2)
    assert running.get(running.link().url_path).status == 200


def test_a_link_ends_with_its_request(running: Installation) -> None:
    path = running.link().url_path
    running.services.intake.delete("one", ANN)
    refused(running.get(path), 410, "gone")
    # Replayed after somebody put everything back but the link.
    running.execute("UPDATE export_pipeline.export_requests SET status = 'completed'")
    refused(running.get(path), 410, "revoked")


@pytest.mark.parametrize("status", ["expired", "deleted", "pending", "failed"])
def test_whatever_takes_the_file_away_ends_its_links(running: Installation, status: str) -> None:
    path = running.link().url_path
    running.execute("UPDATE export_pipeline.export_requests SET status = %s", status)
    refused(running.get(path), 410, "revoked")
    with pytest.raises(WrongStatus):
        running.link()


def test_a_link_to_an_earlier_file_opens_no_later_one(running: Installation) -> None:
    path = running.link().url_path
    running.services.vault().store("one/run-2/export", iter([CONTENT]))
    running.execute("UPDATE export_pipeline.export_metadata SET storage_key = 'one/run-2/export'")
    refused(running.get(path), 410, "made anew")
    assert running.get(running.link().url_path).body == CONTENT


def test_a_link_never_outlives_its_file(running: Installation) -> None:
    link = running.link(lifetime=timedelta(days=300))
    assert timedelta(days=6, hours=23) < link.expires_at - datetime.now(UTC) <= timedelta(days=7)
    running.execute("UPDATE export_pipeline.export_metadata SET expires_at = now()")
    with pytest.raises(WrongStatus, match="expired"):
        running.link()
    # Before the purge has been here.
    refused(running.get(link.url_path), 410, "it has expired")


def test_what_cannot_be_issued_or_revoked(running: Installation) -> None:
    with pytest.raises(RequestNotFound):
        running.link("nobody")
    with pytest.raises(InvalidRequest):
        running.link(lifetime=timedelta(seconds=59))
    with pytest.raises(RequestNotFound):
        running.services.links.revoke("0" * 32, ANN)
    with pytest.raises(RequestNotFound):
        running.services.links.revoke_all("nobody", ANN)


def test_a_key_that_is_taken_out_of_the_file_ends_its_links(running: Installation) -> None:
    file = running.services.settings.home / "keys" / "links.txt"
    old = running.link()
    file.write_text("EXPORT-PIPELINE-LINK-KEY-1" + "ab" * 32 + "\n" + file.read_text())
    new = running.link()
    assert running.get(old.url_path).status == running.get(new.url_path).status == 200
    file.write_text(file.read_text().splitlines()[0] + "\n")
    assert (running.get(old.url_path).status, running.get(new.url_path).status) == (403, 200)


# --- scanners, counting


def test_five_scanners_do_not_burn_a_link(running: Installation) -> None:
    path = running.link().url_path
    scanners: list[Callable[[], Answer]] = [
        lambda: running.get(path, "HEAD", User_Agent="scanner/1"),
        lambda: running.get(path, Sec_Purpose="prefetch", User_Agent="scanner/2"),
        lambda: running.get(path, Sec_Purpose="prefetch;prerender", User_Agent="scanner/3"),
        lambda: running.get(path, Range="bytes=0-1023", User_Agent="scanner/4"),
        lambda: running.get(path, User_Agent="scanner/5"),
    ]
    answers = [scan() for scan in scanners for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3 + [503] * 6 + [206] * 3 + [200] * 3
    assert [len(answer.body) < 1000 for answer in answers] == [True] * 9 + [False] * 6
    answer = running.get(path)
    assert (answer.status, answer.body == CONTENT) == (200, True)


def test_what_gives_no_bytes_is_no_download(running: Installation) -> None:
    path = running.link().url_path
    running.get(path, "HEAD")
    running.get(path, Sec_Purpose="prefetch")
    running.get(path, Range=f"bytes={len(CONTENT)}-")
    assert running.downloads() == 0


def test_pieces_of_one_client_are_one_download(running: Installation) -> None:
    link = running.link()
    pieces = [f"bytes={at}-{at + 99_999}" for at in range(0, len(CONTENT), 100_000)]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda piece: running.get(link.url_path, Range=piece).body, pieces))
    assert b"".join(got) == CONTENT
    # The piece that begins the file, and perhaps one that came before it.
    assert running.downloads() in {1, 2}
    before = running.downloads()
    running.get(link.url_path, Range="bytes=7-")
    assert running.downloads() == before
    running.get(link.url_path, Range="bytes=7-", User_Agent="another/1")
    assert running.downloads() == before + 1
    running.get(link.url_path)
    assert running.downloads() == before + 2
    assert running.services.links.of_request("one")[0].downloads == before + 2


def test_pieces_that_leave_out_the_beginning_are_counted_once(running: Installation) -> None:
    path = running.link().url_path
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda at: running.get(path, Range=f"bytes={at}-"), range(1, 13)))
    assert running.downloads() == 1
    [entry] = [e for e in running.services.requests.trail("one") if e.action == AuditAction.DOWNLOADED]
    assert (entry.actor, entry.ip_address, entry.user_agent) == ("ann", "127.0.0.1", "test/1")
    assert re.fullmatch("link [0-9a-f]{32}", entry.detail)


# --- what is wrong on the way


def test_a_file_that_is_not_the_completed_one_never_ends_well(running: Installation) -> None:
    other = CONTENT[:-1] + b"!"
    running.services.vault().store("one/run-1/export", iter([other]))
    path = running.link().url_path
    with pytest.raises(http.client.IncompleteRead) as cut:
        running.get(path)
    assert len(cut.value.partial) < len(CONTENT)
    with pytest.raises(http.client.IncompleteRead):
        running.get(path, Range=f"bytes={len(CONTENT) - 10}-")


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:-1], b""], ids=["longer", "shorter", "empty"])
def test_another_length_never_ends_well(running: Installation, content: bytes) -> None:
    running.services.vault().store("one/run-1/export", iter([content]))
    path = running.link().url_path
    try:
        answer = running.get(path)
    except http.client.IncompleteRead:
        return
    assert answer.status == 500


@pytest.mark.parametrize("place", [0.5, 0.999])
def test_a_damaged_object_never_ends_well(running: Installation, place: float) -> None:
    [file] = [f for f in (running.services.settings.home / "storage").rglob("export") if f.is_file()]
    raw = bytearray(file.read_bytes())
    raw[int(len(raw) * place)] ^= 1
    file.write_bytes(raw)
    path = running.link().url_path
    with pytest.raises(http.client.IncompleteRead):
        running.get(path)


def test_an_object_that_is_gone_is_said_before_a_byte_is_sent(running: Installation) -> None:
    running.services.vault().delete_below("one")
    answer = running.get(running.link().url_path)
    assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
    assert running.downloads() == 0


# --- many, slow, gone


def unsealing() -> int:
    return sum(thread.name in {"unseal", "ahead"} for thread in threading.enumerate())


@contextmanager
def opened(running: Installation, path: str) -> Iterator[socket.socket]:
    """A client that has asked and reads nothing by itself."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\nUser-Agent: slow/1\r\n\r\n".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 200")
        yield client


@pytest.fixture
def large(running: Installation) -> str:
    """Path of a file that no buffer on the way holds."""
    block = os.urandom(MIB)
    running.place("large", [block] * 48)
    return running.link("large").url_path


def test_the_thread_ends_when_the_client_goes_away(
    running: Installation, large: str, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    with opened(running, large):
        assert unsealing() == 1
    wait_until(lambda: unsealing() == 0)
    # In the middle of what is only passed over, too.
    with closing(http.client.HTTPConnection("127.0.0.1", running.port)) as client:
        client.request("GET", large, headers={"Range": "bytes=50000000-"})
        client.getresponse().read(10)
    wait_until(lambda: unsealing() == 0)


def test_slow_clients_hold_up_nobody_and_too_many_are_told(
    running: Installation,
    large: str,
    wait_until: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_desk, "_PATIENCE_S", 0.2)
    small = running.link().url_path
    slow = [opened(running, large) for _ in range(7)]
    for client in slow:
        client.__enter__()
    try:
        assert running.get(small).body == CONTENT
        with opened(running, large):
            full = running.get(small)
            assert (full.status, full.headers["retry-after"]) == (503, "10")
            assert running.get(small, "HEAD").status == 200
        wait_until(lambda: running.get(small).status == 200)
    finally:
        for client in slow:
            client.__exit__(None, None, None)
    wait_until(lambda: unsealing() == 0)


def test_many_downloads_at_the_same_time(running: Installation) -> None:
    path = running.link().url_path
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: running.get(path), range(40)))
    assert [answer.body == CONTENT for answer in answers] == [True] * 40
    assert running.downloads() == 40
    assert unsealing() == 0


def test_a_download_is_cut_when_its_link_is_revoked(
    running: Installation, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_desk, "_LOOK_S", 0.0)
    with opened(running, large) as client:
        running.services.links.revoke_all("large", ANN)
        came = 0
        while data := client.recv(MIB):
            came += len(data)
    assert came < 24 * MIB


def test_one_link_does_not_take_every_place(running: Installation, large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_desk, "_PER_RIGHT", 2)
    with opened(running, large), opened(running, large):
        assert running.get(large).status == 503
        assert running.get(running.link("large").url_path, Range="bytes=0-9").status == 206


def test_many_links_do_not_take_every_place_either(
    running: Installation, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them are for others than the one person whose files these are."""
    monkeypatch.setattr(file_desk, "_PER_RIGHT", 1)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(opened(running, running.link("large").url_path))
        other = running.link("one").url_path
        assert running.get(other).status == 503
        with running.services.database.connect() as connection:
            connection.execute(
                "UPDATE export_pipeline.export_metadata SET user_id = 'somebody else' WHERE request_id = 'one'"
            )
        assert running.get(other).status == 200


# --- files that only the recipient can open


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    with servers.s3(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def direct(
    s3: servers.S3, settings: Settings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Installation]:
    """An installation on S3 that lets its store hand out what it cannot open itself: the file `sealed`."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    chosen = settings.model_copy(
        update={"storage_url": f"s3://exports/{request.node.originalname}", "direct_downloads": request.param}
    )
    with wiring.connect(chosen) as services, served(services) as port:
        made = Installation(services, port)
        made.place("sealed", [CONTENT], encoding="age")
        yield made


@pytest.mark.parametrize("direct", [True], indirect=True)
def test_the_store_itself_hands_out_what_only_the_recipient_can_open(direct: Installation) -> None:
    sealed = b"".join(direct.services.vault().sealed("sealed/run-1/export"))
    path = direct.link("sealed").url_path
    answer = direct.get(path)
    assert answer.status == 307 and answer.body == b""
    with urlopen(answer.headers["location"]) as fetched:
        assert fetched.read() == sealed
    with pytest.raises(HTTPError, match="403"):
        urlopen(answer.headers["location"].replace("Expires=60", "Expires=600"))
    assert direct.downloads("sealed") == 1
    assert direct.get(path, "HEAD").headers["content-length"] == str(len(sealed))
    direct.services.links.revoke_all("sealed", ANN)
    refused(direct.get(path), 410, "revoked")


@pytest.mark.parametrize("direct", [False], indirect=True)
def test_what_only_the_recipient_can_open_comes_as_it_is_stored(direct: Installation) -> None:
    sealed = b"".join(direct.services.vault().sealed("sealed/run-1/export"))
    answer = direct.get(direct.link("sealed").url_path)
    assert answer.body == sealed != CONTENT
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="export-sealed.zip.age"'
    piece = direct.get(direct.link("sealed").url_path, Range="bytes=1000000-")
    assert piece.body == sealed[1_000_000:]


# --- gigabytes


@dataclass(frozen=True)
class Process:
    running: Installation
    process: psutil.Process


@pytest.fixture
def alone(services: wiring.Services) -> Iterator[Process]:
    """The server in a process of its own."""
    environment = {
        **os.environ,
        "EXPORT_PIPELINE_HOME": str(services.settings.home),
        "EXPORT_PIPELINE_DATABASE_URL": services.database_url,
    }
    command = [sys.executable, "-m", "export_pipeline_tests.serving"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            yield Process(Installation(services, port), psutil.Process(server.pid))
        finally:
            server.terminate()


def fetch(server: Process, path: str, *, offset: int = 0, upto: int, sha256: hashlib._Hash) -> tuple[float, int]:
    """Read a part of a download into a hash.

    Returns:
        Seconds, and the most memory that the server had, in bytes.
    """
    began, got, buffer, most = perf_counter(), offset, bytearray(4 * MIB), 0
    with closing(http.client.HTTPConnection("127.0.0.1", server.running.port, timeout=60)) as client:
        client.request("GET", path, headers={"Range": f"bytes={offset}-"} if offset else {})
        answer = client.getresponse()
        assert answer.status == (206 if offset else 200)
        while got < upto and (count := answer.readinto(memoryview(buffer)[: upto - got])):
            sha256.update(memoryview(buffer)[:count])
            got += count
            most = max(most, server.process.memory_info().rss)
    assert got == upto
    return perf_counter() - began, most


def test_an_interrupted_download_of_two_gigabytes_resumes(
    alone: Process, record_property: Callable[[str, object], None]
) -> None:
    block, sha256 = os.urandom(MIB), hashlib.sha256()
    stored = alone.running.place("huge", (number.to_bytes(8) + block[8:] for number in range(2048)))
    path = alone.running.link("huge").url_path
    alone.running.place("one", [CONTENT])
    small = alone.running.link("one").url_path
    assert alone.running.get(small).body == CONTENT
    before, cut = alone.process.memory_info().rss, stored.size * 6 // 10 + 12_345
    seconds, most = fetch(alone, path, upto=cut, sha256=sha256)
    resumed, most_resumed = fetch(alone, path, offset=cut, upto=stored.size, sha256=sha256)
    assert sha256.hexdigest() == stored.sha256
    grown = max(most, most_resumed) - before
    assert grown < 64 * MIB
    figures = {
        "download_mb_s": cut / seconds / 1e6,
        "resume_s": resumed,
        "resume_mb_s_with_what_is_passed_over": stored.size / resumed / 1e6,
        "memory_growth_mb": grown / MIB,
    }
    for name, figure in figures.items():
        record_property(name, round(figure, 1))
    print({name: round(figure, 1) for name, figure in figures.items()})
    assert alone.running.downloads("huge") == 1


# --- the command


def test_the_command_issues_shows_and_revokes(running: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = running.services.settings.model_copy(update={"public_url": f"http://127.0.0.1:{running.port}"})
    monkeypatch.setattr("export_pipeline.settings.load", lambda: chosen)

    def run(*words: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["link", *words, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    made = run("one", "--lifetime", "5")
    path = made["url"].removeprefix(chosen.public_url)
    assert running.get(path).body == CONTENT
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=4) < left <= timedelta(minutes=5)
    [shown] = run("one", "--list")["links"]
    assert (shown["link_id"], shown["downloads"], shown["revoked_at"]) == (made["link_id"], 1, None)
    assert run("--revoke", made["link_id"])["links"][0]["revoked_at"]
    assert running.get(path).status == 410
    other = run("one")
    assert all(one["revoked_at"] for one in run("one", "--revoke-all")["links"])
    assert running.get(other["url"].removeprefix(chosen.public_url)).status == 410
    for wrong in (["link"], ["link", "one", "--revoke", made["link_id"]]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
