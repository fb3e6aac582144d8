"""Downloads by whoever is signed in, over real HTTP: the same pieces, headers and checks as by a link."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from export_pipeline import wiring
from export_pipeline.api import file_desk
from export_pipeline.identity import Principal, Role
from export_pipeline.models import AuditAction
from export_pipeline.settings import Settings
from export_pipeline.sign_in.gatekeeper import COOKIE
from export_pipeline.vault.store import Vault
from export_pipeline_tests.file_server import ANN, CONTENT, MIB, Answer, Installation

PATH = "/api/exports/one/file"
TAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'


@pytest.fixture
def settings(tmp_path: Path, tables_url: str) -> Settings:
    chosen = {"max_downloads": 8, "local_tokens": True, "direct_downloads": True}
    made = Settings(_env_file=None, home=tmp_path / "home", database_url=SecretStr(tables_url), **chosen)
    wiring.make_keys(made)
    return made


@pytest.fixture
def get(running: Installation) -> Callable[..., Answer]:
    """Ask for the file as ann."""
    ann = running.bearer()

    def ask(path: str = PATH, method: str = "GET", **headers: str) -> Answer:
        return running.get(path, method, **{**ann, **headers})

    return ask


def problem(answer: Answer, status: int, name: str) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert f"urn:export-pipeline:problem:{name}" in answer.body.decode()


def rows(running: Installation, request_id: str = "one") -> list[tuple[str, str | None, str | None, str]]:
    trail = running.services.requests.trail(request_id)
    return [
        (row.actor, row.ip_address, row.user_agent, row.detail) for row in trail if row.action == AuditAction.DOWNLOADED
    ]


# --- the same as by a link


def test_headers_and_bytes_are_those_of_a_link(running: Installation, get: Callable[..., Answer]) -> None:
    """Also those that tell what is wrong."""
    link = running.link().url_path
    asked: list[dict[str, str]] = [
        {},
        {"Range": "bytes=0-0"},
        {"Range": "bytes=262143-262145"},
        {"Range": "bytes=-5"},
        {"Range": "bytes=5-", "If_Range": TAG},
        {"Range": "bytes=5-", "If_Range": '"another"'},
        {"Range": "bytes=0-1,5-6"},
        {"Range": "lines=1-2"},
        {"Range": f"bytes={len(CONTENT)}-"},
        {"Sec_Purpose": "prefetch"},
    ]
    for headers in asked:
        by_link, signed_in = running.get(link, **headers), get(**headers)
        assert (signed_in.status, signed_in.body == by_link.body) == (by_link.status, True), headers
        assert _lasting(signed_in) == _lasting(by_link), headers
    looked = get(method="HEAD")
    assert (looked.status, looked.body) == (200, b"")
    assert _lasting(looked) == _lasting(get())
    assert looked.headers["etag"] == TAG


def _lasting(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "date"}


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-", 0, len(CONTENT)),
        ("bytes=1048576-", 1_048_576, len(CONTENT)),
        ("bytes=10-19", 10, 20),
        ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
    ],
)
def test_a_range_gives_its_piece(get: Callable[..., Answer], header: str, start: int, end: int) -> None:
    answer = get(Range=header)
    assert (answer.status, answer.body == CONTENT[start:end]) == (206, True)
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(end - start)
    assert "no-store" in answer.headers["cache-control"]


def test_a_range_behind_the_end_is_said_with_the_length(get: Callable[..., Answer]) -> None:
    answer = get(Range=f"bytes={len(CONTENT)}-")
    problem(answer, 416, "range")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_an_interrupted_download_goes_on_and_is_one_download(running: Installation, get: Callable[..., Answer]) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)) as client:
        client.request("GET", PATH, headers={"User-Agent": "test/1", **running.bearer()})
        answer = client.getresponse()
        tag, begun = answer.headers["ETag"], answer.read(700_001)
    rest = get(Range=f"bytes={len(begun)}-", If_Range=tag)
    assert (rest.status, begun + rest.body == CONTENT) == (206, True)
    assert rows(running) == [("ann", "127.0.0.1", "test/1", "")]


def test_json_is_decompressed_and_ranges_count_what_is_delivered(
    running: Installation, get: Callable[..., Answer]
) -> None:
    text = b'{"rows": [' + b"1234567, " * 300_000 + b"0]}"
    running.place("two", [text], encoding="gzip")
    piece = get("/api/exports/two/file", Range="bytes=2000000-2000099")
    assert (piece.status, piece.body, piece.headers["content-type"]) == (
        206,
        text[2_000_000:2_000_100],
        "application/json",
    )
    assert "content-encoding" not in piece.headers


def test_what_only_the_recipient_can_open_comes_as_it_is_stored_and_from_here(
    running: Installation, get: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect would hand the caller's token, or their browser, to another server: only links lead there."""
    running.place("sealed", [CONTENT], encoding="age")
    monkeypatch.setattr(Vault, "presigned", lambda *_: "https://store.example/sealed")
    assert running.get(running.link("sealed").url_path).status == 307
    sealed = b"".join(running.services.vault().sealed("sealed/run-1/export"))
    answer = get("/api/exports/sealed/file")
    assert (answer.status, answer.body == sealed) == (200, True)
    assert get("/api/exports/sealed/file", Range="bytes=100-199").body == sealed[100:200]


# --- the trail


def test_looking_is_no_download(running: Installation, get: Callable[..., Answer]) -> None:
    get(method="HEAD")
    get(Sec_Purpose="prefetch")
    get(Range=f"bytes={len(CONTENT)}-")
    assert rows(running) == []


def test_pieces_of_one_client_are_one_download(running: Installation, get: Callable[..., Answer]) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda at: get(Range=f"bytes={at}-{at + 999}"), range(1, 13)))
    assert rows(running) == [("ann", "127.0.0.1", "test/1", "")]
    get(Range="bytes=7-9", User_Agent="another/1")
    running.get(PATH, Range="bytes=7-9", **running.bearer(Role.OPERATOR, user_id="olga"))
    assert rows(running)[1:] == [("ann", "127.0.0.1", "another/1", ""), ("olga", "127.0.0.1", "test/1", "")]
    get()
    assert len(rows(running)) == 4


def test_a_link_and_a_sign_in_are_two_downloads(running: Installation, get: Callable[..., Answer]) -> None:
    running.get(running.link().url_path, Range="bytes=5-9")
    get(Range="bytes=5-9")
    details = [row[3] for row in rows(running)]
    assert re.fullmatch("link [0-9a-f]{32}", details[0]) and details[1] == ""


def test_nothing_leaves_when_the_trail_cannot_be_written(
    running: Installation, get: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    running.execute("ALTER TABLE export_pipeline.export_audit_logs ADD CONSTRAINT closed CHECK (false) NOT VALID")
    try:
        assert get().status == 500
    finally:
        running.execute("ALTER TABLE export_pipeline.export_audit_logs DROP CONSTRAINT closed")
    assert get().status == 200


# --- what gives nothing


def test_a_session_of_a_browser_does_as_well(running: Installation) -> None:
    session = running.services.gatekeeper.open_session(Principal(id=ANN.id, roles=frozenset({Role.SUBJECT})))
    answer = running.get(PATH, Cookie=f"{COOKIE}={session}", Range="bytes=0-9")
    assert (answer.status, answer.body) == (206, CONTENT[:10])


def test_a_range_does_not_get_around_the_roles(running: Installation) -> None:
    wanted: list[tuple[dict[str, str], int]] = [
        ({}, 401),
        (running.bearer(user_id="berta"), 404),
        (running.bearer(Role.ADMIN), 403),
        (running.bearer(Role.AUDITOR, user_id="audrey"), 403),
    ]
    for headers, status in wanted:
        for method in ("GET", "HEAD"):
            answer = running.get(PATH, method, Range="bytes=0-9", **headers)
            assert (answer.status, "etag" in answer.headers, CONTENT[:10] in answer.body) == (status, False, False)
    assert rows(running) == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_whose_time_is_over_is_gone_before_the_purge_was_here(
    running: Installation, get: Callable[..., Answer], method: str
) -> None:
    running.execute("UPDATE export_pipeline.export_metadata SET expires_at = now()")
    assert get(method=method, Range="bytes=0-9").status == 410
    problem(get(), 410, "gone")
    problem(get("/api/exports/download/one"), 410, "gone")


def test_a_request_without_a_file_has_no_pieces(running: Installation, get: Callable[..., Answer]) -> None:
    for status, told in (("pending", 409), ("failed", 409), ("deleted", 410), ("expired", 410)):
        running.execute("UPDATE export_pipeline.export_requests SET status = %s", status)
        assert (get(Range="bytes=0-9").status, get(method="HEAD").status) == (told, told)


def test_a_damaged_file_never_ends_well(running: Installation, get: Callable[..., Answer]) -> None:
    running.services.vault().store("one/run-1/export", iter([CONTENT[:-1] + b"!"]))
    for headers in ({}, {"Range": f"bytes={len(CONTENT) - 10}-"}):
        with pytest.raises(http.client.IncompleteRead):
            get(**headers)


# --- many, and gone on the way


@pytest.fixture
def large(running: Installation) -> str:
    """Path of a file that no buffer on the way holds."""
    running.place("large", [os.urandom(MIB)] * 48)
    return "/api/exports/large/file"


def test_a_download_is_cut_when_its_file_is_deleted(
    running: Installation, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_desk, "_LOOK_S", 0.0)
    with closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)) as client:
        client.request("GET", large, headers=running.bearer())
        answer = client.getresponse()
        answer.read(MIB)
        running.services.intake.delete("large", ANN)
        with pytest.raises(http.client.IncompleteRead):
            answer.read()


def test_one_person_does_not_take_every_place(
    running: Installation, large: str, get: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_desk, "_PER_RIGHT", 1)
    with closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)) as client:
        client.request("GET", large, headers=running.bearer())
        client.getresponse().read(MIB)
        full: Any = get(large, Range="bytes=0-9")
        problem(full, 503, "busy")
        assert full.headers["retry-after"] == "10"
        assert get(Range="bytes=0-9").status == 206
        operator = running.bearer(Role.OPERATOR, user_id="olga")
        assert running.get(large, Range="bytes=0-9", **operator).status == 206
