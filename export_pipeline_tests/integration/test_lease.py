"""The lock that a run holds on its request, against other processes, kills and lost connections."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from export_pipeline.db import lease as module
from export_pipeline.db.lease import RequestLease
from export_pipeline.db.pool import Database
from export_pipeline.errors import DatabaseUnavailable, RunNotEntitled

#: Takes the lease of request r, says so, and holds it until it is killed.
HOLDER = """
import sys
from export_pipeline.db.lease import RequestLease
from export_pipeline.db.pool import Database
lease = RequestLease(Database(sys.stdin.readline().strip()), "r")
lease.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answer is no, there is nothing to wait for."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)


@pytest.fixture
def lease_on(database: Database) -> Iterator[Callable[[str], RequestLease]]:
    made: list[RequestLease] = []

    def make(request_id: str) -> RequestLease:
        made.append(RequestLease(database, request_id))
        return made[-1]

    yield make
    for lease in made:
        lease.release()


@contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdin and process.stdout
            process.stdin.write(f"{url}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def holders(connection: psycopg.Connection, request_id: str = "r") -> list[int]:
    rows = connection.execute(
        "SELECT l.pid FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE locktype = 'advisory' AND granted AND datname = current_database()"
        " AND ((classid::bigint << 32) | objid::bigint) = export_pipeline.lease_key(%s)",
        [request_id],
    ).fetchall()
    return [pid for (pid,) in rows]


def test_one_holds_it_and_another_does_not(
    lease_on: Callable[[str], RequestLease], impatient: None, admin: psycopg.Connection
) -> None:
    lease_on("r").acquire()
    with pytest.raises(RunNotEntitled, match="Another process works on this request now"):
        lease_on("r").acquire()
    assert len(holders(admin)) == 1


def test_each_request_has_a_lease_of_its_own(lease_on: Callable[[str], RequestLease], impatient: None) -> None:
    lease_on("r").acquire()
    lease_on("s").acquire()


def test_to_acquire_again_is_harmless(lease_on: Callable[[str], RequestLease], admin: psycopg.Connection) -> None:
    lease = lease_on("r")
    lease.acquire()
    first = holders(admin)
    lease.acquire()
    assert holders(admin) == first
    lease.release()
    lease.release()


def test_one_that_got_nothing_keeps_no_connection(
    lease_on: Callable[[str], RequestLease], impatient: None, admin: psycopg.Connection
) -> None:
    lease_on("r").acquire()
    refused = lease_on("r")
    with pytest.raises(RunNotEntitled):
        refused.acquire()
    assert refused._connection is None


def test_whoever_waits_gets_it_when_the_holder_lets_go(
    lease_on: Callable[[str], RequestLease], admin: psycopg.Connection
) -> None:
    first, second = lease_on("r"), lease_on("r")
    first.acquire()
    before = holders(admin)
    first.release()
    second.acquire()
    assert holders(admin) != before


def test_it_is_free_as_soon_as_the_holder_has_let_go(
    tables_url: str, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = RequestLease(Database(tables_url), "r")
    lease.acquire()
    connection = lease._connection
    assert connection
    with monkeypatch.context() as busy:
        busy.setattr(connection, "close", lambda: None)  # as a server that notices the end of a session late
        lease.release()
        assert holders(admin) == []
    connection.close()


def test_another_process_keeps_it_and_its_death_frees_it(
    lease_on: Callable[[str], RequestLease],
    tables_url: str,
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with holder(tables_url) as process:
        with monkeypatch.context() as hurry:
            hurry.setattr(module, "_PATIENCE_S", 0.0)
            with pytest.raises(RunNotEntitled):
                lease_on("r").acquire()
        [theirs] = holders(admin)
        process.send_signal(signal.SIGKILL)
        ours = lease_on("r")
        ours.acquire()  # waits: a killed run's lock goes when the server notices
        [now] = holders(admin)
        assert now != theirs


def test_a_connection_that_the_server_ended_is_noticed_and_replaced(
    lease_on: Callable[[str], RequestLease], admin: psycopg.Connection
) -> None:
    lease = lease_on("r")
    lease.acquire()
    [before] = holders(admin)
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
    lease.acquire()
    [after] = holders(admin)
    assert after != before


def test_the_keeper_outlives_a_connection_that_ends_at_once(
    tables_url: str,
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    class Shaky(Database):
        """As a server that is going down or coming up: it lets us in, and ends the connection."""

        shaky = 0

        def dedicated(self) -> psycopg.Connection:
            connection = super().dedicated()
            if self.shaky:
                self.shaky -= 1
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
            return connection

    monkeypatch.setattr(module, "_KEEP_S", 0.05)
    lease = RequestLease(database := Shaky(tables_url), "r")
    lease.acquire()
    database.shaky = 2
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [holders(admin)[0]])
    wait_until(lambda: database.shaky == 0 and len(holders(admin)) == 1)
    lease.release()
    wait_until(lambda: not holders(admin))
    # Whoever takes it for the first time is told in our words.
    database.shaky = 1
    with pytest.raises(DatabaseUnavailable, match="ended the connection"):
        RequestLease(database, "r").acquire()


def test_it_is_taken_back_as_soon_as_its_connection_ends(
    lease_on: Callable[[str], RequestLease],
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    """Whoever looks for requests without a lease may look in this moment."""
    monkeypatch.setattr(module, "_KEEP_S", 60.0)
    lease_on("r").acquire()
    for _ in range(3):
        [before] = holders(admin)
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
        wait_until(lambda gone=before: holders(admin) not in ([], [gone]))  # type: ignore[misc]


def test_one_whose_connection_ended_does_not_take_it_from_the_next(
    lease_on: Callable[[str], RequestLease], tables_url: str, impatient: None, admin: psycopg.Connection
) -> None:
    class Cut(Database):
        """No way to the server, for a while."""

        away = False

        def dedicated(self) -> psycopg.Connection:
            if self.away:
                raise DatabaseUnavailable("Away.")
            return super().dedicated()

    lease, next_one = RequestLease(database := Cut(tables_url), "r"), lease_on("r")
    lease.acquire()
    database.away = True
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [holders(admin)[0]])
    next_one.acquire()
    database.away = False
    with pytest.raises(RunNotEntitled):
        lease.acquire()
    lease.release()


def test_without_a_server_the_database_is_unavailable(closed_port: int) -> None:
    lease = RequestLease(Database(f"postgresql://someone:secret@127.0.0.1:{closed_port}/x"), "r")
    with pytest.raises(DatabaseUnavailable) as refused:
        lease.acquire()
    assert "secret" not in str(refused.value)
