"""Deaths at chosen moments, which a random kill meets seldom: a lock holds the victim exactly there."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from export_pipeline import dagster_home, demo, embedded, supervisor, wiring
from export_pipeline.settings import Settings
from export_pipeline_tests import killing
from export_pipeline_tests.killing import Kill, Load, Victim
from export_pipeline_tests.running import PATIENCE_S, Running, launcher_under_test

_WAITS = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = %s::regclass"


def wait_for(truth: Callable[[], object]) -> object:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := truth()):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # neither locks nor processes send word
    return found


@contextmanager
def locked(running: Running, table: str) -> Iterator[Callable[[], list[int]]]:
    """Nobody can write to a table; gives who waits for it."""
    url = running.stack.services.database_url
    with psycopg.connect(url) as lock, psycopg.connect(url, autocommit=True) as look:
        lock.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE".encode())
        yield lambda: [pid for (pid,) in look.execute(_WAITS, [table]).fetchall()]


def kill(running: Running, victim: Victim) -> Kill:
    return killing.kill(running.stack, victim, random.Random(1))


def ask(running: Running) -> Load:
    load = Load(data_types=["user_feedback"])
    killing.ask(running.stack.services.database_url, load, 1)
    return load


def check(running: Running, load: Load, *, attempts: tuple[int, ...]) -> None:
    verdict = killing.judge(running.stack, load, timeout=PATIENCE_S)
    assert verdict.clean, verdict
    assert verdict.completed == len(load.users)
    assert all(running.stack.services.requests.get(key).attempt in attempts for key in load.ids)


def test_the_run_dies_when_the_file_is_stored_and_not_published(running: Running) -> None:
    with locked(running, "export_pipeline.export_metadata") as waiting:
        load = ask(running)
        wait_for(waiting)
        assert running.stack.services.vault().keys(load.ids[0])
        kill(running, Victim.POOL)
    check(running, load, attempts=(2,))


def test_the_run_dies_when_its_request_is_completed_and_dagster_does_not_know(running: Running) -> None:
    """Nothing but the run itself knew: it counted as started for ever."""
    with locked(running, "export_pipeline.export_metadata") as publishing:
        load = ask(running)
        wait_for(publishing)
        held = locked(running, "dagster.runs")
        waiting = held.__enter__()
    try:
        assert running.wait(load.ids[0]).status == "completed"
        wait_for(waiting)
        kill(running, Victim.POOL)
        with psycopg.connect(running.stack.services.database_url, autocommit=True) as connection:
            for pid in waiting():  # else the server does what the dead had asked for
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    finally:
        held.__exit__(None, None, None)
    check(running, load, attempts=(1,))
    assert [run["status"] for run in running.runs(load.ids[0])] == ["FAILURE"]


@pytest.mark.parametrize(
    ("table", "attempts"),
    [
        pytest.param("dagster.dynamic_partitions", (2,), id="before it noted what to launch"),
        pytest.param("dagster.runs", (1, 2), id="before it launched what it had noted"),
    ],
)
def test_the_daemon_dies_between_claim_and_launch(running: Running, table: str, attempts: tuple[int, ...]) -> None:
    with locked(running, table) as waiting:
        load = ask(running)
        wait_for(waiting)
        kill(running, Victim.DAEMON)
        with psycopg.connect(running.stack.services.database_url, autocommit=True) as connection:
            for pid in waiting():
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    check(running, load, attempts=attempts)


def test_the_supervisor_dies_under_load_and_nothing_outlives_it(tmp_path: Path) -> None:
    with launcher_under_test(tmp_path) as launcher:
        settings = Settings(_env_file=None, home=tmp_path / "home", ui_port=0, api_port=0, **launcher)
        process = up(settings)
        load = Load(data_types=["user_feedback"])
        try:
            url = embedded.url(settings)
            with wiring.connect(settings) as services:
                demo.install_sample(services)
            killing.ask(url, load, 20)
            assert killing.wait_until(url, killing.ended(load), timeout=PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        wait_for(lambda: not killing.strays(settings.home))
        with supervisor.start(settings) as stack:
            check(Running(stack=stack), load, attempts=(1, 2))
        assert not embedded.is_running(settings)


def up(settings: Settings) -> subprocess.Popen[str]:
    """`export-pipeline up`, ready."""
    environment = {**os.environ, **dagster_home.environment(settings)}
    process = subprocess.Popen(
        [sys.executable, "-c", "from export_pipeline.cli import main; main()", "up", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    said = ""
    while True:
        line = process.stdout.readline()
        assert line, f"it ended: {process.wait(30)}"
        said += line
        try:
            assert "/sign-in?" in json.loads(said)["sign_in_url"], said
        except json.JSONDecodeError:
            continue
        return process
