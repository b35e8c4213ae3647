"""What waits, and when it may go: an account's scheduled and queued messages, and the accounts that have any."""

from workers.store.lines import elect_heads, line_of
from workers.store.plans import unindexed
from workers.store.session import Connection, Database

_ADMIT_DUE = f"""
WITH due AS (
    SELECT id FROM messages
    WHERE state = 'scheduled' AND account_id = %(account_id)s AND due_at <= now()
    ORDER BY due_at LIMIT 1000 FOR UPDATE SKIP LOCKED
)
UPDATE messages m SET state = 'held' FROM due WHERE m.id = due.id AND {unindexed("m.state")} = 'scheduled'
RETURNING m.account_id, m.recipient_id, m.priority
"""


def admit_due(db: Database, account_id: str) -> int:
    """Let the account's scheduled messages whose time has come join their lines. Returns how many did."""

    def work(c: Connection) -> int:
        rows = c.all(_ADMIT_DUE, {"account_id": account_id})
        elect_heads(c, map(line_of, rows))
        return len(rows)

    admitted = 0
    while batch := db.transaction(work):
        admitted += batch
    return admitted


_COUNT_QUEUED = """
SELECT (SELECT coalesce(sum(n), 0)::int FROM tallies WHERE account_id = %(account_id)s AND state = 'queued') AS queued,
       coalesce((SELECT min(due_at) FROM messages WHERE state = 'scheduled' AND account_id = %(account_id)s) <= now(),
                false) AS admissible
"""


def count_queued(db: Database, account_id: str) -> int:
    """How many of the account's messages stand first in their lines, due or not, once the scheduled ones whose time
    has come have joined theirs."""
    params = {"account_id": account_id}
    found = db.all(_COUNT_QUEUED, params)[0]
    if found["admissible"]:
        admit_due(db, account_id)
        found = db.all(_COUNT_QUEUED, params)[0]
    return int(found["queued"])


_NEXT_DUE = """
SELECT extract(epoch FROM
    greatest(next.due_at, CASE WHEN a.paused_at IS NOT NULL THEN a.paused_until END, a.rest_until) - clock_timestamp()
)::float8 AS due_s
FROM accounts a CROSS JOIN LATERAL (
    SELECT least(
        (SELECT min(first.due_at) FROM generate_series(21, 2, -1) AS step
         CROSS JOIN LATERAL (SELECT due_at FROM messages
                             WHERE account_id = a.id AND priority = step / 2 AND redriven = (mod(step, 2) = 0)
                               AND state = 'queued'
                             ORDER BY due_at LIMIT 1) first),
        (SELECT min(due_at) FROM messages WHERE account_id = a.id AND state = 'scheduled')
    ) AS due_at
) next
WHERE a.id = %(account_id)s AND (a.paused_at IS NULL OR a.paused_until IS NOT NULL) AND next.due_at IS NOT NULL
"""


def next_due_s(db: Database, account_id: str) -> float | None:
    """Seconds until the account's next waiting message may be claimed, tokens aside; None if none ever may as it is
    (nothing waits, or the account is paused without an end)."""
    row = db.one(_NEXT_DUE, {"account_id": account_id})
    return row["due_s"] if row else None


_ACCOUNTS_WAITING = """
SELECT t.account_id
FROM tallies t JOIN accounts a ON a.id = t.account_id AND (a.paused_at IS NULL OR a.paused_until <= now())
WHERE t.state IN ('scheduled', 'queued') GROUP BY t.account_id HAVING sum(t.n) > 0
"""


def accounts_waiting(db: Database) -> list[str]:
    """Accounts that have something to send, now or later, and are not paused."""
    return [row["account_id"] for row in db.all(_ACCOUNTS_WAITING)]
