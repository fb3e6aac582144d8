-- Lists are read newest first, page by page: of everybody, and of one person.

CREATE INDEX idx_export_newest ON export_pipeline.export_requests (requested_at DESC, request_id DESC);
CREATE INDEX idx_export_user_newest ON export_pipeline.export_requests (user_id, requested_at DESC, request_id DESC);
