"""Who asked for what: the audit, and the request and trace that a message came with.

Expands only. A version that knows nothing of it goes on serving: the new columns may stay empty, the new table is its
own.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

COLUMNS = """
ALTER TABLE messages ADD COLUMN request_id TEXT, ADD COLUMN traceparent TEXT;
"""

AUDIT = """
CREATE TABLE audit (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    subject TEXT NOT NULL,
    role TEXT NOT NULL,
    request_id TEXT,
    action TEXT NOT NULL,
    account_id TEXT NOT NULL,
    message_id TEXT COLLATE "C",
    details JSONB,
    CONSTRAINT pk_audit PRIMARY KEY (id)
);
CREATE INDEX ix_audit_account ON audit (account_id, id DESC);
CREATE INDEX ix_audit_message ON audit (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX ix_audit_at ON audit USING brin (at);
"""

# Not against whoever owns the database, who can drop the trigger: against a slip, in our code or at a prompt. Pruning
# says that it is pruning.
APPEND_ONLY = """
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' AND coalesce(current_setting('paceline.prune_audit', true), '') = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit is append-only' USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER audit_rows_stay BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_stays BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
"""


def upgrade() -> None:
    for script in (COLUMNS, AUDIT, APPEND_ONLY):
        op.execute(script)


def downgrade() -> None:
    op.execute("DROP TABLE audit")
    op.execute("DROP FUNCTION refuse_audit_change")
    op.execute("ALTER TABLE messages DROP COLUMN request_id, DROP COLUMN traceparent")
