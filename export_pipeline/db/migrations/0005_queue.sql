-- The queue stays quick however many requests wait and however many are past.

-- What the law wants comes first.
CREATE FUNCTION export_pipeline.priority(request_type TEXT) RETURNS SMALLINT
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE request_type WHEN 'gdpr' THEN 0 WHEN 'audit' THEN 1 WHEN 'custom' THEN 2 ELSE 3 END::smallint
$$;

-- Requests that wait to be claimed, in the order in which their user gets them.
CREATE INDEX idx_export_waiting ON export_pipeline.export_requests
    (user_id, export_pipeline.priority(request_type), requested_at, request_id)
    WHERE status = 'pending' AND claimed_at IS NULL;
-- Requests that have or await their run: never more than may be in flight.
CREATE INDEX idx_export_busy ON export_pipeline.export_requests (user_id)
    WHERE status = 'processing' OR (status = 'pending' AND claimed_at IS NOT NULL);
