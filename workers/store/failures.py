"""Dead letters and what an admin does with them. Closed ones stay, as does every attempt: history is kept."""

from collections.abc import Sequence
from datetime import datetime

from workers.domain.actor import Action, Actor
from workers.domain.message import Line
from workers.store import audit
from workers.store.lines import elect_heads
from workers.store.plans import unindexed
from workers.store.session import Connection, Database

_RETRIED = audit.entry(
    Action.RETRY, rows="queued", message_id="id", details="jsonb_build_object('redriven', %(redriven)s::boolean)"
)

# The message is locked first, here and in `_DISMISS`: one that has expired keeps its letter open, and of two admins who
# decide at once, one finds it decided.
_RETRY = f"""
WITH wanted AS (
    SELECT id FROM messages m
    WHERE m.id = ANY(%(message_ids)s::text[]) AND {unindexed("m.state")} = 'failed'
      AND (%(expires_at)s::timestamptz IS NOT NULL OR m.expires_at IS NULL OR m.expires_at > statement_timestamp())
    ORDER BY id FOR UPDATE
), closed AS (
    UPDATE dead_letters d SET closed_at = clock_timestamp(), closed_as = 'retried', closed_by = %(by_subject)s
    FROM wanted
    WHERE d.message_id = ANY(%(message_ids)s::text[]) AND d.message_id = wanted.id AND d.closed_at IS NULL
    RETURNING d.message_id
), queued AS (
    UPDATE messages m SET state = 'held', due_at = statement_timestamp(), queued_at = statement_timestamp(),
        tries = 0, throttles = 0, redriven = %(redriven)s, ended_at = NULL, estimated_at = NULL,
        expires_at = coalesce(%(expires_at)s::timestamptz, m.expires_at),
        request_id = %(by_request_id)s, traceparent = %(by_traceparent)s
    FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'failed'
    RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.queued_at
), noted AS ({_RETRIED})
SELECT * FROM queued
"""


def retry(
    db: Database,
    message_ids: Sequence[str],
    by: Actor,
    *,
    redriven: bool = False,
    expires_at: datetime | None = None,
) -> list[datetime]:
    """Queue dead letters again, at the end of their lines, with a fresh budget of attempts. Returns when, for each.

    One that is not failed (any more) is left alone, so that doing it twice queues nothing twice. So is one whose
    expiresAt has passed, unless a new `expires_at` is given: sent now, it would be sent too late.
    redriven: behind fresh traffic of the same priority.
    """
    params = {"message_ids": list(message_ids), "redriven": redriven, "expires_at": expires_at, **audit.by_params(by)}

    def work(c: Connection) -> list[datetime]:
        rows = c.all(_RETRY, params)
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
    FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'failed'
    RETURNING m.id, m.account_id
), noted AS ({audit.entry(Action.RESOLVE, rows="resolved", message_id="id")})
SELECT id FROM resolved
"""


def resolve_as_sent(db: Database, message_id: str, by: Actor) -> bool:
    """Close an `outcome_unknown` dead letter: somebody has seen that it did arrive. False if it is not such a one."""
    params = {"message_id": message_id, **audit.by_params(by)}
    return bool(db.retrying(lambda: db.all(_RESOLVE_AS_SENT, params)))


_DISMISSED = audit.entry(
    Action.DISMISS, rows="dismissed", message_id="id", details="jsonb_build_object('reason', %(reason)s::text)"
)

# `cancelled`, not `failed`: a failure is open until somebody has decided, and `dlqCount` counts the open ones. Of the
# four ends, this is the one for a message that a person did not want sent any more.
_DISMISS = f"""
WITH wanted AS (
    SELECT id FROM messages m WHERE m.id = %(message_id)s AND {unindexed("m.state")} = 'failed' FOR UPDATE
), closed AS (
    UPDATE dead_letters d SET closed_at = clock_timestamp(), closed_as = 'dismissed', closed_by = %(by_subject)s
    FROM wanted WHERE d.message_id = %(message_id)s AND d.message_id = wanted.id AND d.closed_at IS NULL
    RETURNING d.message_id
), dismissed AS (
    UPDATE messages m SET state = 'cancelled', ended_at = clock_timestamp()
    FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'failed'
    RETURNING m.id, m.account_id
), noted AS ({_DISMISSED})
SELECT id FROM dismissed
"""


def dismiss(db: Database, message_id: str, reason: str, by: Actor) -> bool:
    """Close a dead letter of any kind unsent; the message ends as `cancelled`. False if there is no open one."""
    params = {"message_id": message_id, "reason": reason, **audit.by_params(by)}
    return bool(db.retrying(lambda: db.all(_DISMISS, params)))
