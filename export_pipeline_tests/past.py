"""A past that never was: requests that ended long ago, and copies of a real run under new ids, made by SQL."""

from __future__ import annotations

import psycopg

_REQUESTS = """
INSERT INTO export_pipeline.export_requests
    (request_id, user_id, requested_by, request_type, data_types, format, status, requested_at, completed_at, attempt)
SELECT 'past-' || i, 'past-user-' || i %% 1000, 'past', 'gdpr', '{user_clicks}', 'json', 'completed',
       ended - interval '1 s', ended, 1
FROM generate_series(%(first)s::int, %(last)s::int) AS i, LATERAL (SELECT %(ended)s::timestamptz AS ended) AS t
"""
#: The trigger has written the first audit row.
_AUDIT = """
INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, detail, timestamp)
SELECT request_id, user_id, action, 'export-pipeline', 'run of the past', completed_at
FROM export_pipeline.export_requests, unnest(ARRAY['export_claimed', 'export_started', 'export_completed']) AS action
WHERE requested_by = 'past'
"""
_METADATA = """
INSERT INTO export_pipeline.export_metadata
    (request_id, user_id, total_records, data_types_included, file_size_bytes, format, stored_size_bytes, sha256,
     storage_key, content_encoding, manifest)
SELECT request_id, user_id, 10, data_types, 1000, format, 500, md5(request_id), request_id || '/1.age', 'gzip',
       '{"data_types": ["user_clicks"], "not_exported": [], "parts": [{"data_type": "user_clicks", "rows": 10}]}'
FROM export_pipeline.export_requests WHERE requested_by = 'past'
"""
#: Dagster's rows of one run, with another run's and another partition's id wherever they stand.
_COPIES = """
CREATE TEMPORARY TABLE copies ON COMMIT DROP AS
SELECT gen_random_uuid()::text AS run_id, 'past-' || i AS partition
FROM generate_series(%(first)s::int, %(last)s::int) AS i;
"""
_PARTITIONS = """
INSERT INTO dagster.dynamic_partitions (partitions_def_name, partition)
SELECT 'export_requests', partition FROM copies
"""
_RUNS = """
INSERT INTO dagster.runs (run_id, snapshot_id, pipeline_name, status, run_body, partition, partition_set,
    create_timestamp, update_timestamp, start_time, end_time)
SELECT c.run_id, snapshot_id, pipeline_name, status,
       replace(replace(run_body, r.run_id, c.run_id), r.partition, c.partition), c.partition, partition_set,
       %(ended)s AT TIME ZONE 'UTC', %(ended)s AT TIME ZONE 'UTC',
       extract(epoch FROM %(ended)s) - 1, extract(epoch FROM %(ended)s)
FROM dagster.runs AS r, copies AS c WHERE r.run_id = %(run_id)s
"""
_TAGS = """
INSERT INTO dagster.run_tags (run_id, key, value)
SELECT c.run_id, key, replace(value, r.partition, c.partition)
FROM dagster.run_tags AS t JOIN dagster.runs AS r USING (run_id), copies AS c WHERE r.run_id = %(run_id)s ORDER BY t.id
"""
_EVENTS = """
INSERT INTO dagster.event_logs (run_id, event, dagster_event_type, timestamp, step_key)
SELECT c.run_id, replace(replace(event, r.run_id, c.run_id), r.partition, c.partition), dagster_event_type, timestamp,
       step_key
FROM copies AS c, dagster.event_logs AS e JOIN dagster.runs AS r USING (run_id)
WHERE r.run_id = %(run_id)s ORDER BY c.partition, e.id
"""
_TICKETS = """
INSERT INTO export_pipeline.export_run_tickets (run_id, step_key, output, ticket, created_at)
SELECT c.run_id, step_key, output, ticket, %(ended)s
FROM export_pipeline.export_run_tickets AS t, copies AS c WHERE t.run_id = %(run_id)s
"""


def add_requests(connection: psycopg.Connection, numbers: range, *, ended: str, trail: bool = True) -> None:
    """Add completed requests ``past-N`` with metadata and four audit rows each, 0.5 ms for each request.

    Args:
        connection: To our database.
        numbers: The N, step 1.
        ended: When they ended, as SQL; may name their number ``i``.
        trail: Whether they get audit rows, which are chained one by one. Without, needs a superuser.
    """
    values = {"first": numbers.start, "last": numbers.stop - 1}
    if not trail:
        connection.execute("SET session_replication_role = replica")
    connection.execute(_REQUESTS.replace("%(ended)s", f"({ended})").encode(), values)
    ours = f" AND request_id IN (SELECT 'past-' || i FROM generate_series({numbers.start}, {numbers.stop - 1}) AS i)"
    for statement in (_METADATA, _AUDIT) if trail else (_METADATA,):
        connection.execute((statement + ours).encode())
    if not trail:
        connection.execute("SET session_replication_role = origin")


def add_runs(connection: psycopg.Connection, run_id: str, numbers: range, *, ended: str) -> None:
    """Give requests ``past-N`` a live partition and a copy of a finished run, with its tags, events and tickets.

    Args:
        connection: To our database, which holds Dagster's tables too.
        run_id: The run that is copied.
        numbers: The N, step 1.
        ended: When they ended, as SQL.
    """
    values = {"first": numbers.start, "last": numbers.stop - 1, "run_id": run_id}
    with connection.transaction():
        for statement in (_COPIES, _PARTITIONS, _RUNS, _TAGS, _EVENTS, _TICKETS):
            connection.execute(statement.replace("%(ended)s", f"({ended})").encode(), values)


def analyze(connection: psycopg.Connection) -> None:
    """What autovacuum would do a minute later. Needs autocommit."""
    connection.execute("VACUUM (ANALYZE) export_pipeline.export_requests, export_pipeline.export_audit_logs")
    connection.execute("VACUUM (ANALYZE) dagster.runs, dagster.run_tags, dagster.event_logs")
