-- Each due date is warned about once; an extension gives a new date, and a new warning.

ALTER TABLE export_pipeline.export_requests ADD COLUMN warned_at TIMESTAMPTZ;

CREATE FUNCTION export_pipeline.forget_warning() RETURNS trigger LANGUAGE plpgsql
    SET search_path = export_pipeline, pg_temp AS $$
BEGIN
    NEW.warned_at := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER forget_warning BEFORE UPDATE OF due_at ON export_pipeline.export_requests
    FOR EACH ROW WHEN (OLD.due_at IS DISTINCT FROM NEW.due_at) EXECUTE FUNCTION export_pipeline.forget_warning();
