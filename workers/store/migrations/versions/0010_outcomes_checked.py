"""The check of attempts' outcomes holds for rows that were there before it. Lets everybody read and write meanwhile."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("ALTER TABLE attempts VALIDATE CONSTRAINT ck_attempts_outcome")


def downgrade() -> None:
    """A check that holds need not be forgotten."""
