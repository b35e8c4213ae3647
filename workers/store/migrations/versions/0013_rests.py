"""Of an account: its identity may rest while its upstream serves nobody, recipients refused in a row are counted, and
it is known since when it has its key. Expands only: a version that knows nothing of it goes on sending."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE accounts ADD COLUMN rest_kind TEXT, ADD COLUMN rest_error TEXT, ADD COLUMN rest_since TIMESTAMPTZ,
            ADD COLUMN rest_until TIMESTAMPTZ, ADD COLUMN rests INTEGER DEFAULT 0 NOT NULL,
            ADD COLUMN refused TEXT[] DEFAULT '{}' NOT NULL, ADD COLUMN refused_at TIMESTAMPTZ,
            ADD COLUMN key_since TIMESTAMPTZ,
            ADD CONSTRAINT ck_accounts_rest CHECK ((rest_kind IS NULL) = (rest_until IS NULL))
    """)


def downgrade() -> None:
    op.execute("""
        ALTER TABLE accounts DROP COLUMN rest_kind, DROP COLUMN rest_error, DROP COLUMN rest_since,
            DROP COLUMN rest_until, DROP COLUMN rests, DROP COLUMN refused, DROP COLUMN refused_at,
            DROP COLUMN key_since
    """)
