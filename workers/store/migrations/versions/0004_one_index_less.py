"""No index of open attempts by deadline. Whoever looks for those reads all that are open, for which there is
`uq_attempts_open`, in this version as in those before it; and every attempt had an entry made and left behind in both.
A sixth of what PostgreSQL spent on a message was this.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("DROP INDEX ix_attempts_open")


def downgrade() -> None:
    op.execute("CREATE INDEX ix_attempts_open ON attempts (deadline_at) WHERE outcome IS NULL")
