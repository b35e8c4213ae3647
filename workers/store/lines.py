"""Lines: the messages of one account, recipient and priority. One is the head; the others are held until it has ended.

A transaction that takes a head out, or puts a held message in, elects the next head before its COMMIT (`elect_heads`).
How this and a new message of the same line avoid each other is told in `accept`.
"""

from collections.abc import Iterable, Sequence

from workers.domain.message import Line
from workers.store.plans import unindexed
from workers.store.session import Connection, Database, Row

_ELECT_HEADS = f"""
WITH line AS (
    SELECT DISTINCT * FROM unnest(%(accounts)s::text[], %(recipients)s::text[], %(priorities)s::smallint[])
        AS line (account_id, recipient_id, priority)
), head AS MATERIALIZED (
    SELECT line.* FROM line CROSS JOIN LATERAL (
        SELECT FROM messages m
        WHERE m.account_id = line.account_id AND m.recipient_id = line.recipient_id AND m.priority = line.priority
          AND m.state IN ('queued', 'sending', 'verifying')
        FOR SHARE
    ) head
), first AS (
    SELECT held.id
    FROM line CROSS JOIN LATERAL (
        SELECT id FROM messages m
        WHERE m.account_id = line.account_id AND m.recipient_id = line.recipient_id AND m.priority = line.priority
          AND m.state = 'held'
        ORDER BY due_at, seq LIMIT 1 FOR UPDATE SKIP LOCKED
    ) held
    WHERE NOT EXISTS (SELECT FROM head WHERE (head.account_id, head.recipient_id, head.priority)
                                           = (line.account_id, line.recipient_id, line.priority))
)
UPDATE messages m SET state = 'queued' FROM first WHERE m.id = first.id AND {unindexed("m.state")} = 'held'
RETURNING m.id
"""


def elect_heads(c: Connection, lines: Iterable[Line]) -> int:
    """In each of these lines that has no head, the first of the held becomes it. Belongs into the transaction that
    took the old head out or put a new member in."""
    lines = list(lines)
    if not lines:
        return 0
    params = {
        "accounts": [line.account_id for line in lines],
        "recipients": [line.recipient_id for line in lines],
        "priorities": [line.priority for line in lines],
    }
    return len(c.all(_ELECT_HEADS, params))


def line_rests(message: str) -> str:
    """SQL: whether the wait of the waiting message that a query calls so began with a 429, and not with a failure that
    is retried. The latest request tells: a deferral is not counted."""
    return (
        f"({message}.throttles > 0 AND (SELECT NOT latest.counted FROM attempts latest "
        f"WHERE latest.message_id = {message}.id ORDER BY latest.id DESC LIMIT 1))"
    )


_END_LINE_RESTS = f"""
UPDATE messages m SET due_at = throttled_at
WHERE account_id = ANY(%(account_ids)s::text[]) AND state = 'queued' AND due_at > now() AND {line_rests("m")}
"""


def end_line_rests(c: Connection, account_ids: Sequence[str]) -> None:
    """Let lines of these accounts that rest because they were throttled go on at once."""
    c.all(_END_LINE_RESTS, {"account_ids": list(account_ids)})


_HEADLESS = """
SELECT * FROM (SELECT DISTINCT account_id, recipient_id, priority FROM messages WHERE state = 'held') h
WHERE (SELECT id FROM messages m WHERE m.account_id = h.account_id AND m.recipient_id = h.recipient_id
       AND m.priority = h.priority AND m.state IN ('queued', 'sending', 'verifying') LIMIT 1) IS NULL
LIMIT 1000
"""


def mend_headless_lines(db: Database) -> int:
    """Lines of held messages without a head should not exist; should they, this gives them one. Returns how many."""

    def work(c: Connection) -> int:
        return elect_heads(c, map(line_of, c.all(_HEADLESS)))

    return db.transaction(work)


def line_of(row: Row) -> Line:
    return Line(row["account_id"], row["recipient_id"], row["priority"])
