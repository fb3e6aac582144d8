"""Killing parts of a running installation under load, and the judgement of what became of every request.

The load are rows of plain INSERT for distinct small users of the sample source. A victim dies by SIGKILL, without a
chance to tidy up (the database also by an orderly restart). Afterwards tables, stores and Dagster are read: what counts
is what lies there, not what anybody said.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import psycopg
from psycopg.rows import dict_row

from export_pipeline.db.watch import ON_ITS_WAY
from export_pipeline.delivery import deliver, save
from export_pipeline.errors import ExportPipelineError
from export_pipeline.models import Actor, AuditAction
from export_pipeline.postgres import postmaster
from export_pipeline.supervisor import Stack
from export_pipeline.verify import verify

#: Small users of the sample source with some rows of everything.
USERS = [f"user-{number:04d}" for number in range(10, 300)]
FORMATS = ("json", "csv", "ndjson")
#: Data type → table: short ones, so that a load of a hundred is a matter of seconds.
TABLES = {"user_feedback": "user_feedback", "user_profile": "users"}
_OPEN = [status.value for status in ON_ITS_WAY]
_INSERT = """
INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, data_types, format)
VALUES (%s, %s, 'load', 'custom', %s, %s) ON CONFLICT (request_id) DO NOTHING
"""
#: A request whose claim (or start) came after a moment, and that was completed.
_COMPLETED_SINCE = """
SELECT FROM export_pipeline.export_requests AS r JOIN export_pipeline.export_audit_logs AS l USING (request_id)
WHERE l.action = %s AND l.timestamp > %s AND r.request_id = ANY(%s) AND r.status = 'completed'
  AND r.completed_at > l.timestamp LIMIT 1
"""
#: When reconcile gave a request back, and when that request ended.
_CUT_OFF = """
SELECT l.timestamp, r.completed_at
FROM export_pipeline.export_requests AS r JOIN export_pipeline.export_audit_logs AS l USING (request_id)
WHERE l.action = 'export_requeued' AND r.completed_at IS NOT NULL AND r.request_id = ANY(%s)
"""
_REQUESTS = """
SELECT r.request_id, r.status, r.attempt, r.error_message, m.storage_key, m.rows AS metadata,
       (SELECT count(*) FROM export_pipeline.export_audit_logs AS l
        WHERE l.request_id = r.request_id AND l.action = 'export_completed') AS completions,
       (SELECT jsonb_object_agg(part->>'data_type', part->'rows')
        FROM jsonb_array_elements(m.manifest->'parts') AS part) AS found
FROM export_pipeline.export_requests AS r LEFT JOIN LATERAL (
    SELECT max(storage_key) AS storage_key, count(*) AS rows, (array_agg(manifest))[1] AS manifest
    FROM export_pipeline.export_metadata AS m WHERE m.request_id = r.request_id) AS m ON true
WHERE r.request_id = ANY(%s)
"""
_LEFT = """
SELECT 'run' AS what, run_id || ' is ' || status AS name FROM dagster.runs WHERE status = ANY(%s)
UNION ALL SELECT 'queue', run_id FROM export_pipeline.export_run_queue
UNION ALL SELECT DISTINCT 'ticket', run_id FROM export_pipeline.export_run_tickets AS t
    WHERE NOT EXISTS (SELECT FROM dagster.runs AS r WHERE r.run_id = t.run_id)
UNION ALL SELECT 'lease', request_id FROM export_pipeline.export_requests JOIN pg_locks ON locktype = 'advisory'
    AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = export_pipeline.lease_key(request_id)
"""
#: Dagster's statuses of runs that have not ended.
_UNFINISHED = ("QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING")
_POLL_S = 0.05
_T = TypeVar("_T")
_READER = Actor(id="judge")


class Victim(StrEnum):
    """What is killed.

    `WORKER` is one process that executes runs, `POOL` all of them, `EVERYTHING` all that the supervisor started.
    `DATABASE` is the embedded server by SIGKILL, `RESTART` the same server by an orderly stop, `BACKEND` one of its
    processes, after whose death the server ends all sessions and recovers.
    """

    WORKER = "worker"
    POOL = "pool"
    DAEMON = "daemon"
    CODE_SERVER = "code-server"
    WEBSERVER = "webserver"
    API = "api"
    EVERYTHING = "everything"
    DATABASE = "database"
    RESTART = "database-restart"
    BACKEND = "database-backend"


#: Without them nothing is claimed, or no run is executed.
_CLAIMERS = (Victim.DAEMON, Victim.CODE_SERVER, Victim.EVERYTHING)
_EXECUTORS = (Victim.WORKER, Victim.POOL, Victim.EVERYTHING)


class AbsentVictim(Exception):
    """There is no such process now; it may be starting."""


@dataclass(kw_only=True)
class Load:
    """Requests that were inserted, and what is expected of them.

    Attributes:
        data_types: What each of them asks for.
        users: Request → user.
    """

    data_types: Sequence[str] = tuple(TABLES)
    users: dict[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """All requests so far."""
        return list(self.users)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a load.

    Attributes:
        requests: Rows that were inserted.
        completed: Ended with a file.
        spent: Failed with a reason after their last attempt.
        repeated: Completed by a later attempt than the first.
        lost: Rows that are gone, ended another way, or are completed without a file that opens.
        doubled: Requests with more than one completion in the trail, metadata row, or stored object.
        stuck: Rows that have not ended.
        orphans: What belongs to nothing when all is over: objects, parts, leases, places in the queue, tickets,
            processes, and runs that Dagster takes for unfinished.
    """

    requests: int
    completed: int
    spent: int
    repeated: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    stuck: tuple[str, ...]
    orphans: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether every request was completed exactly once, or failed with a reason, and nothing is left."""
        return not (self.lost or self.doubled or self.stuck or self.orphans)


# --- the load


def ask(url: str, load: Load, count: int) -> None:
    """Insert `count` requests more, each for the next user; a server that is away is waited for.

    The ids are ours, so that an insert whose answer was lost is not made twice.
    """
    first = len(load.users)
    rows = [(f"load-{time.time_ns():x}-{n}", USERS[n % len(USERS)], n) for n in range(first, first + count)]
    values = [(key, user, list(load.data_types), FORMATS[n % len(FORMATS)]) for key, user, n in rows]

    def insert(connection: psycopg.Connection) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(_INSERT, values)

    asking(url, insert)
    load.users |= {key: user for key, user, _ in rows}


def asking(url: str, ask_for: Callable[[psycopg.Connection], _T], *, patience_s: float = 60.0) -> _T:
    """Ask the database in one transaction, again until it is there."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                return ask_for(connection)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)  # a server that comes back sends no word


def wait_until(url: str, ready: Callable[[psycopg.Connection], _T], *, timeout: float) -> _T:
    """Wait for something that changes with the requests, by the notices of their table, also over a server's death.

    Args:
        url: Our database.
        ready: Asked at the beginning, after every notice, and each second.
        timeout: Seconds.

    Returns:
        The first answer that is true; the last one when the time is over.
    """
    deadline, answer = time.monotonic() + timeout, None
    while True:
        with suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute("LISTEN export_requests")
            while not (answer := ready(connection)) and (left := deadline - time.monotonic()) > 0:
                list(connection.notifies(timeout=min(left, 1.0), stop_after=1))
        if answer or time.monotonic() > deadline:
            return answer  # type: ignore[return-value]
        time.sleep(_POLL_S)  # a server that comes back sends no word


def ended(load: Load) -> Callable[[psycopg.Connection], int]:
    """Count the requests of a load that have ended."""

    def count(connection: psycopg.Connection) -> int:
        query = "SELECT count(*) FROM export_pipeline.export_requests WHERE request_id = ANY(%s) AND status <> ALL(%s)"
        return int(_only(connection.execute(query, [load.ids, _OPEN]).fetchone()))

    return count


# --- the victims


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One death.

    Attributes:
        victim: Who died.
        at: When.
        seats: Warm workers that were there before.
    """

    victim: Victim
    at: datetime
    seats: int


def kill(stack: Stack, victim: Victim, dice: random.Random) -> Kill:
    """End a victim, and return when its processes are gone.

    Raises:
        AbsentVictim: It is not there now.
    """
    seats = asking(stack.services.database_url, _seats) if victim in _EXECUTORS else 0
    processes = find(stack, victim)
    if victim in (Victim.WORKER, Victim.BACKEND):
        processes = [dice.choice(processes)] if processes else []
    if not processes:
        raise AbsentVictim(victim.value)
    at = datetime.now(UTC)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT if victim is Victim.RESTART else signal.SIGKILL)
    _gone(processes)
    return Kill(victim=victim, at=at, seats=seats)


def find(stack: Stack, victim: Victim) -> list[psutil.Process]:
    """The processes of a victim that live now."""
    if victim in (Victim.DATABASE, Victim.RESTART, Victim.BACKEND):
        pid = postmaster.find(stack.services.settings.home / "postgres" / "data")
        server = _living([pid] if pid else [])
        return _sessions(server) if victim is Victim.BACKEND else server
    children = {child.name: child.process.pid for child in stack._children if child.process}
    if victim is Victim.EVERYTHING:
        return _living(list(children.values()))
    if victim not in (Victim.WORKER, Victim.POOL):
        return _living([children[victim.value]])
    workers = _living([pid for name, pid in children.items() if name.startswith("worker")])
    if stack.services.settings.launcher == "warm":
        return workers
    if stack.services.settings.launcher == "default":
        return [each for each in _below(_living([children["code-server"]])) if "spawn_main" in _command(each)]
    return _below(workers) if victim is Victim.WORKER else workers + _below(workers)


def _sessions(server: list[psutil.Process]) -> list[psutil.Process]:
    """Those of the server's processes that serve somebody."""
    return [process for process in _below(server) if "[local]" in _command(process)]


def _living(pids: Sequence[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _below(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found += process.children(recursive=True)
    return found


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _gone(processes: list[psutil.Process]) -> None:
    """Wait for them; one whose parent has not looked yet counts."""
    deadline = time.monotonic() + 30
    while _living([process.pid for process in processes if process.is_running()]):
        if time.monotonic() > deadline:
            raise TimeoutError("A killed process does not end.")
        time.sleep(_POLL_S / 10)


# --- recovery


def recovered(stack: Stack, load: Load, death: Kill, *, timeout: float) -> float | None:
    """Wait until the victim's kind serves again.

    What counts as serving:

    - web server, API: it answers by HTTP with status 200
    - daemon, code server, everything: a request that was claimed after the death is completed (with Celery and
      Dagster's launcher, where runs wait in Dagster's own queue, one that was started)
    - worker, pool, everything: a request that was started after the death is completed, and as many warm workers as
      before live
    - database: a request that was started after the death is completed

    Returns:
        Seconds from the death until that was seen; None when it takes longer than `timeout`.
    """
    if death.victim in (Victim.WEBSERVER, Victim.API):
        url = f"{stack.ui_url}/alive" if death.victim is Victim.WEBSERVER else f"{stack.api_url}/health"
        serves = _answers_again(url, timeout)
    else:
        serves = wait_until(stack.services.database_url, _serves(stack, load, death), timeout=timeout)
    return (datetime.now(UTC) - death.at).total_seconds() if serves else None


def _serves(stack: Stack, load: Load, death: Kill) -> Callable[[psycopg.Connection], bool]:
    claims = death.victim in _CLAIMERS and stack.services.settings.launcher == "warm"
    action = AuditAction.CLAIMED if claims else AuditAction.STARTED

    def serves(connection: psycopg.Connection) -> bool:
        values = [action, death.at, load.ids]  # the load may grow meanwhile
        done = connection.execute(_COMPLETED_SINCE, values).fetchone() is not None
        return done and _seats(connection) >= death.seats

    return serves


def _seats(connection: psycopg.Connection) -> int:
    return int(_only(connection.execute("SELECT export_pipeline.workers_alive()").fetchone()))


def _answers_again(url: str, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with suppress(URLError, OSError), urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return True
        time.sleep(_POLL_S)
    return False


def redone(url: str, load: Load, deaths: Sequence[Kill]) -> list[float | None]:
    """Say how long requests waited whose run was cut off, or whose run was never launched.

    Returns:
        For each death the seconds until the last request that it cut off had ended; None when it cut off none.
    """
    rows = asking(url, lambda connection: connection.execute(_CUT_OFF, [load.ids]).fetchall())
    longest: list[float | None] = [None] * len(deaths)
    for requeued_at, ended_at in rows:
        before = [number for number, death in enumerate(deaths) if death.at < requeued_at]
        if before:
            waited = (ended_at - deaths[before[-1]].at).total_seconds()
            longest[before[-1]] = max(waited, longest[before[-1]] or 0.0)
    return longest


# --- the judgement


def judge(stack: Stack, load: Load, *, timeout: float, sample: int = 12) -> Verdict:
    """Wait until all is over, at most `timeout` seconds, and look at what lies there.

    Args:
        stack: The installation, whole again.
        load: What was asked.
        timeout: Seconds until whatever has not ended counts as stuck.
        sample: Files that are opened and verified; the counts of all are compared with the source.
    """
    url, deadline = stack.services.database_url, time.monotonic() + timeout
    wait_until(url, lambda connection: ended(load)(connection) == len(load.users), timeout=timeout)
    _settled(url, deadline)
    stack._clear()  # else within a minute
    rows = {row["request_id"]: row for row in _ask_all(url, _REQUESTS, [load.ids])}
    lost = {key: "its row is gone" for key in load.users if key not in rows}
    files = {key: row for key, row in rows.items() if row["status"] == "completed"}
    spent = [key for key, row in rows.items() if _is_spent(row, stack.services.settings.max_attempts)]
    stuck = [f"{key} is {row['status']}" for key, row in rows.items() if row["status"] in _OPEN]
    for key, row in rows.items():
        if key not in spent and key not in files and row["status"] not in _OPEN:
            lost[key] = f"{row['status']} after attempt {row['attempt']}: {row['error_message']}"
    stored = stack.services.vault().keys()
    lost |= _without_file(stack, load, files, set(stored), sample)
    return Verdict(
        requests=len(load.users),
        completed=len(files),
        spent=len(spent),
        repeated=sum(row["attempt"] > 1 for row in files.values()),
        lost=tuple(f"{key}: {why}" for key, why in lost.items()),
        doubled=tuple(_doubled(rows, stored)),
        stuck=tuple(stuck),
        orphans=tuple(orphans(stack)),
    )


def _is_spent(row: dict[str, Any], attempts: int) -> bool:
    return row["status"] == "failed" and bool(row["error_message"]) and row["attempt"] >= attempts


def _settled(url: str, deadline: float) -> None:
    """A run ends a little after its request, and leaves the queue after that; nothing sends word of it."""
    query = """SELECT (SELECT count(*) FROM dagster.runs WHERE status = ANY(%s))
                    + (SELECT count(*) FROM export_pipeline.export_run_queue)"""
    while asking(url, lambda connection: _only(connection.execute(query, [list(_UNFINISHED)]).fetchone())):
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def _without_file(
    stack: Stack, load: Load, files: dict[str, dict[str, Any]], stored: set[str], sample: int
) -> Iterator[tuple[str, str]]:
    expected = _expected(stack, load)
    for key, row in files.items():
        if row["storage_key"] not in stored:
            yield key, f"completed by attempt {row['attempt']} without a file"
        elif row["found"] != expected[load.users[key]]:
            yield key, f"holds {row['found']} and not {expected[load.users[key]]}"
    for key in sorted(files, key=lambda key: (-files[key]["attempt"], key))[:sample]:
        if files[key]["storage_key"] in stored and (why := _unreadable(stack, key)):
            yield key, why


def _expected(stack: Stack, load: Load) -> dict[str, dict[str, int]]:
    """What the source holds: user → data type → rows."""
    found: dict[str, dict[str, int]] = {user: dict.fromkeys(load.data_types, 0) for user in USERS}
    with psycopg.connect(stack.services.source_url) as connection:
        for data_type in load.data_types:
            query = f"SELECT user_id, count(*) FROM {TABLES[data_type]} GROUP BY user_id"
            rows = connection.execute(query.encode()).fetchall()
            for user, count in rows:
                if user in found:
                    found[user][data_type] = count
    return found


def _unreadable(stack: Stack, request_id: str) -> str:
    """Open a file as its person would, and compare it with its manifest."""
    services = stack.services
    with tempfile.TemporaryDirectory() as folder:
        try:
            delivery = deliver(services.database, services.vault(), request_id, _READER)
            save(delivery, Path(folder) / delivery.file_name)
            verify(Path(folder) / delivery.file_name)
        except ExportPipelineError as error:
            return f"its file does not open: {error}"
    return ""


def _doubled(rows: dict[str, dict[str, Any]], stored: Sequence[str]) -> Iterator[str]:
    for key, row in rows.items():
        objects = [name for name in stored if name.startswith(f"{key}/")]
        if row["completions"] > 1 or row["metadata"] > 1 or len(objects) > 1:
            yield f"{key}: {row['completions']} completions, {row['metadata']} rows of metadata, {len(objects)} objects"


def orphans(stack: Stack) -> Iterator[str]:
    """Name what belongs to nothing, when nothing is on its way."""
    services = stack.services
    home, url = services.settings.home, services.database_url
    belongs = {row["storage_key"] for row in _ask_all(url, "SELECT storage_key FROM export_pipeline.export_metadata")}
    for folder, known in (("storage", belongs), ("work", set())):
        files = [path.relative_to(home / folder) for path in (home / folder).rglob("*") if path.is_file()]
        yield from (f"{folder}: {file}" for file in files if str(file) not in known)
    for row in _ask_all(url, _LEFT, [list(_UNFINISHED)]):
        yield f"{row['what']}: {row['name']}"
    for process in strays(home):
        yield f"process: {process.pid} {_command(process)[:120]}"


def strays(home: Path) -> list[psutil.Process]:
    """Processes of an installation that nobody looks after: whoever started them is gone. Its database is none."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("EXPORT_PIPELINE_HOME") == str(home) and not _is_ours(process):
                found.append(process)
    return found


def _is_ours(process: psutil.Process) -> bool:
    return os.getpid() in {process.pid, *(parent.pid for parent in process.parents())}


def _ask_all(url: str, query: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
    def ask_for(connection: psycopg.Connection) -> list[dict[str, Any]]:
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode(), values).fetchall()

    return asking(url, ask_for)


def _only(row: Sequence[Any] | None) -> Any:
    return row[0] if row else None
