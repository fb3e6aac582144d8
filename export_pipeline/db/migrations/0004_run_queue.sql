-- Runs that wait for a warm worker, and who works on which.

CREATE TABLE export_pipeline.export_run_queue (
    run_id      TEXT        PRIMARY KEY,
    enqueued_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- The worker that took the run; NULL while it waits.
    worker      INTEGER
);
CREATE SEQUENCE export_pipeline.export_run_worker AS INTEGER CYCLE;

-- A worker holds an advisory lock under its number as long as its process lives.
CREATE FUNCTION export_pipeline.worker_is_alive(worker INTEGER) RETURNS BOOLEAN LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_locks
        WHERE locktype = 'advisory' AND classid = 20260102 AND objid = worker::oid AND objsubid = 2 AND granted
          AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
$$;
CREATE FUNCTION export_pipeline.workers_alive() RETURNS BIGINT LANGUAGE sql STABLE AS $$
    SELECT count(*) FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND classid = 20260102 AND objsubid = 2 AND granted
      AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
$$;

-- Wakes the sensor: only when there is a request to claim, because after each round it rests for a second.
CREATE FUNCTION export_pipeline.notify_open_request() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('export_requests_open', '');
    RETURN NULL;
END $$;
CREATE TRIGGER notify_open_request AFTER INSERT OR UPDATE OF status ON export_pipeline.export_requests
    FOR EACH ROW WHEN (NEW.status = 'pending' AND NEW.claimed_at IS NULL)
    EXECUTE FUNCTION export_pipeline.notify_open_request();
