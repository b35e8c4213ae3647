"""Tallies tell redriven messages from fresh ones, which go before them: redriven ones count under a negative priority.

Expands only. The trigger counts for old and new versions alike. The old version still counts a state right, since it
adds both signs up, and its folding keeps the signs apart; a new column in the primary key would break the ON CONFLICT
of that folding. Until the old version is gone, the positions it tells leave redriven messages out.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

# Whoever is in the midst of changing messages has counted them the old way, and the count must move as a whole: so
# nobody writes messages meanwhile. Writers take the two tables in this order too.
NOBODY_WRITES = "LOCK TABLE messages, tallies IN SHARE ROW EXCLUSIVE MODE"

APART, TOGETHER = "CASE WHEN redriven THEN -priority ELSE priority END", "priority"


def trigger(priority: str) -> str:
    """The function that counts, by state and this priority. It is `0001`'s otherwise."""
    counted = "state IN ('scheduled', 'held', 'queued', 'sending', 'verifying', 'failed')"
    return f"""
CREATE OR REPLACE FUNCTION tally_messages() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO tallies AS t (account_id, state, priority, slot, n)
        SELECT account_id, state, {priority}, 1 + pg_backend_pid() % 30000, count(*)
        FROM now_rows
        WHERE {counted}
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO tallies AS t (account_id, state, priority, slot, n)
        SELECT account_id, state, priority, 1 + pg_backend_pid() % 30000, sum(change)
        FROM (SELECT account_id, state, {priority} AS priority, 1 AS change FROM now_rows
              UNION ALL
              SELECT account_id, state, {priority}, -1 FROM old_rows) AS changes
        WHERE {counted}
        GROUP BY 1, 2, 3 HAVING sum(change) <> 0 ORDER BY 1, 2, 3
        ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n;
    ELSE
        INSERT INTO tallies AS t (account_id, state, priority, slot, n)
        SELECT account_id, state, {priority}, 1 + pg_backend_pid() % 30000, -count(*)
        FROM old_rows
        WHERE {counted}
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n;
    END IF;
    RETURN NULL;
END $$
"""


# Each part by an index of its own, not by a scan of all that was ever sent; a failed one by its open dead letter.
SET_APART = """
WITH redriven AS (
    SELECT account_id, state, priority, count(*) AS n FROM (
        SELECT account_id, state, priority, redriven FROM messages WHERE state IN ('queued', 'sending', 'verifying')
        UNION ALL SELECT account_id, state, priority, redriven FROM messages WHERE state = 'held'
        UNION ALL SELECT account_id, state, priority, redriven FROM messages WHERE state = 'scheduled'
        UNION ALL SELECT m.account_id, m.state, m.priority, m.redriven
        FROM dead_letters d JOIN messages m ON m.id = d.message_id WHERE d.closed_at IS NULL AND m.state = 'failed'
    ) counted
    WHERE redriven GROUP BY 1, 2, 3
)
INSERT INTO tallies AS t (account_id, state, priority, slot, n)
SELECT account_id, state, priority, 0, -n FROM redriven
UNION ALL SELECT account_id, state, -priority, 0, n FROM redriven
ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n
"""

PUT_TOGETHER = """
WITH apart AS (DELETE FROM tallies WHERE priority < 0 RETURNING *)
INSERT INTO tallies AS t (account_id, state, priority, slot, n)
SELECT account_id, state, -priority, slot, n FROM apart
ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n
"""


def upgrade() -> None:
    for script in (NOBODY_WRITES, trigger(APART), SET_APART):
        op.execute(script)


def downgrade() -> None:
    for script in (NOBODY_WRITES, trigger(TOGETHER), PUT_TOGETHER):
        op.execute(script)
