"""The daemon begins when the code server of its machine is there."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from export_pipeline.defs import daemon


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    yield tmp_path / "workspace.yaml"


def write(workspace: Path, **server: object) -> None:
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server | {"location_name": "x"}}]}))


def test_one_that_is_coming_is_waited_for(workspace: Path) -> None:
    write(workspace, socket="code-server.sock")
    waiting = threading.Thread(target=daemon._await_code_server, args=[workspace])
    waiting.start()
    time.sleep(0.3)  # nothing happens
    assert waiting.is_alive()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("code-server.sock")
        server.listen()
        waiting.join(10)
        assert not waiting.is_alive()


def test_one_that_does_not_come_is_left_to_dagster(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_CODE_SERVER_S", 0.2)
    write(workspace, socket="code-server.sock")
    daemon._await_code_server(workspace)


def test_one_on_another_machine_is_not_waited_for(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon.time, "sleep", lambda _seconds: pytest.fail("it waits"))
    write(workspace, host="code-server.example.org", port=4000)
    daemon._await_code_server(workspace)
