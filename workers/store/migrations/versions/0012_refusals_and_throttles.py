"""Of a message: how many refusals were answered, and how often it was throttled in a row. Expands only; a default that
is a constant is not written into the rows."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE messages ADD COLUMN refusals INTEGER DEFAULT 0 NOT NULL,
            ADD COLUMN throttles INTEGER DEFAULT 0 NOT NULL, ADD COLUMN throttled_at TIMESTAMPTZ
    """)


def downgrade() -> None:
    op.execute("ALTER TABLE messages DROP COLUMN refusals, DROP COLUMN throttles, DROP COLUMN throttled_at")
