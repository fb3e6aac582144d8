"""Children are started again: at once, and ever later when they die again and again. None outlives us unseen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest

from export_pipeline import embedded, log_file, supervisor, wiring
from export_pipeline.errors import ConfigurationError
from export_pipeline.parent import end_with_parent
from export_pipeline.settings import Settings
from export_pipeline.supervisor import Child, Stack

PATIENCE_S = 30.0
#: Starts another process, as a code server or a worker does, and names it.
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)\n"
    "time.sleep(600)",
]

#: Prints numbered lines for as long as it lives.
TALKER = [
    sys.executable,
    "-c",
    "import itertools, time\n"
    "for number in itertools.count(): print(f'line {number:012}', flush=True) or time.sleep(0.001)",
]


def wait_for(truth: Callable[[], object]) -> object:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := truth()):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # processes send no word
    return found


def lives(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def stack(services: wiring.Services) -> Iterator[Stack]:
    made = Stack(ui_url="", log_folder=services.settings.home, services=services)
    made._environment = dict(os.environ)
    supervisor._watch(made)
    yield made
    made.stop()


def printed(stack: Stack, name: str) -> list[int]:
    return [int(line) for line in (stack.log_folder / f"{name}.log").read_text().splitlines()]


def test_a_killed_child_is_started_again_and_takes_along_what_it_had_started(stack: Stack) -> None:
    supervisor._add(stack, "parent", PARENT)
    [child] = stack._children
    first = child.process
    wait_for(lambda: len(printed(stack, "parent")) == 1)
    [grandchild] = printed(stack, "parent")
    first.kill()
    wait_for(lambda: child.process is not first and len(printed(stack, "parent")) == 2)
    wait_for(lambda: not lives(grandchild))
    stack.stop()
    assert not any(map(lives, printed(stack, "parent"))), "who stops it finds nobody who holds a lock"


def test_one_that_cannot_be_started_now_is_tried_again(stack: Stack) -> None:
    supervisor._add(stack, "parent", PARENT)
    [child] = stack._children
    wait_for(lambda: len(printed(stack, "parent")) == 1)
    tried = threading.Event()
    log = stack.log_folder / "parent.log"
    log.unlink()
    log.mkdir()
    start = stack._start

    def watched(child: Child) -> None:
        try:
            start(child)
        finally:
            tried.set()

    stack._start = watched  # type: ignore[method-assign]
    child.process.kill()
    assert tried.wait(PATIENCE_S)
    log.rmdir()
    wait_for(lambda: log.is_file() and len(printed(stack, "parent")) == 1)


def test_a_database_that_refuses_does_not_end_the_watch(
    stack: Stack, services: wiring.Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    (services.settings.home / "work" / "request" / "run").mkdir(parents=True)
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE export_pipeline.export_requests RENAME TO away")
        refused = threading.Event()
        clear = stack._clear

        def watched() -> None:
            try:
                clear()
            except psycopg.Error:
                refused.set()
                raise

        monkeypatch.setattr(supervisor, "_TIDY_S", 0.0)
        monkeypatch.setattr(stack, "_clear", watched)
        assert refused.wait(PATIENCE_S)
        connection.execute("ALTER TABLE export_pipeline.away RENAME TO export_requests")
    wait_for(lambda: not (services.settings.home / "work" / "request").exists())


def test_a_log_is_bounded_while_its_child_goes_on_printing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LIMIT", 4000)
    supervisor._add(stack, "talker", TALKER)
    log, older = stack.log_folder / "talker.log", stack.log_folder / "talker.log.1"
    wait_for(lambda: log.stat().st_size > 2 * log_file.LIMIT)  # nobody looks for a minute
    bounded = threading.Event()
    bound = stack._bound_logs

    def bound_once() -> None:
        if not bounded.is_set():
            bound()
            bounded.set()

    monkeypatch.setattr(stack, "_bound_logs", bound_once)
    monkeypatch.setattr(supervisor, "_TIDY_S", 0.0)
    assert bounded.wait(PATIENCE_S)
    [child] = stack._children
    wait_for(lambda: log.stat().st_size > log_file.LIMIT)
    lines = log.read_bytes().splitlines()[:-1]
    first = int(lines[0].removeprefix(b"line "))
    assert lines == [b"line %012d" % number for number in range(first, first + len(lines))], "no hole, none missing"
    assert first > 2 * log_file.LIMIT / len(b"line 000000000000\n"), "it is not the beginning that was kept"
    assert older.stat().st_size <= log_file.LIMIT
    assert {file.stat().st_mode & 0o777 for file in (log, older)} == {0o600}
    assert (child.starts, child.ended) == (1, False)


def test_one_log_that_cannot_be_kept_is_emptied_and_keeps_no_other_waiting(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "LIMIT", 4)
    server = embedded.log(stack.services.settings)
    server.parent.mkdir(exist_ok=True)
    logs = [*(stack.log_folder / f"{name}.log" for name in ("first", "folder", "second")), server]
    for log in logs:
        log.mkdir() if log.stem == "folder" else log.write_bytes(b"too long")
    (stack.log_folder / "first.log.1").mkdir()  # where the end should go: as refused as on a full disk
    monkeypatch.setattr(supervisor, "_TIDY_S", 0.0)
    wait_for(lambda: not any(log.stat().st_size for log in logs if log.is_file()))
    assert [log.with_name(f"{log.name}.1").read_bytes() for log in logs[2:]] == [b"long", b"long"]


def test_one_that_dies_again_and_again_rests_ever_longer(stack: Stack) -> None:
    supervisor._add(stack, "doomed", [sys.executable, "-c", "import time; print(time.time_ns()); raise SystemExit(3)"])
    wait_for(lambda: len(printed(stack, "doomed")) == 3)
    first, second, third = (moment / 1e9 for moment in printed(stack, "doomed"))
    assert second - first >= supervisor._REST_S
    assert third - second >= 2 * supervisor._REST_S


def test_it_rests_half_a_minute_at_most_and_not_at_all_when_it_was_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    child, rests = Child(name="doomed", command=[]), []
    for lived in [0, 0, 0, 0, 0, 0, 0, 21, 0]:
        child.begins(ended_with(3))
        now += lived
        died = now
        while not child.due:
            now += 0.5
        rests.append(now - died)
    assert rests == [1, 2, 4, 8, 16, 30, 30, 0, 1]


@pytest.mark.parametrize("taken", ["", "up.lock", "logs", "dagster/dagster.yaml"])
@pytest.mark.parametrize("begin", [supervisor.start, supervisor.start_workers])
def test_a_state_folder_that_cannot_be_used_is_said(
    services: wiring.Services, tmp_path: Path, begin: Callable[[Settings], AbstractContextManager[Stack]], taken: str
) -> None:
    home = tmp_path / "bad"
    where = home / taken
    where.parent.mkdir(parents=True, exist_ok=True)
    if taken in {"", "logs"}:
        where.touch()  # a file where a folder should be
    else:
        where.mkdir()  # and the other way round
    storage = (tmp_path / "store").as_uri()
    settings = services.settings.model_copy(update={"home": home, "storage_url": storage, "ui_port": 0, "api_port": 0})
    with pytest.raises(ConfigurationError, match=r"state folder .* cannot be used"), begin(settings):
        pass


def test_one_that_ended_by_itself_does_not_rest() -> None:
    child = Child(name="recycled", command=[])
    child.begins(ended_with(0))
    assert child.due


def ended_with(code: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"], start_new_session=True)
    process.wait()
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's help")
def test_a_child_whose_parent_was_killed_before_it_could_ask_ends_too(tmp_path: Path) -> None:
    """The parent of this child is us, so whoever it was told is not there any more."""
    gone = ended_with(0).pid
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        preexec_fn=partial(end_with_parent, gone),  # noqa: PLW1509
    )
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's help")
def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import os, signal, subprocess, sys, time\n"
        "from functools import partial\n"
        "from export_pipeline.parent import end_with_parent\n"
        # Whoever runs the tests may have it blocked, or ignore it.
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "signal.pthread_sigmask(signal.SIG_SETMASK, [])\n"
        "ask = partial(end_with_parent, os.getpid())\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "print(subprocess.Popen(sleep, preexec_fn=ask).pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert lives(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not lives(child))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the dead count")
def test_who_is_dead_and_not_buried_is_not_waited_for() -> None:
    """As where the first process of a container does not look after orphans."""
    program = (
        "import os, sys, time\n"
        "if os.fork() == 0: os._exit(0)\n"
        "os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)\n"
        "print(flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout.readline()
    [orphan] = psutil.Process(process.pid).children()
    assert orphan.status() == psutil.STATUS_ZOMBIE
    assert supervisor._group_lives(process), "its parent lives"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not supervisor._group_lives(process), "both are dead, one is not buried"
    process.wait()
    process.stdout.close()
