-- What signing in and the additional verification leave in our tables. No code is kept in the clear.

-- Codes of sign-in links; a row goes when its code is used, or later.
CREATE TABLE export_pipeline.export_sign_in_codes (
    code_hash  BYTEA        PRIMARY KEY,
    user_id    VARCHAR(255) NOT NULL,
    roles      TEXT[]       NOT NULL,
    expires_at TIMESTAMPTZ  NOT NULL
);

-- Codes that were sent by e-mail. Of one person only the newest counts; older rows say how often one was asked for.
CREATE TABLE export_pipeline.export_verification_codes (
    code_id    BIGINT       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id    VARCHAR(255) NOT NULL,
    -- Keyed, with a key that is not in this database: six digits would be guessed in no time.
    code_hash  BYTEA        NOT NULL,
    created_at TIMESTAMPTZ  NOT NULL DEFAULT now(),
    expires_at TIMESTAMPTZ  NOT NULL,
    tries_left INTEGER      NOT NULL,
    used_at    TIMESTAMPTZ
);
CREATE INDEX idx_verification_user ON export_pipeline.export_verification_codes (user_id, code_id);
