"""Latency: from INSERT to `completed`, by every way to give a run its process, in one sitting on the same data.

Contestants: plain Dagster (its daemon, storage, launcher and queue, and its executor with a process for each step, one
at a time because a request has one owner), our job under Dagster's own launcher, and our warm workers.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import yaml

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
_PLAIN_URL = "BENCHMARK_DAGSTER_URL"
#: Longer than the sensor's minimum interval, and not in step with it.
_PAUSES_S = (1.3, 1.7, 2.2)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one contestant reached.

    Attributes:
        p50_s: Median from INSERT to completed, in seconds, one request at a time on an idle system.
        p95_s: The same, 95th percentile.
        per_minute: Requests a minute when many are inserted at once.
        cpu_s_per_request: CPU seconds of all processes, PostgreSQL included, in that flood.
        rss_mb: Memory of all processes at its end, in MiB (proportional set size: shared pages counted once).
    """

    p50_s: float
    p95_s: float
    per_minute: float
    cpu_s_per_request: float
    rss_mb: float


def run(*, requests: int, flood: int, plain_requests: int, home: Path, plain: bool = True) -> dict[str, object]:
    """Run the contestants one after the other and print the table.

    Args:
        requests: Single requests for warm workers.
        flood: Requests inserted at once for warm workers.
        plain_requests: Single requests, and flood, for the slow contestants.
        home: State folder; each contestant gets a folder of its own below it.
        plain: Whether plain Dagster takes part: it needs half a minute for each request.
    """
    found: dict[str, Figures] = {}
    if plain:
        found["plain"] = _contest(home / "plain", "default", plain_requests, plain_requests, plain=True)
    found["in-process"] = _contest(home / "in-process", "default", plain_requests, plain_requests * 2)
    found["warm"] = _contest(home / "warm", "warm", requests, flood)
    _print(found)
    warm, slow = found["warm"], found.get("plain")
    return {
        "p50_s": warm.p50_s,
        "p95_s": warm.p95_s,
        "per_minute": warm.per_minute,
        "cpu_s_per_request": warm.cpu_s_per_request,
        "rss_mb": warm.rss_mb,
        "plain_p50_s": slow.p50_s if slow else None,
        "p50_vs_plain": round(slow.p50_s / warm.p50_s, 1) if slow else None,
        "in_process_p50_s": found["in-process"].p50_s,
        "launcher": "warm",
    }


def _contest(home: Path, launcher: str, requests: int, flood: int, *, plain: bool = False) -> Figures:
    report.console.print(f"{home.name}: {requests} single requests, then {flood} at once", markup=False)
    settings = Settings(_env_file=None, home=home, ui_port=0, api_port=0, launcher=launcher)  # type: ignore[arg-type, call-arg]
    with _stock(plain=plain), supervisor.start(settings) as stack:
        demo.install_sample(stack.services)
        _one(stack, _USERS[0])  # the first one warms caches everywhere
        latencies = sorted(_paused(stack, number) for number in range(requests))
        per_minute, cpu = _flood(stack, flood)
        return Figures(
            p50_s=round(statistics.median(latencies), 3),
            p95_s=round(latencies[min(len(latencies) - 1, int(len(latencies) * 0.95))], 3),
            per_minute=round(per_minute, 1),
            cpu_s_per_request=round(cpu, 3),
            rss_mb=round(sum(_memory(process) for process in _processes(stack)) / 1024**2),
        )


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


def _flood(stack: Stack, requests: int) -> tuple[float, float]:
    """Requests a minute, and CPU seconds a request."""
    cpu_before, began = _cpu(stack), time.monotonic()
    with psycopg.connect(stack.services.database_url) as connection:
        rows = [connection.execute(_INSERT, [_USERS[n % len(_USERS)]]).fetchone() for n in range(requests)]
    ids = [row[0] for row in rows if row]
    ended = {request.request_id: request for request in follow(stack.services.database, ids, timeout=3600)}
    seconds = time.monotonic() - began
    if any(request.status != "completed" for request in ended.values()):
        raise RuntimeError("Not every request of the flood was completed.")
    return requests / seconds * 60, (_cpu(stack) - cpu_before) / requests


def _processes(stack: Stack) -> list[psutil.Process]:
    """Every process of the installation: what the supervisor started, what those started, and the database."""
    roots = [psutil.Process(child.process.pid) for child in stack._children if child.process]
    postmaster = int((stack.services.settings.home / "postgres/data/postmaster.pid").read_text().split()[0])
    return [p for root in (*roots, psutil.Process(postmaster)) for p in (root, *root.children(recursive=True))]


def _cpu(stack: Stack) -> float:
    """CPU seconds so far, of processes that ended meanwhile too."""
    total = 0.0
    for process in _processes(stack):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return 0


def _print(found: dict[str, Figures]) -> None:
    rows = [[name, f.p50_s, f.p95_s, f.per_minute, f.cpu_s_per_request, f.rss_mb] for name, f in found.items()]
    columns = ["way", "p50 s", "p95 s", "requests/min", "CPU s/request", "memory MiB"]
    report.table("From INSERT to completed: a small user, six data types, JSON", columns, rows)
