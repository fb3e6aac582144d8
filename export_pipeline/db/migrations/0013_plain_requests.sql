-- A plain INSERT that no program of ours could read again is refused, instead of breaking every list that it would
-- stand in: names of data types are a plain list, and times are those of a calendar.

UPDATE export_pipeline.export_requests
SET data_types = ARRAY(SELECT name FROM unnest(data_types) AS name WHERE name IS NOT NULL)
WHERE CASE WHEN array_ndims(data_types) > 1 THEN true ELSE array_position(data_types, NULL) IS NOT NULL END;
UPDATE export_pipeline.export_requests
SET requested_at = greatest('0001-01-02 UTC', least(requested_at, now()))
WHERE requested_at < '0001-01-02 UTC' OR requested_at >= '9999-01-01 UTC';
UPDATE export_pipeline.export_requests
SET due_at = requested_at + interval '1 month'
WHERE due_at < '0001-01-02 UTC' OR due_at >= '9999-12-31 UTC';

ALTER TABLE export_pipeline.export_requests
    ADD CONSTRAINT data_types_are_a_plain_list CHECK (
        CASE WHEN array_ndims(data_types) > 1 THEN false ELSE array_position(data_types, NULL) IS NULL END),
    ADD CONSTRAINT requested_at_is_a_date
        CHECK (requested_at >= '0001-01-02 UTC' AND requested_at < '9999-01-01 UTC'),
    ADD CONSTRAINT due_at_is_a_date CHECK (due_at >= '0001-01-02 UTC' AND due_at < '9999-12-31 UTC');
