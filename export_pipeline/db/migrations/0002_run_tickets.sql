-- What one op of a run hands to the next: ids, keys, counts and hashes as JSON, never a row of anybody's data.
-- In the database and not in a folder, so that a re-execution may land on another machine.

CREATE TABLE export_pipeline.export_run_tickets (
    run_id     TEXT        NOT NULL,
    step_key   TEXT        NOT NULL,
    output     TEXT        NOT NULL,
    ticket     JSONB       NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, step_key, output)
);
