-- Files that only their recipient can open, which key opens the others, and files that leave in time.

ALTER TABLE export_pipeline.export_requests
    -- Public key (age or SSH) for which alone the file is sealed; NULL means for this installation.
    ADD COLUMN recipient TEXT;

-- Who asked for a file that nobody else can open must be able to rely on it.
CREATE FUNCTION export_pipeline.keep_recipient() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The recipient of a request cannot be changed.' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER keep_recipient BEFORE UPDATE OF recipient ON export_pipeline.export_requests
    FOR EACH ROW WHEN (OLD.recipient IS DISTINCT FROM NEW.recipient)
    EXECUTE FUNCTION export_pipeline.keep_recipient();

ALTER TABLE export_pipeline.export_metadata
    -- Public key that opens the stored object: ours, or the recipient's. NULL in rows that are older than this column.
    ADD COLUMN sealed_for TEXT,
    -- Promised when the file was completed; a later change of the setting does not move it.
    ADD COLUMN expires_at TIMESTAMPTZ,
    -- When the stored object was removed for good.
    ADD COLUMN removed_at TIMESTAMPTZ;

UPDATE export_pipeline.export_metadata AS m
SET expires_at = coalesce(r.completed_at, m.export_date) + interval '7 days'
FROM export_pipeline.export_requests AS r WHERE r.request_id = m.request_id;

-- The purge looks only at files that are still there.
CREATE INDEX idx_metadata_expiry ON export_pipeline.export_metadata (expires_at) WHERE removed_at IS NULL;
