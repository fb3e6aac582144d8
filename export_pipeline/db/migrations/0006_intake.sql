-- Approval, deadlines, limits, and requests that are asked for twice.

ALTER TABLE export_pipeline.export_requests
    -- By when the law wants an answer; extended once, with a reason.
    ADD COLUMN due_at          TIMESTAMPTZ,
    ADD COLUMN due_extension   TEXT,
    -- Who approved or rejected, and why.
    ADD COLUMN decided_by      VARCHAR(255),
    ADD COLUMN decision_reason TEXT,
    -- The caller's own key for one request, so that a repeated call does not make another.
    ADD COLUMN idempotency_key VARCHAR(255),
    -- Equal for identical requests of the doors; NULL for a plain INSERT, which means what it says.
    ADD COLUMN sameness        TEXT;

CREATE UNIQUE INDEX idx_export_idempotency ON export_pipeline.export_requests (requested_by, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX idx_export_same_open ON export_pipeline.export_requests (sameness)
    WHERE status IN ('awaiting_approval', 'pending', 'processing');
-- The rate limit counts here.
CREATE INDEX idx_export_requester ON export_pipeline.export_requests (requested_by, requested_at);
CREATE INDEX idx_export_due ON export_pipeline.export_requests (due_at)
    WHERE status IN ('awaiting_approval', 'pending', 'processing');

-- Whoever inserts a row: a type that needs approval waits for it, and a gdpr request gets its due date.
CREATE FUNCTION export_pipeline.receive_request() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = export_pipeline, pg_temp AS $$
BEGIN
    IF NEW.status = 'pending' AND EXISTS (
        SELECT FROM export_pipeline.data_type_configs
        WHERE requires_approval AND (NEW.request_type = 'gdpr' OR data_type = ANY (NEW.data_types)))
    THEN
        NEW.status := 'awaiting_approval';
    END IF;
    IF NEW.request_type = 'gdpr' AND NEW.due_at IS NULL THEN
        -- Article 12(3): without undue delay and in any event within one month of receipt.
        NEW.due_at := NEW.requested_at + interval '1 month';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER receive_request BEFORE INSERT ON export_pipeline.export_requests
    FOR EACH ROW EXECUTE FUNCTION export_pipeline.receive_request();
