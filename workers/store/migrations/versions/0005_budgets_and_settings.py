"""Accounts: the budget that each draws on, a fingerprint of its credential, its settings. Expands only.

An account that an older version makes has a budget of its own until a worker of this version has looked at its
credential (`workers.services.budgets`).
"""

from alembic import op

revision = "0005"
down_revision = "0004"

COLUMNS = """
ALTER TABLE accounts
    ADD COLUMN budget TEXT,
    ADD COLUMN credential TEXT,
    ADD COLUMN settings JSONB DEFAULT '{}' NOT NULL;
CREATE INDEX ix_accounts_budget ON accounts (budget) WHERE budget IS NOT NULL;
"""

BUDGETS = """
CREATE TABLE credential_budgets (
    credential TEXT NOT NULL,
    budget TEXT NOT NULL,
    left_at TIMESTAMPTZ,
    CONSTRAINT pk_credential_budgets PRIMARY KEY (credential, budget)
);
"""


def upgrade() -> None:
    for script in (COLUMNS, BUDGETS):
        op.execute(script)


def downgrade() -> None:
    op.execute("DROP TABLE credential_budgets")
    op.execute("ALTER TABLE accounts DROP COLUMN budget, DROP COLUMN credential, DROP COLUMN settings")
