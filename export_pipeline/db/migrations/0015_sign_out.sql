-- What ends sessions and tokens of ours before their time: one of them, or everything that lets a person in.

-- A row goes when nothing that it ends could count any more.
CREATE TABLE export_pipeline.export_revoked_tokens (
    -- The token's own id (jti), which opens nothing.
    token_id   TEXT         PRIMARY KEY,
    expires_at TIMESTAMPTZ  NOT NULL
);
CREATE INDEX idx_revoked_tokens_expiry ON export_pipeline.export_revoked_tokens (expires_at);

-- Each session and token names the last of these that it came after: of a person whose newest is a later one, it is over.
-- Numbers and not times: machines disagree about times.
CREATE TABLE export_pipeline.export_sign_outs (
    sign_out_id   BIGINT       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id       VARCHAR(255) NOT NULL,
    signed_out_at TIMESTAMPTZ  NOT NULL DEFAULT now(),
    expires_at    TIMESTAMPTZ  NOT NULL
);
CREATE INDEX idx_sign_outs_user ON export_pipeline.export_sign_outs (user_id, sign_out_id);
