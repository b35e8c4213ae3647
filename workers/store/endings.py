"""A waiting message ends unsent: cancelled, or expired. One that may have arrived already is looked up instead."""

from workers.domain.actor import Action, Actor
from workers.domain.decisions import VERIFY_AFTER_S
from workers.domain.events import Cancelled, Expired
from workers.store import audit
from workers.store.lines import elect_heads, line_of
from workers.store.outcomes import SEEN_BY
from workers.store.plans import unindexed
from workers.store.session import Connection, Database

# A message that waits to be sent again after an unknown outcome may have arrived already: to call it expired or
# cancelled could be a lie.
# Any attempt since it was queued may be the one that did; later ones that failed for certain prove nothing about it.
DOUBTFUL = """
(m.tries > 0 AND (SELECT true FROM attempts a WHERE a.message_id = m.id AND a.counted AND a.outcome = 'unknown'
                  AND a.number > m.attempts - m.tries LIMIT 1) IS TRUE)
"""

_CANCEL = f"""
WITH cancelled AS (
    UPDATE messages m SET state = 'cancelled', ended_at = clock_timestamp()
    WHERE m.id = %(message_id)s AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued') AND NOT {DOUBTFUL}
    RETURNING m.id, m.account_id, m.recipient_id, m.priority
), noted AS ({audit.entry(Action.CANCEL, rows="cancelled", message_id="id")})
SELECT * FROM cancelled
"""


def cancel(db: Database, message_id: str, by: Actor) -> Cancelled | None:
    """Close a message that still waits. None if it does not, or if it may have arrived already."""

    def work(c: Connection) -> Cancelled | None:
        rows = c.all(_CANCEL, {"message_id": message_id, **audit.by_params(by)})
        elect_heads(c, map(line_of, rows))
        return Cancelled(message_id=message_id, account_id=rows[0]["account_id"], by=by.subject) if rows else None

    return db.transaction(work)


_VERIFY_EXPIRED = f"""
UPDATE messages m SET state = 'verifying', lookups = 0, due_at = greatest(clock_timestamp(), {SEEN_BY})
WHERE m.expires_at IS NOT NULL AND m.state IN ('scheduled', 'held', 'queued') AND m.expires_at <= now()
  AND {unindexed("m.state")} = 'queued'  -- as above: by way of expires_at, not of all that is queued
  AND {DOUBTFUL}
RETURNING m.id
"""


def verify_expired(c: Connection) -> int:
    """Have messages that may have arrived looked up once their expiresAt is past, before they are called expired."""
    return len(c.all(_VERIFY_EXPIRED, {"verify_after_s": VERIFY_AFTER_S}))


_EXPIRE = f"""
WITH past AS (SELECT * FROM (
    SELECT id FROM messages m
    WHERE expires_at IS NOT NULL AND state IN ('scheduled', 'held', 'queued') AND expires_at <= now()
      AND NOT {DOUBTFUL}
    ORDER BY expires_at LIMIT %(want)s FOR UPDATE SKIP LOCKED
) wanted LIMIT 1000)
UPDATE messages m SET state = 'expired', ended_at = clock_timestamp()
FROM past WHERE m.id = past.id AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued')
RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.request_id
"""


def expire(db: Database, want: int = 1000) -> list[Expired]:
    """Close waiting messages whose expiresAt is past."""

    def work(c: Connection) -> list[Expired]:
        verify_expired(c)
        rows = c.all(_EXPIRE, {"want": want})
        elect_heads(c, map(line_of, rows))
        return [
            Expired(message_id=row["id"], account_id=row["account_id"], request_id=row["request_id"]) for row in rows
        ]

    return db.transaction(work)
