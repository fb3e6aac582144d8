-- What the roles of roles.sql may do. `migrate` runs this as the owner, each time, in its own transaction: what is not
-- granted here is taken away.

REVOKE ALL ON ALL TABLES IN SCHEMA export_pipeline
    FROM export_pipeline_app, export_pipeline_intake, export_pipeline_auditor;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA export_pipeline
    FROM export_pipeline_app, export_pipeline_intake, export_pipeline_auditor;
GRANT USAGE ON SCHEMA export_pipeline TO export_pipeline_app, export_pipeline_intake, export_pipeline_auditor;

-- The application. It can make and move requests, not remove them.
GRANT SELECT ON export_pipeline.schema_migrations TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE ON export_pipeline.export_requests TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE ON export_pipeline.export_metadata TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON export_pipeline.data_type_configs TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON export_pipeline.export_run_tickets TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON export_pipeline.export_run_queue TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON export_pipeline.export_sign_in_codes TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON export_pipeline.export_verification_codes TO export_pipeline_app;
GRANT SELECT, INSERT, DELETE ON export_pipeline.export_revoked_tokens, export_pipeline.export_sign_outs
    TO export_pipeline_app;
GRANT SELECT, INSERT, UPDATE ON export_pipeline.export_links TO export_pipeline_app;
GRANT USAGE ON SEQUENCE export_pipeline.export_run_worker TO export_pipeline_app;
-- It adds to the trail, and chooses neither the number nor the time of a row.
GRANT SELECT ON export_pipeline.export_audit_logs TO export_pipeline_app;
GRANT INSERT (request_id, user_id, action, ip_address, user_agent, actor, detail)
    ON export_pipeline.export_audit_logs TO export_pipeline_app;
GRANT SELECT ON export_pipeline.export_audit_chain, export_pipeline.export_audit_unchained TO export_pipeline_app;
-- Nobody but the owner and the triggers' functions: export_audit_chain_lock.

-- Dagster makes its tables itself and changes them when it is upgraded, so they are the application's.
GRANT USAGE, CREATE ON SCHEMA dagster TO export_pipeline_app;

-- A program that asks for exports: the specification's columns and what makes an export narrower, so no status of its own
-- and no way past an approval.
GRANT INSERT (request_id, user_id, requested_by, request_type, data_types, format, anonymize, recipient)
    ON export_pipeline.export_requests TO export_pipeline_intake;
GRANT SELECT (request_id, status, requested_at, completed_at, error_message)
    ON export_pipeline.export_requests TO export_pipeline_intake;

-- The auditor.
GRANT SELECT ON export_pipeline.schema_migrations, export_pipeline.export_audit_logs,
    export_pipeline.export_audit_chain, export_pipeline.export_audit_unchained TO export_pipeline_auditor;

GRANT EXECUTE ON FUNCTION export_pipeline.chain_late_audit_logs() TO export_pipeline_app, export_pipeline_auditor;
