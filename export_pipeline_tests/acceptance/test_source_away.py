"""A source that cannot be reached: the request fails with a reason, and nothing is kept of it or of the password."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import psycopg
import pytest
from pydantic import SecretStr

from export_pipeline import supervisor, wiring
from export_pipeline.settings import Settings
from export_pipeline_tests.conftest import database_url
from export_pipeline_tests.running import Running, launcher_under_test

PASSWORD = "canary-of-a-password"
USER = "canary-of-a-user"
_EVENTS = """
query($run: ID!) { runOrError(runId: $run) { ... on Run { tags { key value } eventConnection(limit: 1000) { events {
  ... on MessageEvent { message } ... on ErrorEvent { error { message stack causes { message stack } } } } } } } }
"""


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Nobody listens there, and nobody else gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def cut_off(
    server_url: str, migrated_template: str, closed_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A whole installation whose source is away."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE source_away TEMPLATE {migrated_template}".encode())
    with launcher_under_test(tmp_path_factory.mktemp("broker")) as launcher:
        settings = Settings(
            _env_file=None,
            home=tmp_path_factory.mktemp("home"),
            database_url=SecretStr(database_url(server_url, "source_away")),
            source_url=SecretStr(f"postgresql://reader:{PASSWORD}@127.0.0.1:{closed_port}/shop"),
            local_tokens=True,
            ui_port=0,
            api_port=0,
            **launcher,
        )
        wiring.make_keys(settings)
        with supervisor.start(settings) as stack:
            yield Running(stack=stack)


def test_the_request_fails_with_a_reason_and_nothing_is_stored(cut_off: Running) -> None:
    done = cut_off.wait(cut_off.insert(user_id=USER, data_types=["user_profile", "user_clicks"]))
    assert done.status == "failed"
    assert done.error_message.startswith("The source database cannot be reached")
    services = cut_off.stack.services
    trail = services.requests.trail(done.request_id)
    assert [entry.action for entry in trail] == [
        "export_requested", "export_claimed", "export_started", "export_failed",
    ]  # fmt: skip
    assert services.requests.metadata(done.request_id) is None
    assert services.vault().keys() == []
    assert [path for path in (services.settings.home / "work").rglob("*") if path.is_file()] == []
    [run] = cut_off.finished_runs(done.request_id)
    assert run["status"] == "FAILURE"
    told = [json.dumps(cut_off.graphql(_EVENTS, run=run["runId"])), done.error_message, *map(str, trail)]
    logs = [log.read_text("utf-8") for log in cut_off.stack.log_folder.glob("*.log")]
    assert "cannot be reached" in told[0]
    assert len(logs) > 3
    assert [text for text in (*told, *logs) if PASSWORD in text] == []
    assert [text for text in (told[0], done.error_message, *logs) if USER in text] == []
