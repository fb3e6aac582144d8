"""One real PostgreSQL for each process of tests, and throw-away databases made from templates in milliseconds."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from pydantic import SecretStr

from export_pipeline import embedded, sample_source, wiring
from export_pipeline.db.migrate import migrate
from export_pipeline.settings import Settings
from export_pipeline_tests.skips import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]  # pytest finds it here

_numbers = itertools.count(1)
_MOST_PROCESSES = 8


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are processors, because tests of whole installations mostly wait; none for single files."""
    folders = any(Path(argument.partition("::")[0]).is_dir() for argument in config.args)
    return min(_MOST_PROCESSES, (os.cpu_count() or 1) + 1) if folders else 0


def database_url(server_url: str, name: str) -> str:
    """Point a server's URL at another of its databases."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of this process's server (as superuser), on the database that nobody uses for tests."""
    with embedded.lease(Settings(_env_file=None, home=tmp_path_factory.mktemp("server"))) as lease:
        yield lease.server.url


@pytest.fixture(scope="session")
def migrated_template(server_url: str) -> str:
    """Name of a database with our tables."""
    return _template(server_url, "migrated_template", migrate)


@pytest.fixture(scope="session")
def sample_template(server_url: str, migrated_template: str) -> str:
    """Name of a database with our tables and the sample source."""
    return _template(server_url, "sample_template", sample_source.install, template=migrated_template)


@pytest.fixture
def new_database(server_url: str) -> Iterator[Callable[..., str]]:
    """Make throw-away databases: call with a template's name, get a URL."""
    with ExitStack() as made:

        def make(template: str = "template0") -> str:
            name = f"test_{next(_numbers)}"
            _execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
            made.callback(_execute, server_url, f"DROP DATABASE {name} WITH (FORCE)")
            return database_url(server_url, name)

        yield make


@pytest.fixture
def pg_url(new_database: Callable[..., str]) -> str:
    """URL of an empty database."""
    return new_database()


@pytest.fixture
def migrated_url(new_database: Callable[..., str], migrated_template: str) -> str:
    """URL of a database with our tables and no source."""
    return new_database(migrated_template)


@pytest.fixture
def sample_url(new_database: Callable[..., str], sample_template: str) -> str:
    """URL of a database with our tables and the sample source."""
    return new_database(sample_template)


@pytest.fixture
def settings(tmp_path: Path, sample_url: str) -> Settings:
    """An installation on a database of its own, with a key, that holds the sample source."""
    made = Settings(_env_file=None, home=tmp_path / "home", database_url=SecretStr(sample_url))
    wiring.make_keys(made)
    return made


@pytest.fixture
def services(settings: Settings) -> Iterator[wiring.Services]:
    """The installation's parts."""
    with wiring.connect(settings) as made:
        yield made


def _template(
    server_url: str, name: str, fill: Callable[[psycopg.Connection], object], *, template: str = "template0"
) -> str:
    _execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    with psycopg.connect(database_url(server_url, name)) as connection:
        fill(connection)
    return name


def _execute(server_url: str, statement: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement.encode())
