"""Old runs go, whole and in bounded steps; what they leave is what Dagster's own way leaves, in every table."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psycopg
import pytest
import yaml

from export_pipeline.db.pool import Database
from export_pipeline.defs import housekeeping
from export_pipeline.defs.pruning import Pruned, Pruning
from export_pipeline.defs.storage import dagster_url
from export_pipeline_tests import past
from export_pipeline_tests.conftest import database_url

#: Tables that a pruned run leaves alone on purpose: they hold one row for each version of a job, not for each run.
_SHARED = {"snapshots"}
_numbers = itertools.count()
DAYS = timedelta(days=14)
PARTITIONS = dg.DynamicPartitionsDefinition(name="export_requests")


@dg.op
def busy(context: dg.OpExecutionContext) -> Iterator[dg.Output[int] | dg.AssetMaterialization | dg.AssetObservation]:
    """Leaves what ops can leave."""
    context.log.info("a line")
    yield dg.AssetMaterialization("thing", partition=context.partition_key)
    yield dg.AssetObservation("thing")
    yield dg.Output(1)


@dg.job(partitions_def=PARTITIONS, tags={"team": "tests"}, executor_def=dg.in_process_executor)
def make() -> None:
    """A job that is none of ours."""
    busy()


@dg.job(executor_def=dg.in_process_executor)
def plain() -> None:
    """A job without partitions."""

    @dg.op
    def nothing() -> None: ...

    nothing()


@pytest.fixture
def instance_for(tmp_path: Path) -> Iterator[Callable[[str], dg.DagsterInstance]]:
    """Dagster on a database: call with its URL."""
    with ExitStack() as made:

        def make_instance(url: str) -> dg.DagsterInstance:
            return made.enter_context(open_dagster(tmp_path / f"dagster-{next(_numbers)}", url))

        yield make_instance


@contextmanager
def open_dagster(home: Path, url: str) -> Iterator[dg.DagsterInstance]:
    """Stock Dagster on a database."""
    home.mkdir(exist_ok=True)
    storage = {"storage": {"postgres": {"postgres_url": dagster_url(url)}}, "telemetry": {"enabled": False}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(storage))
    instance = dg.DagsterInstance.from_config(str(home))
    try:
        yield instance
    finally:
        instance.dispose()


def run(instance: dg.DagsterInstance, partition: str) -> str:
    instance.add_dynamic_partitions("export_requests", [partition])
    return make.execute_in_process(instance=instance, partition_key=partition).run_id


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of Dagster's."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'dagster' ORDER BY 1"
        ).fetchall()
        return {
            table: sorted(connection.execute(f"SELECT t::text FROM dagster.{table} AS t").fetchall())
            for (table,) in tables
        }


def prune(url: str, *, age: timedelta = DAYS, keep: int = 100_000, patience_s: float = 120.0) -> Pruned:
    database = Database(url)
    try:
        return Pruning(
            database=database, partitions_def="export_requests", keep=keep, age=age, patience_s=patience_s
        ).run()
    finally:
        database.close()


@pytest.mark.filterwarnings("ignore::dagster.PreviewWarning", "ignore::dagster.BetaWarning")
def test_what_is_left_is_what_delete_run_leaves(
    migrated_url: str, new_database: Callable[..., str], instance_for: Callable[[str], dg.DagsterInstance]
) -> None:
    instance = instance_for(migrated_url)
    victims, others = [run(instance, "old-1"), run(instance, "old-2")], [run(instance, "new-1")]
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        # What runs with concurrency limits, asset checks and tags of assets leave.
        for run_id in (*victims, *others):
            for statement in (
                "INSERT INTO dagster.concurrency_slots (concurrency_key, run_id, step_key, deleted)"
                " VALUES ('k', %(r)s, 's', false), ('k', %(r)s, 't', true)",
                "INSERT INTO dagster.pending_steps (concurrency_key, run_id, step_key) VALUES ('k', %(r)s, 's')",
                "INSERT INTO dagster.asset_check_executions (asset_key, check_name, run_id) VALUES ('[]', 'c', %(r)s)",
                "INSERT INTO dagster.asset_event_tags (event_id, asset_key, key) SELECT id, asset_key, 'colour'"
                " FROM dagster.event_logs WHERE run_id = %(r)s AND asset_key IS NOT NULL",
            ):
                connection.execute(statement, {"r": run_id})
    before = rows(migrated_url)
    assert sum(victims[0] in str(found) for found in before.values()) >= 6
    name = urlsplit(migrated_url).path.removeprefix("/")
    theirs, mine = new_database(name), new_database(name)

    other = instance_for(theirs)
    for run_id in victims:
        other.delete_run(run_id)
    for partition in ("old-1", "old-2"):
        other.delete_dynamic_partition("export_requests", partition)
    with psycopg.connect(mine) as connection:  # the last one has a request, and so is not the first to go
        connection.execute(
            "INSERT INTO export_pipeline.export_requests (request_id, user_id, requested_by, request_type, format,"
            " status) VALUES ('new-1', 'u', 'u', 'custom', 'json', 'completed')"
        )
    pruned = prune(mine, age=timedelta(days=999), keep=1)

    assert (pruned.partitions, pruned.runs, pruned.left) == (2, 2, 0)
    left = rows(mine)
    assert left == rows(theirs)
    changed = {table for table in left if left[table] != before[table]}
    assert {"runs", "run_tags", "event_logs", "asset_event_tags", "dynamic_partitions"} <= changed
    assert not changed & _SHARED


def test_a_table_that_this_version_does_not_know_must_be_looked_at(
    migrated_url: str, instance_for: Callable[[str], dg.DagsterInstance]
) -> None:
    """A new version of Dagster may keep something new for each run."""
    instance_for(migrated_url)
    with psycopg.connect(migrated_url) as connection:
        refer = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'dagster'"
            " AND (column_name LIKE '%run_id' OR column_name LIKE '%event_id%' OR column_name LIKE '%partition')"
        ).fetchall()
    assert set(refer) == {
        ("asset_check_executions", "partition"),
        ("asset_check_executions", "run_id"),
        ("asset_event_tags", "event_id"),
        ("asset_keys", "last_run_id"),
        ("concurrency_slots", "run_id"),
        ("dynamic_partitions", "partition"),
        ("event_logs", "partition"),
        ("event_logs", "run_id"),
        ("pending_steps", "run_id"),
        ("run_tags", "run_id"),
        ("runs", "partition"),
        ("runs", "run_id"),
    }


def test_where_dagster_is_elsewhere_nothing_is_done(migrated_url: str) -> None:
    assert prune(migrated_url, age=timedelta(0), keep=0) == Pruned()


def test_runs_without_a_partition_go_by_their_age(
    migrated_url: str, instance_for: Callable[[str], dg.DagsterInstance]
) -> None:
    instance = instance_for(migrated_url)
    old, new = (plain.execute_in_process(instance=instance).run_id for _ in range(2))
    started = plain.execute_in_process(instance=instance).run_id
    with psycopg.connect(migrated_url) as connection:
        connection.execute("UPDATE dagster.runs SET end_time = end_time - 86400 * 15 WHERE run_id <> %s", [new])
        connection.execute("UPDATE dagster.runs SET status = 'STARTED' WHERE run_id = %s", [started])
    assert prune(migrated_url).runs == 1
    assert {found.run_id for found in instance.get_runs()} == {new, started}
    assert instance.all_logs(old) == []
    assert instance.all_logs(new) != []


@pytest.fixture(scope="module")
def past_template(
    server_url: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Name of a database with Dagster's tables and one real run, and the run's id."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE past_template TEMPLATE {migrated_template}".encode())
    url = database_url(server_url, "past_template")
    home = tmp_path_factory.mktemp("dagster")
    with open_dagster(home, url) as instance:
        run_id = run(instance, "template")
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO export_pipeline.export_run_tickets VALUES (%s, 'busy', 'result', '{}', now())", [run_id]
        )
    yield "past_template", run_id
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE past_template WITH (FORCE)")


@pytest.fixture
def past_url(past_template: tuple[str, str], new_database: Callable[..., str]) -> str:
    """A database with the requests ``past-1`` to ``past-20``, of which ten ended a month ago, each with its run."""
    return filled(new_database(past_template[0]), past_template[1], old=range(1, 11), new=range(11, 21))


def filled(url: str, run_id: str, *, old: range, new: range) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM dagster.dynamic_partitions")
        for numbers, ended in ((old, "now() - interval '30 days'"), (new, "now()")):
            past.add_requests(connection, numbers, ended=f"{ended} + i * interval '1 s'")
            past.add_runs(connection, run_id, numbers, ended=ended)
    return url


def partitions(connection: psycopg.Connection) -> set[int]:
    found = connection.execute("SELECT partition FROM dagster.dynamic_partitions").fetchall()
    return {int(name.removeprefix("past-")) for (name,) in found}


def ours(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return [
        row
        for table in ("export_requests", "export_metadata", "export_audit_logs")
        for row in connection.execute(f"SELECT t::text FROM export_pipeline.{table} AS t ORDER BY 1".encode())
    ]


def assert_whole(connection: psycopg.Connection) -> None:
    """Every partition has its run with all that belongs to it, and nothing belongs to a run that is gone."""
    kept = connection.execute(
        """SELECT r.partition,
                  (SELECT count(*) FROM dagster.event_logs AS e WHERE e.run_id = r.run_id),
                  (SELECT count(*) FROM dagster.run_tags AS t WHERE t.run_id = r.run_id),
                  (SELECT count(*) FROM export_pipeline.export_run_tickets AS t WHERE t.run_id = r.run_id)
           FROM dagster.runs AS r"""
    ).fetchall()
    assert len({tuple(counts) for _, *counts in kept}) == 1, "every run has as many rows as the one that was copied"
    assert {int(name.removeprefix("past-")) for name, *_ in kept if name != "template"} == partitions(connection)
    for table in ("dagster.event_logs", "dagster.run_tags", "export_pipeline.export_run_tickets"):
        orphans = f"SELECT count(*) FROM {table} WHERE run_id NOT IN (SELECT run_id FROM dagster.runs)"
        assert connection.execute(orphans.encode()).fetchone() == (0,), table


def test_what_ended_long_ago_goes_and_what_moves_stays(past_url: str) -> None:
    with (
        psycopg.connect(past_url, autocommit=True) as connection,
        psycopg.connect(past_url) as another,
    ):
        for statement in (
            "UPDATE export_pipeline.export_requests SET status = 'pending' WHERE request_id = 'past-1'",
            "UPDATE export_pipeline.export_requests SET status = 'processing' WHERE request_id = 'past-2'",
            "UPDATE dagster.runs SET status = 'STARTED' WHERE partition = 'past-3'",
        ):
            connection.execute(statement.encode())
        # In the middle of a retry.
        another.execute("UPDATE export_pipeline.export_requests SET status = 'pending' WHERE request_id = 'past-4'")
        before = ours(connection)
        pruned = prune(past_url)
        assert (pruned.partitions, pruned.runs, pruned.tickets, pruned.left) == (6, 6, 6, 2)
        assert pruned.events > 6 * 8
        assert partitions(connection) == {1, 2, 3, 4, *range(11, 21)}
        assert_whole(connection)
        assert ours(connection) == before, "requests, metadata and the trail stay"


def test_the_newest_stay_when_there_are_too_many(past_url: str) -> None:
    assert prune(past_url, age=timedelta(days=999), keep=5).partitions == 15
    with psycopg.connect(past_url) as connection:
        assert partitions(connection) == set(range(16, 21))
        assert_whole(connection)
    assert prune(past_url, age=timedelta(days=999), keep=5) == Pruned()


def test_requests_on_their_way_stay_however_many(past_url: str) -> None:
    with psycopg.connect(past_url) as connection:
        connection.execute("UPDATE export_pipeline.export_requests SET status = 'pending'")
    assert prune(past_url, keep=1) == Pruned()


def test_it_waits_for_nobody_and_goes_on_the_next_time(past_url: str) -> None:
    with psycopg.connect(past_url) as another:
        another.execute("SELECT FROM dagster.runs WHERE partition = 'past-5' FOR UPDATE")
        assert prune(past_url).left == 10, "with the row still locked"
    assert prune(past_url).partitions == 10


def test_with_no_time_left_nothing_begins(past_url: str) -> None:
    pruned = prune(past_url, patience_s=0)
    assert (pruned.partitions, pruned.left) == (0, 10)


def test_what_a_run_deleted_by_hand_left_goes(past_url: str) -> None:
    with psycopg.connect(past_url) as connection:
        connection.execute(
            "INSERT INTO export_pipeline.export_run_tickets VALUES"
            " ('gone', 's', 'o', '{}', now() - interval '2 days'), ('making', 's', 'o', '{}', now())"
        )
        connection.execute(
            "INSERT INTO export_pipeline.export_run_queue VALUES ('gone', now() - interval '2 days'), ('making', now())"
        )
    assert prune(past_url, age=timedelta(days=999)).tickets == 1
    with psycopg.connect(past_url) as connection:
        for table in ("export_run_tickets", "export_run_queue"):
            found = connection.execute(f"SELECT run_id FROM export_pipeline.{table} WHERE length(run_id) < 36".encode())
            assert found.fetchall() == [("making",)], table


def test_old_ticks_of_schedules_go(past_url: str) -> None:
    with psycopg.connect(past_url) as connection:
        connection.execute(
            """INSERT INTO dagster.job_ticks (job_origin_id, status, type, timestamp)
               SELECT 'x', status, type, now() - age FROM unnest(ARRAY['SUCCESS', 'STARTED']) AS status,
               unnest(ARRAY['SCHEDULE', 'SENSOR']) AS type, unnest(ARRAY['1 day', '15 days']::interval[]) AS age"""
        )
    assert prune(past_url).ticks == 1


_CHILD = """
import os
from datetime import timedelta
from export_pipeline.db.pool import Database
from export_pipeline.defs import pruning
database = Database(os.environ["URL"])
pruning._BATCH = 10  # so that there is a middle, however busy the machine is
pruning.Pruning(database=database, partitions_def="export_requests", keep=1, age=timedelta(days=1)).run()
"""


def test_killed_in_the_middle_it_leaves_only_whole_things(
    past_template: tuple[str, str], new_database: Callable[..., str]
) -> None:
    url = filled(new_database(past_template[0]), past_template[1], old=range(1, 3001), new=range(0))
    child = subprocess.Popen([sys.executable, "-c", _CHILD], env={**os.environ, "URL": url})
    with psycopg.connect(url, autocommit=True) as connection:
        while len(partitions(connection)) == 3000 and child.poll() is None:
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        # The server notices at its next word with the dead client.
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'export-pipeline' AND datname = current_database()"
        )
        assert 0 < len(partitions(connection)) < 3000
        assert_whole(connection)
        prune(url)
        assert partitions(connection) == set()
        assert_whole(connection)


@pytest.mark.parametrize(
    ("minute", "partitions", "runs"),
    [(18, 0, True), (3, 12, False), (3, 13, True), (13, 12, False), (58, 400, True)],
)
def test_too_many_partitions_do_not_wait_for_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minute: int, partitions: int, runs: bool
) -> None:
    """Ten stay; a quarter more is still quick."""
    assert minute in range(3, 59, 5), "a tick that there is"
    monkeypatch.setattr(housekeeping, "services", lambda: SimpleNamespace(settings=SimpleNamespace(keep_partitions=10)))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.add_dynamic_partitions(PARTITIONS.name, [f"r{number}" for number in range(partitions)])
        with dg.build_schedule_context(instance, datetime(2026, 11, 24, 9, minute, tzinfo=UTC)) as context:
            asked = housekeeping.prune_finished_requests(context)
    assert isinstance(asked, dg.RunRequest if runs else dg.SkipReason), asked
    assert housekeeping.prune_finished_requests.cron_schedule == "3-58/5 * * * *"
