"""One running installation for all acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from pydantic import SecretStr

from export_pipeline import supervisor, wiring
from export_pipeline.settings import Settings
from export_pipeline_tests.conftest import database_url
from export_pipeline_tests.running import Running, launcher_under_test

#: What the source refuses while it is read: the view shows its rows to `count`, and fails to give their values.
_BROKEN = "CREATE VIEW broken AS SELECT user_id, 1 / (length(user_id) - length(user_id)) AS value FROM users"


@pytest.fixture(scope="session")
def running(server_url: str, sample_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Everything started, on a database with the sample source, and three data types that cannot be exported."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE acceptance TEMPLATE {sample_template}")
    url = database_url(server_url, "acceptance")
    with psycopg.connect(url) as connection:
        connection.execute(_BROKEN)
    with ExitStack() as held:
        settings = Settings(
            _env_file=None,
            home=tmp_path_factory.mktemp("home"),
            database_url=SecretStr(url),
            local_tokens=True,
            ui_port=0,
            api_port=0,
            **held.enter_context(launcher_under_test(tmp_path_factory.mktemp("broker"))),
        )
        wiring.make_keys(settings)
        yield Running(stack=held.enter_context(supervisor.start(settings)))
