"""Attempts may end as `unavailable` and `in_progress`. Expands only.

Rows that are there already satisfy the narrower check, so the wider one is not checked against them here, which would
keep everybody out of the table meanwhile; the next revision does that under a lock that lets everybody in.
"""

from alembic import op

revision = "0009"
down_revision = "0008"

KNOWN = "'accepted', 'throttled', 'rejected', 'failed', 'unknown'"


def upgrade() -> None:
    _allow(f"{KNOWN}, 'unavailable', 'in_progress'")


def downgrade() -> None:
    op.execute("UPDATE attempts SET outcome = 'failed' WHERE outcome IN ('unavailable', 'in_progress')")
    _allow(KNOWN)


def _allow(outcomes: str) -> None:
    op.execute(f"""
        ALTER TABLE attempts DROP CONSTRAINT ck_attempts_outcome,
            ADD CONSTRAINT ck_attempts_outcome CHECK (outcome IS NULL OR outcome IN ({outcomes})) NOT VALID
    """)
