"""A whole running installation for tests: real database, code server, daemon, web server, runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from export_pipeline import wiring
from export_pipeline.db.watch import ended, follow
from export_pipeline.delivery import deliver
from export_pipeline.identity import Principal, Role
from export_pipeline.models import Actor, ExportRequest
from export_pipeline.settings import Settings
from export_pipeline.sign_in.tokens import Issuer
from export_pipeline.supervisor import Stack
from export_pipeline_tests import servers

#: Far above what a run takes here; a test that needs it has failed.
PATIENCE_S = 150.0
FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
TESTER = Actor(id="tester")
#: Meant for whole installations only: other tests make settings of their own.
LAUNCHER = os.environ.pop("EXPORT_PIPELINE_LAUNCHER", "warm")
LAUNCHERS = ("warm", "default", "celery")


@contextmanager
def launcher_under_test(folder: Path, launcher: str = LAUNCHER) -> Iterator[dict[str, str]]:
    """Settings of a launcher, else of the one that `EXPORT_PIPELINE_LAUNCHER` names: all must pass the same tests."""
    if launcher != "celery":
        yield {"launcher": launcher}
        return
    with servers.broker(folder) as broker:
        yield {"launcher": launcher, "broker_url": broker.url}


def patient_settings(home: Path, launcher: dict[str, str]) -> Settings:
    """Of an installation in which tests hold a run in the middle, by locking a table that it reads."""
    return Settings(_env_file=None, home=home, ui_port=0, api_port=0, source_lock_timeout_s=120, **launcher)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running installation."""

    stack: Stack

    def insert(self, **columns: object) -> str:
        """Write a row as anybody would by psql; gives the request's id."""
        columns = {
            "user_id": "user-0004",
            "requested_by": "tester",
            "request_type": "custom",
            "format": "json",
        } | columns
        statement = sql.SQL("INSERT INTO export_pipeline.export_requests ({}) VALUES ({}) RETURNING request_id").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Literal, columns.values()))
        )
        with psycopg.connect(self.stack.services.database_url) as connection:
            return connection.execute(statement).fetchone()[0]

    def wait(self, request_id: str, *, until: tuple[str, ...] | None = None) -> ExportRequest:
        """Wait until a request has ended, or has one of the statuses `until`."""
        done = ended if until is None else lambda request: request.status.value in until
        *_, last = follow(self.stack.services.database, [request_id], timeout=PATIENCE_S, until=done)
        return last

    def file(self, request_id: str) -> bytes:
        """The delivered file."""
        services = self.stack.services
        return b"".join(deliver(services.database, services.vault(), request_id, TESTER).chunks)

    def token(self, *roles: Role, user_id: str = TESTER.id) -> str:
        """A bearer token of our own."""
        principal = Principal(id=user_id, roles=frozenset(roles))
        return Issuer(wiring.token_key_file(self.stack.services.settings)).issue(principal)

    def graphql(self, query: str, **variables: object) -> Any:
        """Ask Dagster what its UI would show."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token(Role.ADMIN)}"}
        request = Request(f"{self.stack.ui_url}/graphql", body, headers)
        with urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def finished_runs(self, request_id: str) -> list[dict[str, Any]]:
        """Dagster's runs of a request once none of them is in progress: a run ends a little after its request."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            runs = self.runs(request_id)
            if all(run["status"] in FINISHED for run in runs):
                return runs
            assert time.monotonic() < deadline, runs
            time.sleep(0.2)  # Dagster has nothing that could be waited for from outside

    def runs(self, request_id: str) -> list[dict[str, Any]]:
        """Dagster's runs of a request, newest first."""
        found = self.graphql(
            """query($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) { ... on Runs { results {
                 runId status tags { key value } } } } }""",
            tags=[{"key": "dagster/partition", "value": request_id}],
        )
        return found["runsOrError"]["results"]


def source_rows(services: wiring.Services, data_type: str, user_id: str) -> list[dict[str, object]]:
    """The rows as PostgreSQL itself turns them into JSON, by another way than the export's."""
    config = next(c for c in services.data_types.all() if c.data_type == data_type)
    columns = ", ".join(f"'{name}', to_jsonb(t.{name})" for name in config.columns_to_export)
    key = {"user_clicks": "click_id", "user_errors": "error_id", "user_workflows": "usage_id"}
    order = key.get(data_type, config.columns_to_export[0])
    with psycopg.connect(services.source_url, row_factory=dict_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        rows = connection.execute(
            f"SELECT jsonb_build_object({columns}) AS row FROM {config.table_name} AS t"
            f" WHERE user_id = %s ORDER BY {order}",
            [user_id],
        )
        return [row["row"] for row in rows]
