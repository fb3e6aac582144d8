-- The trail can be added to and not changed, and its rows hang together by hashes. docs/audit.md specifies the chain and
-- says what it proves.
--
-- A row is chained when its transaction commits, not when it is inserted: only so nobody waits for a transaction that
-- stays open, and a lock that is always taken last is in no deadlock.

CREATE TABLE export_pipeline.export_audit_chain (
    -- Without gaps, in the order of commits; log_id follows the order of inserts and has gaps.
    position      BIGINT PRIMARY KEY,
    log_id        BIGINT NOT NULL UNIQUE,
    previous_hash TEXT   NOT NULL,
    hash          TEXT   NOT NULL
);
-- Its one row is locked by who appends. A row and not an advisory lock, which every role of the server could hold.
CREATE TABLE export_pipeline.export_audit_chain_lock (
    only_row BOOLEAN PRIMARY KEY DEFAULT true CHECK (only_row)
);
INSERT INTO export_pipeline.export_audit_chain_lock DEFAULT VALUES;
-- Rows that could not be chained when they were committed; whoever appends next takes them along.
CREATE TABLE export_pipeline.export_audit_unchained (
    log_id BIGINT PRIMARY KEY
);

ALTER TABLE export_pipeline.export_audit_logs
    -- What cannot be written as a number of microseconds cannot be hashed.
    ADD CONSTRAINT timestamp_is_a_date CHECK (timestamp >= '0001-01-01 UTC' AND timestamp < '10000-01-01 UTC');

-- One field of the hashed text: its length in bytes and itself, or a dash for NULL. So no two rows have the same text.
CREATE FUNCTION export_pipeline.audit_field(value TEXT) RETURNS TEXT LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(octet_length(convert_to(value, 'UTF8'))::text || ':' || value, '-') || E'\n'
$$;
CREATE FUNCTION export_pipeline.audit_hash(entry export_pipeline.export_audit_logs, previous_hash TEXT) RETURNS TEXT
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT encode(sha256(convert_to(
        E'export-pipeline/audit/1\n'
        || export_pipeline.audit_field(entry.log_id::text)
        || export_pipeline.audit_field(entry.request_id)
        || export_pipeline.audit_field(entry.user_id)
        || export_pipeline.audit_field(entry.action)
        || export_pipeline.audit_field(round(extract(epoch FROM entry.timestamp) * 1000000)::bigint::text)
        || export_pipeline.audit_field(entry.ip_address)
        || export_pipeline.audit_field(entry.user_agent)
        || export_pipeline.audit_field(entry.actor)
        || export_pipeline.audit_field(entry.detail)
        || export_pipeline.audit_field(previous_hash), 'UTF8')), 'hex')
$$;

-- Append rows; the caller holds the lock.
CREATE FUNCTION export_pipeline.append_to_audit_chain(log_ids BIGINT[]) RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    head  export_pipeline.export_audit_chain;
    entry export_pipeline.export_audit_logs;
BEGIN
    SELECT * INTO head FROM export_pipeline.export_audit_chain ORDER BY position DESC LIMIT 1;
    FOR entry IN SELECT * FROM export_pipeline.export_audit_logs WHERE log_id = ANY (log_ids) ORDER BY log_id
    LOOP
        head.position := coalesce(head.position, 0) + 1;
        head.log_id := entry.log_id;
        head.previous_hash := coalesce(head.hash, repeat('0', 64));
        head.hash := export_pipeline.audit_hash(entry, head.previous_hash);
        INSERT INTO export_pipeline.export_audit_chain VALUES (head.*);
    END LOOP;
END $$;

-- Take the lock, or say after a while that somebody else keeps it: the trail never holds up the work that it records.
CREATE FUNCTION export_pipeline.lock_audit_chain() RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    -- Nearly always free; only waiting needs a subtransaction.
    PERFORM FROM export_pipeline.export_audit_chain_lock FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        RETURN true;
    END IF;
    BEGIN
        PERFORM FROM export_pipeline.export_audit_chain_lock FOR UPDATE;
        RETURN FOUND;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        RETURN false;
    END;
END $$;

-- The head must be read as it is now: a transaction with one snapshot for all its statements cannot do that.
CREATE FUNCTION export_pipeline.may_read_audit_head() RETURNS BOOLEAN LANGUAGE sql STABLE AS $$
    SELECT current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')
$$;

-- The owner's rights, because who may insert a row may not write the chain. The wait is shorter than deadlock_timeout.
CREATE FUNCTION export_pipeline.chain_audit_log() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    late BIGINT[];
BEGIN
    IF export_pipeline.may_read_audit_head() AND export_pipeline.lock_audit_chain() THEN
        WITH taken AS (DELETE FROM export_pipeline.export_audit_unchained RETURNING log_id)
        SELECT array_agg(log_id) INTO late FROM taken;
        PERFORM export_pipeline.append_to_audit_chain(array_append(late, NEW.log_id));
    ELSE
        INSERT INTO export_pipeline.export_audit_unchained VALUES (NEW.log_id);
    END IF;
    RETURN NULL;
END $$;

-- Chain what waits. Returns how many rows wait still, because somebody keeps the lock.
CREATE FUNCTION export_pipeline.chain_late_audit_logs() RETURNS BIGINT LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    late BIGINT[];
BEGIN
    IF EXISTS (SELECT FROM export_pipeline.export_audit_unchained)
       AND export_pipeline.may_read_audit_head() AND export_pipeline.lock_audit_chain()
    THEN
        WITH taken AS (DELETE FROM export_pipeline.export_audit_unchained RETURNING log_id)
        SELECT array_agg(log_id) INTO late FROM taken;
        PERFORM export_pipeline.append_to_audit_chain(late);
    END IF;
    RETURN (SELECT count(*) FROM export_pipeline.export_audit_unchained);
END $$;
REVOKE EXECUTE ON FUNCTION export_pipeline.chain_late_audit_logs() FROM PUBLIC;

-- Rows from before this migration.
SELECT export_pipeline.append_to_audit_chain(ARRAY(SELECT log_id FROM export_pipeline.export_audit_logs));

CREATE CONSTRAINT TRIGGER chain_audit_log AFTER INSERT ON export_pipeline.export_audit_logs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION export_pipeline.chain_audit_log();

-- For everybody, the owner too, who must disable the trigger first and so cannot do it by mistake.
CREATE FUNCTION export_pipeline.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The audit trail can only be added to.'
        USING ERRCODE = 'insufficient_privilege', HINT = 'docs/audit.md says what its owner can do on purpose.';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON export_pipeline.export_audit_logs
    FOR EACH STATEMENT EXECUTE FUNCTION export_pipeline.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON export_pipeline.export_audit_chain
    FOR EACH STATEMENT EXECUTE FUNCTION export_pipeline.refuse_change();
-- Also where session_replication_role would leave triggers out.
ALTER TABLE export_pipeline.export_audit_logs ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE export_pipeline.export_audit_chain ENABLE ALWAYS TRIGGER append_only;

-- Who may insert a request need not be able to write the trail.
ALTER FUNCTION export_pipeline.log_new_request() SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
