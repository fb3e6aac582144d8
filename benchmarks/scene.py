"""The scene of a benchmark: an installation of its own on the embedded server, kept so that its rows are made once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks import heavy_user
from export_pipeline import embedded, wiring
from export_pipeline.file_lock import FileLock
from export_pipeline.models import Actor, DataTypeConfig
from export_pipeline.settings import Settings
from export_pipeline.wiring import Services

ACTOR = Actor(id="benchmarks")
DEFAULT_HOME = Path(".export-pipeline/benchmarks")


def settings(home: Path) -> Settings:
    """Defaults only: what a benchmark measures must not depend on the environment."""
    return Settings(_env_file=None, home=home, database_url=None, source_url=None, storage_url=None, key_file=None)


@contextmanager
def prepared(home: Path, rows: int) -> Iterator[Services]:
    """An installation whose source holds a user with `rows` rows, vacuumed and read once; ends with the block.

    A second benchmark on the same scene waits: it would make our tables anew under the first one.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock.exclusive(home / "benchmarks.lock"), _fresh(home) as services:
        heavy_user.ensure(services.source_url, rows)
        name = heavy_user.data_type(rows)
        config = DataTypeConfig(data_type=name, table_name=f"{heavy_user.SCHEMA}.{name}")
        services.data_types.apply([config], ACTOR)
        yield services


@contextmanager
def _fresh(home: Path) -> Iterator[Services]:
    """Our own tables are made anew: those of an earlier version, and its requests, are not wanted."""
    with embedded.lease(settings(home)) as lease:
        with psycopg.connect(lease.server.url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS export_pipeline CASCADE")
        with wiring.connect(settings(home)) as services:
            yield services


def postmaster(home: Path) -> int:
    """Process id of the embedded server."""
    return int((home / "postgres" / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
