"""Several machines without a shared disk: one loses its power in the middle of a run, and every request is completed.

With real servers: PostgreSQL by TCP, an S3 store, a broker. With the launcher `celery` a dead run is noticed by its
lease, with `warm` also by its worker's lock.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import redis

from export_pipeline import verify, wiring
from export_pipeline.db.watch import follow
from export_pipeline.delivery import deliver, save
from export_pipeline.models import ExportRequest
from export_pipeline.wiring import Services
from export_pipeline_tests import machines, servers
from export_pipeline_tests.machines import Site
from export_pipeline_tests.running import PATIENCE_S, TESTER

USERS = [f"user-{number:04d}" for number in range(3, 9)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with machines.site(tmp_path_factory.mktemp("site"), max_concurrent_runs=2) as made:
        yield made


@pytest.fixture
def services(site: Site, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Services]:
    """The test's own machine: it asks and fetches."""
    for name, value in site.environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    with wiring.connect(site.settings(f"visitor-{request.node.callspec.id}")) as made:
        yield made


def wait_until(truth: Callable[[], object], *, say: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not truth():
        assert time.monotonic() < deadline, say()
        time.sleep(0.1)  # PostgreSQL has no event for it


def blocked(url: str) -> list[int]:
    """Processes of the server that wait for our lock, by the port of who asked."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT a.client_port FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
            " WHERE NOT l.granted AND l.relation = 'user_clicks'::regclass"
        ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize("launcher", ["celery", "warm"])
def test_a_machine_loses_its_power(launcher: str, site: Site, services: Services, tmp_path: Path) -> None:
    with ExitStack() as held:
        start = lambda name, command, workers: held.enter_context(  # noqa: E731
            site.machine(f"{launcher}-{name}", command, launcher=launcher, workers=workers)
        )
        control = start("control", "up", 0)
        first, second = start("first", "worker", 1), start("second", "worker", 1)
        if launcher == "warm":
            wait_until(lambda: seats(site.database_url) == 2, say=first.log)
        lock = held.enter_context(psycopg.connect(site.database_url))
        lock.execute("LOCK TABLE user_clicks IN ACCESS EXCLUSIVE MODE")
        ids = [ask(services, user) for user in USERS]
        wait_until(lambda: len(blocked(site.database_url)) == 2, say=lambda: control.log() + first.log())
        assert first.parts(), "the run on it is in the middle"
        if launcher == "celery":
            check_messages(site, ids)
        first.kill()
        lock.rollback()
        done = {request.request_id: request for request in wait_for(services, ids)}
        assert {request.status.value for request in done.values()} == {"completed"}, control.log() + second.log()
        assert sorted(request.attempt for request in done.values()) == [1, 1, 1, 1, 1, 2]
        check_files(services, done, tmp_path)
        wait_until(lambda: not second.parts(), say=second.log)
        assert first.parts(), "sealed, and of no use"
        first = start("first", "worker", 1)
        wait_until(lambda: not first.parts(), say=first.log)
        assert not (control.home / "storage").exists()


def check_messages(site: Site, ids: list[str]) -> None:
    """The broker is told which run to execute, and nothing that it should not know."""
    with redis.Redis.from_url(site.environment["EXPORT_PIPELINE_BROKER_URL"]) as broker:
        messages = [json.loads(message)[0] for message in broker.hvals("unacked")]
    bodies = [base64.b64decode(message["body"]).decode() for message in messages]
    assert len(bodies) == 2
    with psycopg.connect(site.database_url) as connection:
        runs = connection.execute(
            "SELECT run_id FROM export_pipeline.export_requests WHERE status = 'processing'"
        ).fetchall()
    assert all(any(run_id in body for body in bodies) for (run_id,) in runs)
    for body in bodies:
        assert not [word for word in (servers.PASSWORD, "secret-of", *USERS, "AGE-SECRET-KEY") if word in body]


def seats(url: str) -> int:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT export_pipeline.workers_alive()").fetchone()[0]


def ask(services: Services, user_id: str) -> str:
    return services.intake.request(
        user_id=user_id, data_types=["user_profile", "user_clicks"], format="json", actor=TESTER
    ).request_id


def wait_for(services: Services, ids: list[str]) -> list[ExportRequest]:
    last = {request.request_id: request for request in follow(services.database, ids, timeout=PATIENCE_S)}
    return list(last.values())


def check_files(services: Services, done: dict[str, ExportRequest], folder: Path) -> None:
    """Exactly one file each, in the store that all machines share, opened by a machine that made none of them."""
    for request_id, request in done.items():
        [key] = services.vault().keys(request_id)
        assert request.file_url == f"s3://exports/delivered/{key}"
        save(deliver(services.database, services.vault(), request_id, TESTER), folder / f"{request_id}.json")
        verify.verify(folder / f"{request_id}.json")
        actions = [entry.action for entry in services.requests.trail(request_id)]
        assert actions.count("export_completed") == 1
        assert actions.count("export_started") == request.attempt
