"""Dead letters may have the reason `recipient_refused`. Expands only."""

from alembic import op

revision = "0011"
down_revision = "0010"

KNOWN = "'rejected', 'retries_exhausted', 'outcome_unknown'"


def upgrade() -> None:
    _allow(f"{KNOWN}, 'recipient_refused'")


def downgrade() -> None:
    op.execute("UPDATE dead_letters SET reason = 'rejected' WHERE reason = 'recipient_refused'")
    _allow(KNOWN)


def _allow(reasons: str) -> None:
    op.execute(f"""
        ALTER TABLE dead_letters DROP CONSTRAINT ck_dead_letters_reason,
            ADD CONSTRAINT ck_dead_letters_reason CHECK (reason IN ({reasons}))
    """)
