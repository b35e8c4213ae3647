"""Attempts: the budget that the token came from, where that is not the account's own. Expands only."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("ALTER TABLE attempts ADD COLUMN budget TEXT")


def downgrade() -> None:
    op.execute("ALTER TABLE attempts DROP COLUMN budget")
