-- The five roles of an installation. Run this once as a superuser, in the database of our tables, before
-- `export-pipeline migrate`; docs/database-roles.md explains. Running it again changes nothing.
-- Nobody can sign in with a role before it is given a password: ALTER ROLE export_pipeline_app PASSWORD '…';

DO $$
DECLARE
    role_name TEXT;
BEGIN
    FOREACH role_name IN ARRAY ARRAY[
        'export_pipeline_owner',    -- owns our tables; runs `export-pipeline migrate` and nothing else
        'export_pipeline_app',      -- everything that runs: `up`, workers, API
        'export_pipeline_intake',   -- your own programs that insert requests
        'export_pipeline_auditor',  -- reads the trail: `export-pipeline audit verify`
        'export_pipeline_source'    -- reads users' data, in the database where they are
    ]
    LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT', role_name);
        END IF;
    END LOOP;

    -- The owner makes the schemas; nobody else makes anything outside of Dagster's.
    EXECUTE format('GRANT CREATE, CONNECT ON DATABASE %I TO export_pipeline_owner', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO export_pipeline_app, export_pipeline_intake,'
                   ' export_pipeline_auditor', current_database());
END $$;

ALTER ROLE export_pipeline_source SET default_transaction_read_only = on;
ALTER ROLE export_pipeline_auditor SET statement_timeout = '1h';

-- What each may do with our tables is granted by `export-pipeline migrate`, after every upgrade anew.
