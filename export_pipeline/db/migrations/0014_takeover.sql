-- A run is begun once, by one worker; and a worker is not dead because its connection broke for a moment.

ALTER TABLE export_pipeline.export_run_queue
    -- Whether a worker has begun to execute the run: whoever takes it over only sees to its end.
    ADD COLUMN begun BOOLEAN NOT NULL DEFAULT false,
    -- Since when the worker that took the run has been missed.
    ADD COLUMN missed_at TIMESTAMPTZ;
