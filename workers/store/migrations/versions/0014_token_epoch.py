"""The epoch of the tokens: which Redis server gives them out. Expands only: a table of its own."""

from alembic import op

revision = "0014"
down_revision = "0013"

TABLE = """
CREATE TABLE token_epoch (
    one BOOLEAN DEFAULT true NOT NULL,
    number BIGINT DEFAULT 0 NOT NULL,
    server TEXT DEFAULT '' NOT NULL,
    since TIMESTAMPTZ DEFAULT now() NOT NULL,
    given BIGINT DEFAULT 0 NOT NULL,
    rival TEXT,
    CONSTRAINT pk_token_epoch PRIMARY KEY (one),
    CONSTRAINT ck_token_epoch_one CHECK (one)
);
INSERT INTO token_epoch DEFAULT VALUES;
"""


def upgrade() -> None:
    op.execute(TABLE)


def downgrade() -> None:
    op.execute("DROP TABLE token_epoch")
