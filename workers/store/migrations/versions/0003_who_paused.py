"""Who paused an account: an admin, or the upstream by what it answered. Expands only."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE accounts ADD COLUMN paused_by TEXT"
        " CONSTRAINT ck_accounts_paused_by CHECK (paused_by IN ('admin', 'upstream'))"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE accounts DROP COLUMN paused_by")
