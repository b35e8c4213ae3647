"""Dead letters and what an admin does with them. Closed ones stay, as does every attempt: history is kept."""

from collections.abc import Sequence
from datetime import datetime

from workers.domain.actor import Action, Actor
from workers.domain.message import Line
from workers.store import audit
from workers.store.messages import elect_heads
from workers.store.session import Connection, Database

_RETRIED = audit.entry(
    Action.RETRY, rows="queued", message_id="id", details="jsonb_build_object('redriven', %(redriven)s::boolean)"
)

_RETRY = f"""
WITH closed AS (
    UPDATE dead_letters SET closed_at = clock_timestamp(), closed_as = 'retried', closed_by = %(by_subject)s
    WHERE message_id = ANY(%(message_ids)s::text[]) AND closed_at IS NULL
    RETURNING message_id
), queued AS (
    UPDATE messages m SET state = 'held', due_at = statement_timestamp(), queued_at = statement_timestamp(),
        tries = 0, redriven = %(redriven)s, ended_at = NULL, estimated_at = NULL,
        expires_at = CASE WHEN m.expires_at > statement_timestamp() THEN m.expires_at END,
        request_id = %(by_request_id)s, traceparent = %(by_traceparent)s
    FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'failed'
    RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.queued_at
), noted AS ({_RETRIED})
SELECT * FROM queued
"""


def retry(db: Database, message_ids: Sequence[str], by: Actor, *, redriven: bool = False) -> list[datetime]:
    """Queue dead letters again, at the end of their lines, with a fresh budget of attempts. Returns when, for each.

    One that is not failed (any more) is left alone, so that doing it twice queues nothing twice.
    redriven: behind fresh traffic of the same priority. An expiresAt that has passed is dropped: whoever retries by
    hand wants it sent.
    """

    def work(c: Connection) -> list[datetime]:
        rows = c.all(_RETRY, {"message_ids": list(message_ids), "redriven": redriven, **audit.by_params(by)})
        elect_heads(c, (Line(row["account_id"], row["recipient_id"], row["priority"]) for row in rows))
        return [row["queued_at"] for row in rows]

    return db.transaction(work)


_RESOLVE_AS_SENT = f"""
WITH closed AS (
    UPDATE dead_letters SET closed_at = clock_timestamp(), closed_as = 'sent', closed_by = %(by_subject)s
    WHERE message_id = %(message_id)s AND closed_at IS NULL AND reason = 'outcome_unknown'
    RETURNING message_id
), resolved AS (
    UPDATE messages m SET state = 'sent', sent_at = clock_timestamp(), ended_at = clock_timestamp()
    FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'failed'
    RETURNING m.id, m.account_id
), noted AS ({audit.entry(Action.RESOLVE, rows="resolved", message_id="id")})
SELECT id FROM resolved
"""


def resolve_as_sent(db: Database, message_id: str, by: Actor) -> bool:
    """Close an `outcome_unknown` dead letter: somebody has seen that it did arrive. False if it is not such a one."""
    return bool(db.all(_RESOLVE_AS_SENT, {"message_id": message_id, **audit.by_params(by)}))
