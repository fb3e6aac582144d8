-- Which columns are altered before they leave the source, and which requests ask for it.

ALTER TABLE export_pipeline.data_type_configs
    -- Profile → column → policy. The profile `always` applies to every export, any other to requests that name it.
    ADD COLUMN anonymization JSONB NOT NULL DEFAULT '{}',
    -- Columns that hold other people's data: pseudonyms in gdpr exports, unless a policy says something else.
    ADD COLUMN third_party TEXT[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT anonymization_is_an_object CHECK (jsonb_typeof(anonymization) = 'object');

ALTER TABLE export_pipeline.export_requests
    -- The profile that the request asks for; NULL asks for none.
    ADD COLUMN anonymize VARCHAR(100);
