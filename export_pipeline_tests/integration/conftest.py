"""Installations over throw-away databases, roles of the source, and the way from a request to the rows in its file."""

from __future__ import annotations

import csv
import io
import itertools
import json
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from export_pipeline import wiring
from export_pipeline.db.pool import Database
from export_pipeline.errors import ExportPipelineError
from export_pipeline.models import Actor, DataTypeConfig, ExportRequest
from export_pipeline.render.formats import delivered
from export_pipeline.settings import Settings
from export_pipeline_tests.exporting import execute

ADMIN = Actor(id="admin")

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role of the server, and the URL with which it connects to the test's database."""

    name: str
    password: str
    url: str


@dataclass(frozen=True)
class Exporter:
    """Takes a request through every step of its run, without Dagster."""

    services: wiring.Services
    admin: Actor = field(default=ADMIN)

    def export(self, user_id: str, data_types: Sequence[str], *, format: str = "json") -> ExportRequest:
        """Request, claim, plan, collect, render, publish."""
        request = self.services.intake.request(user_id=user_id, data_types=data_types, format=format, actor=self.admin)
        run_id = f"run-{next(_numbers)}"
        try:
            return execute(self.services, request.request_id, run_id)
        except ExportPipelineError as error:
            # As the door does: an open request would be given to whoever asks for the same again.
            self.services.requests.fail(request.request_id, run_id=run_id, message=error.message)
            raise

    def fetch(self, request: ExportRequest) -> bytes:
        """The delivered file."""
        metadata = self.services.requests.metadata(request.request_id)
        assert metadata is not None
        return b"".join(delivered(self.services.vault().open(metadata.storage_key), metadata.content_encoding))

    def json(self, user_id: str, data_types: Sequence[str]) -> dict[str, Any]:
        """Data type → rows."""
        return json.loads(self.fetch(self.export(user_id, data_types)))["data"]

    def csv(self, user_id: str, data_types: Sequence[str]) -> dict[str, list[list[str]]]:
        """Data type → header and rows."""
        archive = zipfile.ZipFile(io.BytesIO(self.fetch(self.export(user_id, data_types, format="csv"))))
        with archive:
            return {
                name.removesuffix(".csv"): list(csv.reader(io.StringIO(archive.read(name).decode(), newline="")))
                for name in archive.namelist()
                if name.endswith(".csv")
            }


@pytest.fixture
def exporter_for(tmp_path: Path) -> Iterator[Callable[..., Exporter]]:
    """Make an installation: call with the URL of migrated tables, the configuration, and maybe another source."""
    with ExitStack() as made:

        def make(url: str, configs: Sequence[DataTypeConfig] = (), source_url: str | None = None) -> Exporter:
            settings = Settings(
                _env_file=None,
                home=tmp_path / f"home-{next(_numbers)}",
                database_url=SecretStr(url),
                source_url=SecretStr(source_url) if source_url else None,
                source_statement_timeout_s=20,
                source_lock_timeout_s=1,
            )
            wiring.apply_migrations(settings)  # there is nothing to apply, but it makes the keys
            services = made.enter_context(wiring.connect(settings))
            if configs:
                services.data_types.apply(configs, ADMIN, prune=True)
            return Exporter(services)

        yield make


@pytest.fixture(scope="session")
def _shared_database(server_url: str, migrated_template: str) -> str:
    """Made once: a database of its own for each of some hundred tests costs more than all that they do."""
    url = urlunsplit(urlsplit(server_url)._replace(path="/shared_tables"))
    _execute(server_url, sql.SQL("CREATE DATABASE shared_tables TEMPLATE {}").format(sql.Identifier(migrated_template)))
    _execute(url, sql.SQL(_KEEP))
    return url


@pytest.fixture
def tables_url(_shared_database: str) -> str:
    """URL of a database with our tables and an empty source, as `migrated_url`, but emptied instead of made."""
    with psycopg.connect(_shared_database, autocommit=True) as connection:
        connection.execute(_EMPTY)
    return _shared_database


#: What the migrations themselves put into the tables. Tests empty and bend the trail here, as its owner may; what
#: protects it is tested on databases of their own.
_KEEP = """
ALTER TABLE export_pipeline.export_audit_logs DISABLE TRIGGER append_only;
ALTER TABLE export_pipeline.export_audit_chain DISABLE TRIGGER append_only;
DO $$
DECLARE name name;
BEGIN
    CREATE SCHEMA kept;
    FOR name IN SELECT tablename FROM pg_tables
                WHERE schemaname = 'export_pipeline' AND tablename <> 'schema_migrations'
    LOOP
        EXECUTE format('CREATE TABLE kept.%I AS TABLE export_pipeline.%I', name, name);
    END LOOP;
END $$
"""
_EMPTY = """
DO $$
DECLARE name name;
BEGIN
    -- No trigger writes to the trail that somebody changed the configuration.
    PERFORM set_config('session_replication_role', 'replica', true);
    EXECUTE (SELECT 'TRUNCATE ' || string_agg(format('export_pipeline.%I', tablename), ', ')
             FROM pg_tables WHERE schemaname = 'kept');
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'kept'
    LOOP
        EXECUTE format('INSERT INTO export_pipeline.%I OVERRIDING SYSTEM VALUE TABLE kept.%I', name, name);
    END LOOP;
    FOR name IN SELECT nspname FROM pg_namespace
                WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'export_pipeline', 'dagster', 'kept')
    LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
    CREATE SCHEMA public;
END $$
"""


@pytest.fixture
def database(tables_url: str) -> Iterator[Database]:
    """A pool over our tables."""
    pool = Database(tables_url, max_size=10)
    yield pool
    pool.close()


@pytest.fixture
def admin(tables_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the same tables, in autocommit: what the tests arrange and look up by hand."""
    with psycopg.connect(tables_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def new_role() -> Iterator[Callable[..., Role]]:
    """Make roles: call with the URL of a database and words of CREATE ROLE."""
    with ExitStack() as made:

        def make(url: str, words: str = "LOGIN") -> Role:
            role = f"role_{next(_numbers)}"
            password = f"secret-of-{role}"
            _execute(
                url,
                sql.SQL("CREATE ROLE {} {} PASSWORD {}").format(sql.Identifier(role), sql.SQL(words), password),
            )
            made.callback(
                _execute, url, sql.SQL("DROP OWNED BY {0}").format(sql.Identifier(role)),
                sql.SQL("DROP ROLE {0}").format(sql.Identifier(role)),
            )  # fmt: skip
            return Role(name=role, password=password, url=_as_role(url, role, password))

        yield make


@pytest.fixture
def closed_port() -> int:
    """A TCP port at which nobody answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """For what the server does by itself, such as noticing a closed connection: soon, but not in the same instant."""

    def wait(truth: Callable[[], bool]) -> None:
        pause = threading.Event()
        for _ in range(1000):
            if truth():
                return
            pause.wait(0.01)
        pytest.fail("waited in vain")

    return wait


@pytest.fixture
def as_role() -> Callable[[str, str, str], str]:
    """Turn a URL into that of another role: call with URL, role and password."""
    return _as_role


def _as_role(url: str, role: str, password: str) -> str:
    """The same database as somebody else."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}:{quote(password, safe='')}@{host}"))


def _execute(url: str, *statements: sql.Composable) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
