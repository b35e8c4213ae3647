"""The first schema: accounts, messages, attempts, dead letters, idempotency keys, tallies."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE accounts (
    id TEXT NOT NULL,
    channel TEXT DEFAULT 'onlyfans' NOT NULL,
    display_name TEXT,
    limits TEXT,
    api_key TEXT,
    paused_at TIMESTAMPTZ,
    paused_until TIMESTAMPTZ,
    pause_reason TEXT,
    cooldown_until TIMESTAMPTZ,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_accounts PRIMARY KEY (id),
    CONSTRAINT ck_accounts_id_plain CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}$')
);

CREATE TABLE messages (
    id TEXT COLLATE "C" NOT NULL,
    seq BIGINT GENERATED ALWAYS AS IDENTITY,
    account_id TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    state TEXT NOT NULL,
    content TEXT NOT NULL,
    media_ids TEXT[] DEFAULT '{}' NOT NULL,
    metadata JSONB,
    batch_id TEXT,
    queued_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    send_at TIMESTAMPTZ,
    expires_at TIMESTAMPTZ,
    estimated_at TIMESTAMPTZ,
    attempts INTEGER DEFAULT 0 NOT NULL,
    tries INTEGER DEFAULT 0 NOT NULL,
    redriven BOOLEAN DEFAULT false NOT NULL,
    lookups INTEGER DEFAULT 0 NOT NULL,
    upstream_id TEXT,
    sent_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ,
    CONSTRAINT pk_messages PRIMARY KEY (id),
    CONSTRAINT ck_messages_state CHECK (state IN ('scheduled', 'held', 'queued', 'sending', 'verifying',
        'sent', 'failed', 'cancelled', 'expired')),
    CONSTRAINT ck_messages_priority CHECK (priority BETWEEN 1 AND 10),
    CONSTRAINT ck_messages_sent_has_time CHECK ((state = 'sent') = (sent_at IS NOT NULL)),
    CONSTRAINT ck_messages_over_has_end CHECK ((state IN ('sent', 'failed', 'cancelled', 'expired')) =
        (ended_at IS NOT NULL)),
    CONSTRAINT fk_messages_account_id FOREIGN KEY(account_id) REFERENCES accounts (id)
) WITH (fillfactor = 70);
CREATE INDEX ix_messages_account ON messages (account_id, id DESC);
CREATE INDEX ix_messages_batch ON messages (batch_id) WHERE batch_id IS NOT NULL;
CREATE INDEX ix_messages_claim ON messages (account_id, priority DESC, redriven, due_at, seq) WHERE state =
    'queued';
CREATE INDEX ix_messages_expires ON messages (expires_at) WHERE expires_at IS NOT NULL AND state IN
    ('scheduled', 'held', 'queued');
CREATE INDEX ix_messages_held ON messages (account_id, recipient_id, priority, due_at, seq) WHERE
    state = 'held';
CREATE INDEX ix_messages_verifying ON messages (due_at) WHERE state = 'verifying';
CREATE INDEX ix_messages_recipient ON messages (recipient_id, id DESC);
CREATE INDEX ix_messages_scheduled ON messages (account_id, due_at) WHERE state = 'scheduled';
CREATE UNIQUE INDEX uq_messages_head ON messages (account_id, recipient_id, priority) WHERE state IN
    ('queued', 'sending', 'verifying');

CREATE TABLE attempts (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    message_id TEXT COLLATE "C" NOT NULL,
    account_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    token TEXT NOT NULL,
    worker INTEGER NOT NULL,
    started_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    deadline_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    outcome TEXT,
    counted BOOLEAN DEFAULT true NOT NULL,
    spent BOOLEAN DEFAULT true NOT NULL,
    deferral TEXT,
    http_status INTEGER,
    latency_ms INTEGER,
    error TEXT,
    CONSTRAINT pk_attempts PRIMARY KEY (id),
    CONSTRAINT ck_attempts_outcome CHECK (outcome IS NULL OR outcome IN ('accepted', 'throttled',
        'rejected', 'failed', 'unknown')),
    CONSTRAINT ck_attempts_ended_has_outcome CHECK ((outcome IS NULL) = (ended_at IS NULL)),
    CONSTRAINT fk_attempts_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE
);
CREATE INDEX ix_attempts_message ON attempts (message_id, id);
CREATE INDEX ix_attempts_open ON attempts (deadline_at) WHERE outcome IS NULL;
CREATE INDEX ix_attempts_started ON attempts USING brin (started_at);
CREATE UNIQUE INDEX uq_attempts_number ON attempts (message_id, number) WHERE counted;
CREATE UNIQUE INDEX uq_attempts_open ON attempts (message_id) WHERE outcome IS NULL;

CREATE TABLE dead_letters (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    message_id TEXT COLLATE "C" NOT NULL,
    account_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    error TEXT,
    http_status INTEGER,
    failed_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    closed_at TIMESTAMPTZ,
    closed_as TEXT,
    closed_by TEXT,
    CONSTRAINT pk_dead_letters PRIMARY KEY (id),
    CONSTRAINT ck_dead_letters_reason CHECK (reason IN ('rejected', 'retries_exhausted',
        'outcome_unknown')),
    CONSTRAINT ck_dead_letters_closed_as CHECK (closed_as IS NULL OR closed_as IN ('retried', 'sent')),
    CONSTRAINT ck_dead_letters_closed CHECK ((closed_at IS NULL) = (closed_as IS NULL)),
    CONSTRAINT fk_dead_letters_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE
        CASCADE
);
CREATE INDEX ix_dead_letters_account ON dead_letters (account_id, id DESC) WHERE closed_at IS NULL;
CREATE INDEX ix_dead_letters_message ON dead_letters (message_id, id);
CREATE UNIQUE INDEX uq_dead_letters_open ON dead_letters (message_id) WHERE closed_at IS NULL;

CREATE TABLE idempotency_keys (
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    message_id TEXT COLLATE "C" NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (subject, key),
    CONSTRAINT fk_idempotency_keys_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE
        CASCADE
);
CREATE INDEX ix_idempotency_keys_message_id ON idempotency_keys (message_id);

CREATE TABLE tallies (
    account_id TEXT NOT NULL,
    state TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    slot SMALLINT NOT NULL,
    n BIGINT NOT NULL,
    CONSTRAINT pk_tallies PRIMARY KEY (account_id, state, priority, slot),
    CONSTRAINT ck_tallies_state CHECK (state IN ('scheduled', 'held', 'queued', 'sending', 'verifying',
        'failed'))
) WITH (fillfactor = 50);
"""

# Counting in the database, in the statement that moves the rows, is the one way that no code path can forget. The
# rows are sorted before they are written, so that two statements touch them in the same order. Two transactions of
# several statements do not, and would deadlock over a slot they shared: hence a slot for every pid, near enough
# (it is a SMALLINT). Folding keeps the rows few.
TALLY = """
CREATE FUNCTION tally_messages() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO tallies AS t (account_id, state, priority, slot, n)
        SELECT account_id, state, priority, 1 + pg_backend_pid() % 30000, count(*)
        FROM now_rows
        WHERE state IN ('scheduled', 'held', 'queued', 'sending', 'verifying', 'failed')
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO tallies AS t (account_id, state, priority, slot, n)
        SELECT account_id, state, priority, 1 + pg_backend_pid() % 30000, sum(change)
        FROM (SELECT account_id, state, priority, 1 AS change FROM now_rows
              UNION ALL
              SELECT account_id, state, priority, -1 FROM old_rows) AS changes
        WHERE state IN ('scheduled', 'held', 'queued', 'sending', 'verifying', 'failed')
        GROUP BY 1, 2, 3 HAVING sum(change) <> 0 ORDER BY 1, 2, 3
        ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n;
    ELSE
        INSERT INTO tallies AS t (account_id, state, priority, slot, n)
        SELECT account_id, state, priority, 1 + pg_backend_pid() % 30000, -count(*)
        FROM old_rows
        WHERE state IN ('scheduled', 'held', 'queued', 'sending', 'verifying', 'failed')
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER tally_insert AFTER INSERT ON messages
    REFERENCING NEW TABLE AS now_rows FOR EACH STATEMENT EXECUTE FUNCTION tally_messages();
CREATE TRIGGER tally_update AFTER UPDATE ON messages
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS now_rows FOR EACH STATEMENT EXECUTE FUNCTION tally_messages();
CREATE TRIGGER tally_delete AFTER DELETE ON messages
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION tally_messages();
"""

# A queue's tables are mostly dead rows soon; the default thresholds would let them grow to a fifth first.
VACUUM = """
ALTER TABLE messages SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE attempts SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE tallies SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
"""


def upgrade() -> None:
    for script in (TABLES, TALLY, VACUUM):
        op.execute(script)
    op.execute("INSERT INTO accounts (id, display_name) VALUES ('default', 'Default account')")


def downgrade() -> None:
    op.execute("DROP TABLE tallies, idempotency_keys, dead_letters, attempts, messages, accounts")
    op.execute("DROP FUNCTION tally_messages")
