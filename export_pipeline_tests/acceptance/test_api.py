"""A running installation, used by nothing but HTTP: what a program of somebody else's would do."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from export_pipeline.identity import Role
from export_pipeline_tests.running import PATIENCE_S, Running

USER = "user-0004"


@dataclass(frozen=True, kw_only=True)
class Script:
    """Knows the address and a token, and reads the rest from the API's own document."""

    address: str
    token: str

    def open(self, method: str, path: str, body: Any = None, *, signed_in: bool = True) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        headers |= {"Authorization": f"Bearer {self.token}"} if signed_in else {}
        data = None if body is None else json.dumps(body).encode()
        return urlopen(Request(self.address + path, data, headers, method=method), timeout=PATIENCE_S)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        with self.open(method, path, body) as answer:
            return json.load(answer)

    def path(self, operation_id: str, **values: str) -> tuple[str, str]:
        """Method and path of an operation, by its name in the OpenAPI document."""
        for path, operations in self.call("GET", "/api/openapi.json")["paths"].items():
            for method, operation in operations.items():
                if operation["operationId"] == operation_id:
                    return method.upper(), path.format(**values)
        raise LookupError(operation_id)

    def follow(self, request_id: str) -> list[dict[str, Any]]:
        """Every status that is told, until the stream ends."""
        with self.open(*self.path("follow_export", request_id=request_id)) as stream:
            return [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]


@pytest.fixture
def script(running: Running) -> Script:
    return Script(address=running.stack.api_url, token=running.token(Role.SUBJECT, user_id=USER))


def test_ask_follow_fetch_delete(script: Script) -> None:
    names = [one["data_type"] for one in script.call(*script.path("list_data_types"))["data_types"]]
    assert {"user_sessions", "user_clicks"} <= set(names)
    body = {"user_id": USER, "data_types": ["user_sessions", "user_clicks"], "format": "json"}
    made = script.call(*script.path("request_export"), body)
    told = script.follow(made["request_id"])
    assert told[-1]["status"] == "completed", told[-1]
    link = script.call(*script.path("get_download", request_id=made["request_id"]))
    with script.open("GET", link["download_url"], signed_in=False) as answer:
        content = answer.read()
    assert len(content) == told[-1]["file_size_bytes"]
    data = json.loads(content)["data"]
    manifest = script.call(*script.path("get_manifest", request_id=made["request_id"]))
    assert {part["data_type"]: part["rows"] for part in manifest["parts"]} == {k: len(v) for k, v in data.items()}
    assert all(row["user_id"] == USER for rows in data.values() for row in rows) and data["user_clicks"]
    history = script.call(*script.path("get_history", user_id=USER))
    assert made["request_id"] in [one["request_id"] for one in history["exports"]]
    deleted = script.call(*script.path("delete_export", request_id=made["request_id"]))
    assert deleted["status"] == "deleted"
    with pytest.raises(HTTPError) as gone:
        script.open("GET", link["download_url"], signed_in=False)
    assert gone.value.code == 410
    gone.value.close()


def test_it_is_ready_and_started_again_when_it_dies(running: Running, script: Script) -> None:
    assert script.call("GET", "/ready")["status"] == "ready"
    [child] = [child for child in running.stack._children if child.name == "api"]
    before = child.process
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if child.process is not before and script.call("GET", "/health")["status"] == "ok":
                break
        except (URLError, ConnectionError):
            assert time.monotonic() < deadline
        time.sleep(0.2)  # a process that is not there yet has nothing to wait for


def test_what_it_prints_names_nobody(running: Running, script: Script) -> None:
    script.call(*script.path("get_history", user_id=USER))
    log = (running.stack.log_folder / "api.log").read_text("utf-8")
    assert "Uvicorn running" in log
    assert USER not in log
