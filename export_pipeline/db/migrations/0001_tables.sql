-- Our tables, with the specification's names. Everything that it does not name is an addition.

CREATE TABLE export_pipeline.export_requests (
    request_id    VARCHAR(255) PRIMARY KEY DEFAULT gen_random_uuid()::text,
    user_id       VARCHAR(255) NOT NULL,
    requested_by  VARCHAR(255) NOT NULL,
    request_type  VARCHAR(20)  NOT NULL,
    data_types    TEXT[],
    format        VARCHAR(10)  NOT NULL,
    status        VARCHAR(20)  NOT NULL DEFAULT 'pending',
    requested_at  TIMESTAMPTZ  NOT NULL DEFAULT now(),
    completed_at  TIMESTAMPTZ,
    file_url      TEXT,
    error_message TEXT,
    -- Runs that the sensor has asked for so far; a run's key is request_id + attempt.
    attempt       INTEGER      NOT NULL DEFAULT 0,
    -- Set while a run has been asked for and has not begun.
    claimed_at    TIMESTAMPTZ,
    started_at    TIMESTAMPTZ,
    -- The Dagster run that owns the request while it is processing, and the last one afterwards.
    run_id        VARCHAR(255),
    -- The id is also a partition key, a folder in the store and a file name: one alphabet serves them all.
    CONSTRAINT request_id_has_only_letters_digits_dash_underscore
        CHECK (request_id ~ '^[A-Za-z0-9][A-Za-z0-9_-]*$'),
    CONSTRAINT user_id_is_not_empty CHECK (user_id <> ''),
    CONSTRAINT status_is_known CHECK (status IN (
        'awaiting_approval', 'pending', 'processing', 'completed', 'partial', 'failed',
        'rejected', 'cancelled', 'expired', 'deleted'))
);
CREATE INDEX idx_export_user ON export_pipeline.export_requests (user_id);
CREATE INDEX idx_export_status ON export_pipeline.export_requests (status);
-- The sensor reads only this: it stays small however many requests are past.
CREATE INDEX idx_export_open ON export_pipeline.export_requests (requested_at)
    WHERE status IN ('pending', 'processing');

CREATE TABLE export_pipeline.export_metadata (
    request_id          VARCHAR(255) PRIMARY KEY REFERENCES export_pipeline.export_requests (request_id),
    user_id             VARCHAR(255) NOT NULL,
    total_records       BIGINT       NOT NULL DEFAULT 0,
    data_types_included TEXT[],
    export_date         TIMESTAMPTZ  NOT NULL DEFAULT now(),
    -- The file as it is delivered, in bytes.
    file_size_bytes     BIGINT       NOT NULL DEFAULT 0,
    format              VARCHAR(10),
    -- The sealed object as it is stored, in bytes.
    stored_size_bytes   BIGINT       NOT NULL,
    sha256              TEXT         NOT NULL,
    storage_key         TEXT         NOT NULL,
    content_encoding    TEXT         NOT NULL,
    manifest            JSONB        NOT NULL
);

CREATE TABLE export_pipeline.data_type_configs (
    data_type         VARCHAR(100) PRIMARY KEY,
    table_name        VARCHAR(255) NOT NULL,
    user_id_column    VARCHAR(100) NOT NULL DEFAULT 'user_id',
    columns_to_export TEXT[]       NOT NULL DEFAULT '{}',
    is_sensitive      BOOLEAN      NOT NULL DEFAULT false,
    requires_approval BOOLEAN      NOT NULL DEFAULT false,
    order_by          TEXT[]       NOT NULL DEFAULT '{}',
    title             TEXT         NOT NULL DEFAULT '',
    CONSTRAINT data_type_has_only_letters_digits_dash_underscore
        CHECK (data_type ~ '^[A-Za-z][A-Za-z0-9_-]*$')
);

CREATE TABLE export_pipeline.export_audit_logs (
    log_id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Both are absent when the action is about the installation and not about a request.
    request_id VARCHAR(255) REFERENCES export_pipeline.export_requests (request_id),
    user_id    VARCHAR(255),
    action     VARCHAR(50) NOT NULL,
    timestamp  TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    ip_address VARCHAR(45),
    user_agent TEXT,
    actor      VARCHAR(255) NOT NULL,
    -- Free of personal data: reasons, counts, ids of runs.
    detail     TEXT NOT NULL DEFAULT ''
);
CREATE INDEX idx_audit_request ON export_pipeline.export_audit_logs (request_id);

INSERT INTO export_pipeline.data_type_configs (data_type, table_name, columns_to_export, is_sensitive, title) VALUES
    ('user_profile',   'users',               ARRAY['user_id', 'email', 'created_at'], true, 'Your profile'),
    ('user_sessions',  'user_sessions',       ARRAY['session_id', 'user_id', 'start_time', 'end_time'], false, 'Your sessions'),
    ('user_clicks',    'user_clicks',         ARRAY['user_id', 'element_id', 'timestamp'], false, 'What you clicked'),
    ('user_workflows', 'user_workflow_usage', ARRAY['user_id', 'workflow_id', 'timestamp'], false, 'Workflows you used'),
    ('user_errors',    'user_errors',         ARRAY['user_id', 'error_message', 'timestamp'], false, 'Errors you met'),
    ('user_feedback',  'user_feedback',
        ARRAY['feedback_id', 'user_id', 'rating', 'comment', 'tags', 'details', 'created_at'], false, 'Feedback you gave');

-- A plain INSERT leaves the same trail as the API: the row and its audit row are one transaction.
CREATE FUNCTION export_pipeline.log_new_request() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO export_pipeline.export_audit_logs (request_id, user_id, action, actor, ip_address, user_agent)
    VALUES (NEW.request_id, NEW.user_id, 'export_requested', NEW.requested_by,
            nullif(current_setting('export_pipeline.ip_address', true), ''),
            nullif(current_setting('export_pipeline.user_agent', true), ''));
    RETURN NULL;
END $$;
CREATE TRIGGER log_new_request AFTER INSERT ON export_pipeline.export_requests
    FOR EACH ROW EXECUTE FUNCTION export_pipeline.log_new_request();

-- Whoever waits for a request listens instead of polling. The payload is the request's id alone.
CREATE FUNCTION export_pipeline.notify_request() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('export_requests', NEW.request_id);
    RETURN NULL;
END $$;
CREATE TRIGGER notify_new_request AFTER INSERT ON export_pipeline.export_requests
    FOR EACH ROW EXECUTE FUNCTION export_pipeline.notify_request();
CREATE TRIGGER notify_changed_request AFTER UPDATE OF status ON export_pipeline.export_requests
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION export_pipeline.notify_request();

-- The advisory lock that a run holds while it works: it vanishes with the run's process.
CREATE FUNCTION export_pipeline.lease_key(request_id TEXT) RETURNS BIGINT
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT hashtextextended(request_id, 20260101) $$;
