-- A row that was written by hand can neither hold up others nor get around an approval, and a data type that is changed by
-- hand leaves the same trail as one that is changed by a program of ours.

-- What was written before. Who is promised a file for ever keeps it as long as a calendar goes.
UPDATE export_pipeline.export_requests SET attempt = 0 WHERE attempt NOT BETWEEN 0 AND 1000000;
UPDATE export_pipeline.export_requests SET claimed_at = NULL
WHERE claimed_at < '0001-01-02 UTC' OR claimed_at >= '9999-12-31 UTC';
UPDATE export_pipeline.export_requests SET started_at = NULL
WHERE started_at < '0001-01-02 UTC' OR started_at >= '9999-12-31 UTC';
UPDATE export_pipeline.export_requests SET warned_at = NULL
WHERE warned_at < '0001-01-02 UTC' OR warned_at >= '9999-12-31 UTC';
UPDATE export_pipeline.export_requests SET completed_at = greatest(requested_at, least(completed_at, now()))
WHERE completed_at < '0001-01-02 UTC' OR completed_at >= '9999-12-31 UTC';
UPDATE export_pipeline.export_metadata SET export_date = greatest('0001-01-02 UTC', least(export_date, now()))
WHERE export_date < '0001-01-02 UTC' OR export_date >= '9999-12-31 UTC';
UPDATE export_pipeline.export_metadata SET expires_at = greatest('0001-01-02 UTC', least(expires_at, '9999-12-30 UTC'))
WHERE expires_at < '0001-01-02 UTC' OR expires_at >= '9999-12-31 UTC';
UPDATE export_pipeline.export_metadata SET removed_at = greatest('0001-01-02 UTC', least(removed_at, now()))
WHERE removed_at < '0001-01-02 UTC' OR removed_at >= '9999-12-31 UTC';

ALTER TABLE export_pipeline.export_requests
    ADD CONSTRAINT attempt_is_a_small_number CHECK (attempt BETWEEN 0 AND 1000000),
    ADD CONSTRAINT claimed_at_is_a_date CHECK (claimed_at >= '0001-01-02 UTC' AND claimed_at < '9999-12-31 UTC'),
    ADD CONSTRAINT started_at_is_a_date CHECK (started_at >= '0001-01-02 UTC' AND started_at < '9999-12-31 UTC'),
    ADD CONSTRAINT completed_at_is_a_date CHECK (completed_at >= '0001-01-02 UTC' AND completed_at < '9999-12-31 UTC'),
    ADD CONSTRAINT warned_at_is_a_date CHECK (warned_at >= '0001-01-02 UTC' AND warned_at < '9999-12-31 UTC');
ALTER TABLE export_pipeline.export_metadata
    ADD CONSTRAINT export_date_is_a_date CHECK (export_date >= '0001-01-02 UTC' AND export_date < '9999-12-31 UTC'),
    ADD CONSTRAINT expires_at_is_a_date CHECK (expires_at >= '0001-01-02 UTC' AND expires_at < '9999-12-31 UTC'),
    ADD CONSTRAINT removed_at_is_a_date CHECK (removed_at >= '0001-01-02 UTC' AND removed_at < '9999-12-31 UTC');

-- Whoever inserts a row: nobody has claimed, begun or decided on what was not there before, whatever the row says. A type
-- that needs approval waits for it, and a gdpr request gets its due date.
CREATE OR REPLACE FUNCTION export_pipeline.receive_request() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = export_pipeline, pg_temp AS $$
BEGIN
    IF NEW.status IN ('awaiting_approval', 'pending', 'processing') THEN
        IF EXISTS (
            SELECT FROM export_pipeline.data_type_configs
            WHERE requires_approval AND (NEW.request_type = 'gdpr' OR data_type = ANY (NEW.data_types)))
        THEN
            NEW.status := 'awaiting_approval';
        ELSIF NEW.status = 'processing' THEN
            NEW.status := 'pending';
        END IF;
        NEW.attempt := 0;
        NEW.claimed_at := NULL;
        NEW.started_at := NULL;
        NEW.run_id := NULL;
        NEW.decided_by := NULL;
        NEW.decision_reason := NULL;
    END IF;
    IF NEW.request_type = 'gdpr' AND NEW.due_at IS NULL THEN
        -- Article 12(3): without undue delay and in any event within one month of receipt.
        NEW.due_at := NEW.requested_at + interval '1 month';
    END IF;
    RETURN NEW;
END $$;

-- Names of columns and never what stands in them. Programs of ours say who acts, as they do for a new request; of anybody
-- else it is known which role they signed in with.
CREATE FUNCTION export_pipeline.log_configuration() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change TEXT;
BEGIN
    IF TG_OP = 'INSERT' THEN
        change := NEW.data_type || ': added';
    ELSIF TG_OP = 'DELETE' THEN
        change := OLD.data_type || ': removed';
    ELSIF TG_OP = 'TRUNCATE' THEN
        change := 'every data type: removed';
    ELSE
        SELECT OLD.data_type || ': changed ' || string_agg(name, ', ' ORDER BY name)
            || CASE WHEN NEW.data_type <> OLD.data_type THEN '; now ' || NEW.data_type ELSE '' END
        INTO change
        FROM jsonb_each(to_jsonb(NEW)) AS written (name, value) WHERE value IS DISTINCT FROM to_jsonb(OLD) -> name;
    END IF;
    IF change IS NOT NULL THEN
        INSERT INTO export_pipeline.export_audit_logs (action, actor, ip_address, user_agent, detail)
        VALUES ('configuration_changed',
                coalesce(nullif(current_setting('export_pipeline.actor', true), ''), session_user),
                nullif(current_setting('export_pipeline.ip_address', true), ''),
                nullif(current_setting('export_pipeline.user_agent', true), ''), change);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER log_configuration AFTER INSERT OR UPDATE OR DELETE ON export_pipeline.data_type_configs
    FOR EACH ROW EXECUTE FUNCTION export_pipeline.log_configuration();
CREATE TRIGGER log_emptied_configuration AFTER TRUNCATE ON export_pipeline.data_type_configs
    FOR EACH STATEMENT EXECUTE FUNCTION export_pipeline.log_configuration();
