"""Several "machines" on this one: each has a state folder and keys of its own, and shares what a network offers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from pydantic import SecretStr

from export_pipeline import sample_source, wiring
from export_pipeline.settings import Settings
from export_pipeline_tests import servers
from export_pipeline_tests.conftest import database_url

_MAIN = "from export_pipeline.cli import main; main()"


@dataclass(kw_only=True)
class Machine:
    """One machine on which a command of ours runs."""

    home: Path
    process: subprocess.Popen[str]
    answer: dict[str, Any]

    def kill(self) -> None:
        """Cut its power: everything that runs there ends at once."""
        everything = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)
        psutil.wait_procs(everything, timeout=30)

    def parts(self) -> list[Path]:
        """What runs left in its work area."""
        return [path for path in (self.home / "work").rglob("*") if path.is_file()]

    def log(self) -> str:
        """What its processes printed."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in (self.home / "logs").glob("*.log"))


@dataclass(kw_only=True)
class Site:
    """What all machines reach: PostgreSQL by TCP, S3, a broker for Celery."""

    folder: Path
    environment: dict[str, str]
    database_url: str
    keys: Path

    @contextmanager
    def machine(self, name: str, command: str, **settings: object) -> Iterator[Machine]:
        """Start a command of ours on a new machine, and wait until it says that it is ready."""
        home = self.folder / name
        self.give_keys(home)
        told = {"home": home, "ui_port": 0, "api_port": 0, **settings}
        environment = self.environment | {f"EXPORT_PIPELINE_{key.upper()}": str(value) for key, value in told.items()}
        process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, command, "--json"],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        machine = Machine(home=home, process=process, answer={})
        try:
            machine.answer = _document(process)
            assert "error" not in machine.answer, machine.answer
            yield machine
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    machine.kill()
            process.stdout.close()

    def give_keys(self, home: Path) -> None:
        """Every machine needs the same keys: each has copies."""
        if not home.exists():
            home.mkdir(mode=0o700)
            shutil.copytree(self.keys, home / "keys")

    def settings(self, name: str) -> Settings:
        """Of a machine where nothing is started."""
        home = self.folder / name
        self.give_keys(home)
        return Settings(
            _env_file=None,
            home=home,
            database_url=SecretStr(self.database_url),
            local_tokens=True,
            storage_url=self.environment["EXPORT_PIPELINE_STORAGE_URL"],
        )


@contextmanager
def site(folder: Path, **settings: object) -> Iterator[Site]:
    """Start the servers, and prepare the database: our tables, the sample source, the keys."""
    with ExitStack() as held:
        for name in ("s3", "broker", "postgres"):
            (folder / name).mkdir()
        s3 = held.enter_context(servers.s3(folder / "s3"))
        broker = held.enter_context(servers.broker(folder / "broker"))
        admin = held.enter_context(servers.postgres(folder / "postgres"))
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("CREATE DATABASE exports")
        url = database_url(admin, "exports")
        shared = {
            "database_url": url,
            "storage_url": "s3://exports/delivered",
            "broker_url": broker.url,
            "source_lock_timeout_s": 120,
            **settings,
        }
        made = Site(
            folder=folder,
            environment={
                name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ
            }
            | s3.environment()
            | {f"EXPORT_PIPELINE_{key.upper()}": str(value) for key, value in shared.items()},
            database_url=url,
            keys=folder / "administrator" / "keys",
        )
        made.keys.mkdir(mode=0o700, parents=True)
        wiring.apply_migrations(made.settings("administrator"))
        with psycopg.connect(url) as connection:
            sample_source.install(connection)
        yield made


def _document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The one JSON document that a command prints when it is ready."""
    text = ""
    while True:
        line = process.stdout.readline()
        assert line, f"it ended: {process.wait(10)}"
        text += line
        with suppress(json.JSONDecodeError):
            return json.loads(text)
