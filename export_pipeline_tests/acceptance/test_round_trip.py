"""A delivered file, loaded into an empty table, is the person's data of one moment, whatever is written meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from export_pipeline import sample_source
from export_pipeline.export_run import ExportRun
from export_pipeline.models import Actor, DataTypeConfig
from export_pipeline.render.formats import delivered
from export_pipeline.wiring import Services
from export_pipeline_tests.loading import differences, load, rows_of

ADMIN = Actor(id="admin")
PATIENCE_S = 60
#: One transaction of somebody who uses the product: rows come, change and go in every table.
WRITES = """
INSERT INTO user_clicks (user_id, element_id, "timestamp")
    SELECT %(user)s, 'written meanwhile', now() FROM generate_series(1, 3);
UPDATE user_clicks SET page = 'changed meanwhile'
    WHERE click_id IN (SELECT click_id FROM user_clicks WHERE user_id = %(user)s ORDER BY random() LIMIT 20);
DELETE FROM user_clicks
    WHERE click_id IN (SELECT click_id FROM user_clicks WHERE user_id = %(user)s ORDER BY click_id LIMIT 1);
INSERT INTO user_sessions (session_id, user_id, start_time) VALUES (gen_random_uuid(), %(user)s, now());
UPDATE user_sessions SET device = 'changed meanwhile' WHERE user_id = %(user)s;
INSERT INTO user_workflow_usage (user_id, workflow_id, "timestamp") VALUES (%(user)s, 'written meanwhile', now());
UPDATE user_workflow_usage SET cost = cost + 1 WHERE user_id = %(user)s;
INSERT INTO user_errors (user_id, error_message, "timestamp", severity) VALUES (%(user)s, 'meanwhile', now(), 'low');
UPDATE user_errors SET severity = 'changed' WHERE user_id = %(user)s;
INSERT INTO user_feedback (user_id, comment, created_at) VALUES (%(user)s, 'written meanwhile', now());
UPDATE users SET display_name = 'changed ' || random() WHERE user_id = %(user)s;
"""


class Writer:
    """Writes without a pause, and can be waited for.

    Args:
        url: The source.
        user_id: Whose rows.
    """

    def __init__(self, url: str, user_id: str) -> None:
        self._url, self._user = url, user_id
        self._commits = 0
        self._committed = threading.Condition()
        self._stop = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self._url, cursor_factory=psycopg.ClientCursor) as connection:
            while not self._stop.is_set():
                connection.execute(WRITES.encode(), {"user": self._user})
                connection.commit()
                with self._committed:
                    self._commits += 1
                    self._committed.notify_all()

    def wait_for_more(self, commits: int = 2) -> None:
        with self._committed:
            target = self._commits + commits
            assert self._committed.wait_for(lambda: self._commits >= target, PATIENCE_S)

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        thread = threading.Thread(target=self.run, name="writer")
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()


@pytest.fixture
def every_column(services: Services) -> list[DataTypeConfig]:
    """The sample's data types, with all of their columns."""
    configs = [replace(config, columns_to_export=(), third_party=()) for config in services.data_types.all()]
    services.data_types.apply(configs, ADMIN)
    return configs


@contextmanager
def same_moment(run: ExportRun, url: str) -> Iterator[psycopg.Connection[Any]]:
    """A second session that sees exactly what the run's snapshot sees, and may make tables of its own."""
    [[name]] = run._take_snapshot().connection.execute("SELECT pg_export_snapshot()").fetchall()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))
        yield connection
        connection.execute("ROLLBACK")


def export_meanwhile(services: Services, run: ExportRun, writer: Writer) -> bytes:
    """All steps of the run; between any two of them others commit."""
    plan = run.plan()
    parts = []
    for planned in plan.types:
        writer.wait_for_more()
        parts.append(run.collect(plan, planned.data_type))
    writer.wait_for_more()
    run.write_metadata(run.render_and_store(plan, parts, {}))
    metadata = services.requests.metadata(run.request_id)
    assert metadata is not None
    return b"".join(delivered(services.vault().open(metadata.storage_key), metadata.content_encoding))


def of_person(connection: psycopg.Connection[Any], table: str, user_id: str, *, form: str) -> str:
    """The person's rows as a query; where JSON puts a column of type json on one line, so does this."""
    columns = connection.execute(
        "SELECT attname, atttypid = 'json'::regtype FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    one_line = "btrim(translate({}::text, E'\\n\\r', '  '))"
    selected = ", ".join(
        one_line.format(f'"{name}"') if is_json and "json" in form else f'"{name}"' for name, is_json in columns
    )
    return f"(SELECT {selected} FROM {table} WHERE user_id = '{user_id}')"


def written_since(url: str, table: str, snapshot: str) -> int:
    """Rows that everybody sees by now, and the snapshot does not: without them the test would prove nothing."""
    statement = f"SELECT count(*) FROM {table} WHERE NOT pg_visible_in_snapshot(xmin::text::xid8, %s::pg_snapshot)"
    with psycopg.connect(url) as now:
        [[count]] = now.execute(statement.encode(), [snapshot]).fetchall()
    return int(count)


def loaded_back(
    then: psycopg.Connection[Any], config: DataTypeConfig, file: bytes, form: str, user_id: str
) -> tuple[int, int]:
    """Rows that only the source, and that only the file has."""
    then.execute(f"CREATE TEMP TABLE back (LIKE {config.table_name})".encode())
    load(then, "back", form, rows_of(file, form, config.data_type))
    source = of_person(then, config.table_name, user_id, form=form)
    found = differences(then, source, source.replace(f"FROM {config.table_name}", "FROM back"))
    then.execute("DROP TABLE back")
    return found


@pytest.mark.parametrize("user_id", [sample_source.HEAVY_USER, sample_source.HOSTILE_USER])
@pytest.mark.parametrize("form", ["csv", "json", "ndjson", "parquet"])
def test_what_is_loaded_back_is_what_the_snapshot_saw(
    services: Services, every_column: list[DataTypeConfig], form: str, user_id: str
) -> None:
    asked = [config.data_type for config in every_column]
    request = services.intake.request(user_id=user_id, data_types=asked, format=form, actor=ADMIN)
    services.requests.claim(10)
    run = services.run(request.request_id, "run-1", reopen=False)
    try:
        run.plan()
        with same_moment(run, services.source_url) as then, Writer(services.source_url, user_id).writing() as writer:
            writer.wait_for_more()
            snapshot = run._take_snapshot().info.id
            file = export_meanwhile(services, run, writer)
            for config in every_column:
                assert written_since(services.source_url, config.table_name, snapshot), config.data_type
                assert loaded_back(then, config, file, form, user_id) == (0, 0), config.data_type
    finally:
        run.close()
