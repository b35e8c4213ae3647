"""Dead letters can be closed as `dismissed`, and are found latest first over all accounts. Expands only."""

from alembic import op

revision = "0008"
down_revision = "0007"

KNOWN = "'retried', 'sent'"


def upgrade() -> None:
    _allow(f"{KNOWN}, 'dismissed'")
    op.execute("CREATE INDEX ix_dead_letters_open ON dead_letters (id DESC) WHERE closed_at IS NULL")


def downgrade() -> None:
    op.execute("DROP INDEX ix_dead_letters_open")
    op.execute("UPDATE dead_letters SET closed_as = 'sent' WHERE closed_as = 'dismissed'")
    _allow(KNOWN)


def _allow(ways: str) -> None:
    op.execute(f"""
        ALTER TABLE dead_letters DROP CONSTRAINT ck_dead_letters_closed_as,
            ADD CONSTRAINT ck_dead_letters_closed_as CHECK (closed_as IS NULL OR closed_as IN ({ways}))
    """)
