"""Starts everything and keeps it running: code server, daemon and web server of Dagster, on our database, and workers.

Children run in sessions of their own, so Ctrl-C of the terminal reaches only us and we end them in order; on Linux the
kernel ends them when we are killed. One that dies is started again, and what it had started is ended. What they print
goes to files in the state folder, which are kept within bounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import urlopen

import psycopg

from export_pipeline import dagster_home, embedded, leftovers, log_file, wiring
from export_pipeline.errors import ConfigurationError, ExportPipelineError
from export_pipeline.file_lock import FileLock
from export_pipeline.parent import end_with_parent
from export_pipeline.settings import Settings

#: Dagster's daemon, with sensors that are woken.
DAEMON = [sys.executable, "-m", "export_pipeline.defs.daemon"]
#: Dagster's web server, behind our sign-in.
UI = [sys.executable, "-m", "export_pipeline.defs.ui"]
API = [sys.executable, "-m", "export_pipeline.api"]
_START_S = 120.0
_STOP_S = 15.0
_GONE_S = 5.0
_POLL_S = 0.1
_WATCH_S = 0.1
_REVIVE_S = 0.5
_TIDY_S = 60.0
#: A child that lived for so long is started again at once. One that dies sooner rests, each time twice as long.
_STEADY_S = 20.0
_REST_S = 1.0
_REST_MAX_S = 30.0
_HOST = "127.0.0.1"
_CELERY_APP = "export_pipeline.defs.celery_app"


@dataclass(kw_only=True)
class Child:
    """One process that is kept running.

    Attributes:
        name: What people read, and the name of its log file.
        command: Its arguments.
        process: The running process.
        starts: How often it was started.
    """

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _began: float = 0.0
    _rest: float = 0.0
    _not_before: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it was started, and does not run any more."""
        return self.process is not None and self.process.poll() is not None

    @property
    def due(self) -> bool:
        """Whether one that ended may be started again now: at once, unless it dies again and again."""
        if self._not_before is None:
            self._bury()
        return self._not_before is not None and time.monotonic() >= self._not_before

    def _bury(self) -> None:
        """What it had started goes with it, so that nobody works unseen."""
        if self.process is not None:
            _end_group(self.process)
            self._rest = self._next_rest(time.monotonic() - self._began)
            self._not_before = time.monotonic() + self._rest

    def begins(self, process: subprocess.Popen[bytes]) -> None:
        """Take note of a new process."""
        self.process, self._began, self._not_before = process, time.monotonic(), None
        self.starts += 1

    def _next_rest(self, lived: float) -> float:
        if lived > _STEADY_S or (self.process is not None and self.process.returncode == 0):
            return 0.0  # it was whole, or ended by itself: a worker is recycled
        return min(_REST_MAX_S, 2 * self._rest or _REST_S)


@dataclass(kw_only=True)
class Stack:
    """Everything that runs.

    Attributes:
        ui_url: Address of the Dagster UI; empty where only workers run.
        api_url: Address of the API; empty where only workers run.
        log_folder: Where the processes write what they print.
        services: Our own connection, which also keeps an embedded server running.
    """

    ui_url: str
    log_folder: Path
    services: wiring.Services
    api_url: str = ""
    _children: list[Child] = field(default_factory=list)
    _environment: dict[str, str] = field(default_factory=dict, repr=False)
    _stopping: threading.Event = field(default_factory=threading.Event, repr=False)
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def watch(self) -> None:
        """Start what died again, until the stack stops: children, and the embedded database.

        The kernel ties a child's life to the thread that started it, so this thread outlives the children.
        """
        revived, tidied = 0.0, 0.0
        while not self._stopping.wait(_WATCH_S):
            now = time.monotonic()
            # Whatever cannot be done now is tried again at the next look: an error that ended this thread would end the
            # supervision, and with it, by the kernel, the children that this thread had started.
            with contextlib.suppress(ExportPipelineError, psycopg.Error, OSError):
                if now - revived > _REVIVE_S:
                    revived = now
                    self.services.revive()
                if now - tidied > _TIDY_S:
                    tidied = now
                    self._bound_logs()  # first: it needs no database
                    self._clear()
            for child in self._children:
                if child.ended:
                    with contextlib.suppress(OSError):  # a full disk, or no process left
                        self._restart(child)
        self._stopped.wait()

    def _bound_logs(self) -> None:
        for log in (*self.log_folder.glob("*.log"), embedded.log(self.services.settings)):
            log_file.bound(log)

    def _clear(self) -> None:
        services = self.services
        leftovers.clear(services.database, services.work(), services.settings.home / "work")

    def _restart(self, child: Child) -> None:
        with self._lock:
            if child.due and not self._stopping.is_set():
                self._start(child)

    def _start(self, child: Child) -> None:
        log = self.log_folder / f"{child.name}.log"
        log_file.bound(log)
        with log_file.open_log(log) as out:
            child.begins(
                subprocess.Popen(
                    child.command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                    preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509 - calls of a loaded library
                )
            )

    def stop(self) -> None:
        """End the children, runs in progress included.

        A run that is cut off gives up its lease; its request goes back into the queue when the system is up again.
        """
        self._stopping.set()
        with self._lock:
            running = [child.process for child in self._children if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process in running:
            _end(process, deadline)
        self._stopped.set()


@contextlib.contextmanager
def start(settings: Settings, *, say: Callable[[str], None] = lambda _: None) -> Iterator[Stack]:
    """Start everything, and stop it at the end of the block.

    Args:
        settings: The installation.
        say: Told what is happening, for a progress display.

    Raises:
        ConfigurationError: Already running for this state folder, or a port is taken.
        KeyUnusable: The key of stored files is lost.
        ExportPipelineError: Something did not start; names its log file.
    """
    with ExitStack() as held:
        held.enter_context(_alone(settings))
        say("Starting the database")
        port = _free_port(settings.ui_port)
        stack, code_server = _prepare(settings, held, ui_url=f"http://{_HOST}:{port}")
        held.enter_context(_known(settings, stack.ui_url))
        workspace = ["-w", str(code_server.workspace)]
        say("Starting Dagster's code server")
        _add(stack, "code-server", code_server.command)
        _wait(stack, "code-server", lambda: _accepts(code_server.socket))
        _add(stack, "daemon", [*DAEMON, *workspace])
        _add_workers(stack, settings)
        _add(stack, "webserver", [*UI, "-p", str(port), *workspace])
        _add_api(stack, settings)
        say("Starting the API, Dagster's daemon and web server")
        _wait(stack, "webserver", lambda: _answers(f"{stack.ui_url}/alive"))
        _wait(stack, "api", lambda: _answers(f"{stack.api_url}/health"))
        _watch(stack)
        yield stack


@contextlib.contextmanager
def start_workers(settings: Settings) -> Iterator[Stack]:
    """Start only run workers, for a system whose `start` is on another machine, and stop them at the end of the block.

    Raises:
        ConfigurationError: Already running for this state folder, or something that all machines share is not set.
        ExportPipelineError: Database or keys cannot be used.
    """
    _require_shared(settings)
    with ExitStack() as held:
        held.enter_context(_alone(settings))
        stack, _ = _prepare(settings, held, ui_url="")
        stack.services.require_keys()
        _add_workers(stack, settings)
        _watch(stack)
        yield stack


def _require_shared(settings: Settings) -> None:
    if settings.launcher == "default":
        raise ConfigurationError(
            "Dagster's default launcher has no workers.", hint="Set EXPORT_PIPELINE_LAUNCHER to warm or celery."
        )
    if settings.local_workers == 0:
        raise ConfigurationError("There are no workers to start.", hint="Set EXPORT_PIPELINE_WORKERS.")
    for name in ("database_url", "storage_url"):
        if getattr(settings, name) is None:
            raise ConfigurationError(
                f"A worker needs the same EXPORT_PIPELINE_{name.upper()} as the system that it works for.",
                hint="Its default is of one machine only.",
            )


def _prepare(settings: Settings, held: ExitStack, *, ui_url: str) -> tuple[Stack, dagster_home.CodeServer]:
    services = held.enter_context(wiring.connect(settings))
    wiring.require_kept_key(settings, services.files)
    stack = Stack(ui_url=ui_url, log_folder=settings.home / "logs", services=services)
    with wiring.home_explained(settings):
        stack.log_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        code_server = dagster_home.write(settings)
    stack._environment = {**os.environ, **dagster_home.environment(settings)}
    held.callback(stack.stop)
    return stack, code_server


def _watch(stack: Stack) -> None:
    threading.Thread(target=stack.watch, name="supervisor", daemon=True).start()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event, whatever the shell that started us had set them to."""
    asked = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ui_url(settings: Settings) -> str:
    """Address of the Dagster UI on this machine.

    Raises:
        ConfigurationError: Its port is whichever is free, and nothing runs that has one.
    """
    if settings.ui_port:
        return f"http://{_HOST}:{settings.ui_port}"
    try:
        return _address_file(settings).read_text("ascii").strip()
    except OSError:
        raise ConfigurationError(
            "The port of the Dagster UI is not known as long as nothing runs.",
            hint="Start `export-pipeline up`, or set EXPORT_PIPELINE_UI_PORT.",
        ) from None


def _address_file(settings: Settings) -> Path:
    return settings.home / "ui.url"


@contextlib.contextmanager
def _known(settings: Settings, url: str) -> Iterator[None]:
    """Other commands find the UI as long as it is there."""
    file = _address_file(settings)
    with wiring.home_explained(settings):
        file.write_text(f"{url}\n", "ascii")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    wiring.make_home(settings)
    with wiring.home_explained(settings):
        lock = FileLock.try_exclusive(settings.home / "up.lock")
    if lock is None:
        raise ConfigurationError(
            f"export-pipeline is already running for {settings.home}.",
            hint="Stop it, or choose another EXPORT_PIPELINE_HOME.",
        )
    with lock:
        yield


def _add_workers(stack: Stack, settings: Settings) -> None:
    if settings.launcher == "warm":
        for number in range(settings.local_workers):
            worker = [sys.executable, "-m", "export_pipeline.defs.worker"]
            _add(stack, f"worker-{number + 1}", [*worker, "--recycle-after", str(settings.recycle_after)])
    elif settings.launcher == "celery":
        _require_celery()
        if settings.local_workers:
            _add(stack, "worker", _celery_worker(settings))


def _require_celery() -> None:
    if importlib.util.find_spec("dagster_celery") is None:
        raise ConfigurationError("Celery is not installed.", hint="Install the extra: pip install '.[celery]'.")


def _celery_worker(settings: Settings) -> list[str]:
    """One process that takes runs from the broker, and as many that execute them."""
    # The broker tells workers apart by their names, and two may be on one machine.
    name = hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:8]
    command = [sys.executable, "-m", "celery", "-A", _CELERY_APP, "worker", "--queues", "dagster"]
    command += ["--hostname", f"export-{name}@%h", "--concurrency", str(settings.local_workers)]
    if settings.recycle_after:
        command += ["--max-tasks-per-child", str(settings.recycle_after)]
    return [*command, "--without-gossip", "--without-mingle", "--loglevel", "INFO"]


def _add_api(stack: Stack, settings: Settings) -> None:
    port = _free_port(settings.api_port, host=settings.api_host, variable="API_PORT")
    stack._environment["EXPORT_PIPELINE_API_PORT"] = str(port)
    # Who listens everywhere is asked here.
    host = {"0.0.0.0": _HOST, "::": "[::1]"}.get(settings.api_host, settings.api_host)  # noqa: S104
    stack.api_url = f"http://{host}:{port}"
    _add(stack, "api", API)


def _add(stack: Stack, name: str, command: list[str]) -> None:
    child = Child(name=name, command=command)
    stack._children.append(child)
    stack._start(child)


def _wait(stack: Stack, name: str, ready: Callable[[], bool]) -> None:
    """Wait for a child to answer; one that ends meanwhile will not come any more."""
    child = next(child for child in stack._children if child.name == name)
    deadline = time.monotonic() + _START_S
    while not ready():
        ended = child.process is None or child.process.poll() is not None
        if ended or time.monotonic() > deadline:
            raise ExportPipelineError(
                f"The {name} {'ended' if ended else 'did not answer'} while starting.",
                hint=f"The whole story is in {stack.log_folder / name}.log.",
            )
        time.sleep(_POLL_S)


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for a process that was asked to end, then insist; the whole session goes, so no run outlives us unseen."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    _end_group(process)
    process.wait()
    # What it had started holds locks until it is gone: the embedded database would count as used, and stay.
    deadline = time.monotonic() + _GONE_S
    while _group_lives(process) and time.monotonic() < deadline:
        time.sleep(_POLL_S / 10)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether one of them still holds anything. The dead may lie about for long where nobody buries them, as in many
    containers: they count only where it cannot be told who is one."""
    if sys.platform == "linux":
        return any(_lives_in(process.pid, stat) for stat in Path("/proc").glob("[0-9]*/stat"))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 0)
        return True
    return False


def _lives_in(group: int, stat: Path) -> bool:
    with contextlib.suppress(OSError):  # it ended while we looked
        state, _, its_group, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
        return int(its_group) == group and state not in {"Z", "X"}
    return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End at once what is left of a child and of all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left; macOS says it the other way
        os.killpg(process.pid, signal.SIGKILL)


def _free_port(wanted: int, *, host: str = _HOST, variable: str = "UI_PORT") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError:
            raise ConfigurationError(
                f"Port {wanted} is taken.", hint=f"Set EXPORT_PIPELINE_{variable} to a free one, or to 0."
            ) from None
        return int(probe.getsockname()[1])


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except (URLError, OSError):
        return False
