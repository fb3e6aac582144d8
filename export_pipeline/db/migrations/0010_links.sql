-- Download links: the link itself is nowhere, only what is needed to end it and to count what came of it.

CREATE TABLE export_pipeline.export_links (
    link_id    TEXT         PRIMARY KEY,
    request_id VARCHAR(255) NOT NULL REFERENCES export_pipeline.export_requests (request_id),
    issued_to  VARCHAR(255) NOT NULL,
    issued_at  TIMESTAMPTZ  NOT NULL DEFAULT now(),
    expires_at TIMESTAMPTZ  NOT NULL,
    revoked_at TIMESTAMPTZ,
    downloads  INTEGER      NOT NULL DEFAULT 0
);
CREATE INDEX idx_export_links_request ON export_pipeline.export_links (request_id);

-- Whoever deletes or expires a request, or takes it up again: its links end in the same transaction.
CREATE FUNCTION export_pipeline.revoke_links() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE export_pipeline.export_links SET revoked_at = now()
    WHERE request_id = NEW.request_id AND revoked_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER revoke_links AFTER UPDATE OF status ON export_pipeline.export_requests
    FOR EACH ROW WHEN (NEW.status NOT IN ('completed', 'partial'))
    EXECUTE FUNCTION export_pipeline.revoke_links();
