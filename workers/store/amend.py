"""Changing a message that still waits. A change of its priority or its sendAt moves it to another place."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Jsonb

from workers.domain.actor import Action, Actor
from workers.domain.message import Line
from workers.store import audit
from workers.store.endings import DOUBTFUL
from workers.store.lines import elect_heads
from workers.store.plans import unindexed
from workers.store.session import Connection, Database, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Amended:
    """All that can be changed of a message, as it is to be. changed: the names of what differs, for the audit."""

    content: str
    priority: int
    send_at: datetime | None
    expires_at: datetime | None
    changed: tuple[str, ...]


_WAITING = f"""
SELECT id, account_id, recipient_id, content, media_ids, priority, send_at, expires_at,
    m.attempts > 0 AND (SELECT true FROM attempts a WHERE a.message_id = m.id AND a.counted AND a.outcome = 'unknown'
                        LIMIT 1) IS TRUE AS may_have_arrived
FROM messages m
WHERE m.id = %(message_id)s AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued') AND NOT {DOUBTFUL}
FOR UPDATE
"""

# A message that moves is no head any more, whatever it was: `elect_heads` makes it one if its new line has none. Its
# age stays: it joins its new line where it would stand had it been accepted with this priority. What was estimated for
# its old place is forgotten, so that it is not measured against it.
_AMEND = f"""
WITH amended AS (
    UPDATE messages m SET content = %(content)s, expires_at = %(expires_at)s, priority = %(priority)s,
        send_at = %(send_at)s,
        -- Other words under a key that was used are refused upstream, or answered for the old ones.
        refusals = m.refusals + (m.attempts > 0 AND m.content <> %(content)s)::int,
        state = CASE WHEN NOT %(moves)s::boolean THEN m.state
                     WHEN %(send_at)s::timestamptz > now() THEN 'scheduled'
                     ELSE 'held' END,
        due_at = CASE WHEN NOT %(moves)s::boolean THEN m.due_at
                      WHEN %(send_at)s::timestamptz > now() THEN %(send_at)s::timestamptz
                      WHEN m.state = 'scheduled' THEN now()
                      ELSE m.due_at END,
        estimated_at = CASE WHEN NOT %(moves)s::boolean THEN m.estimated_at END
    WHERE m.id = %(message_id)s AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued')
    RETURNING m.id, m.account_id
), noted AS ({audit.entry(Action.AMEND, rows="amended", message_id="id", details="%(details)s::jsonb")})
SELECT id FROM amended
"""


def amend(db: Database, message_id: str, change: Callable[[Row], Amended], by: Actor) -> Amended | None:
    """Change a message that waits and has certainly not arrived. Returns what it has become; None if it is not such a
    one.

    change: decides, from the message as it is, what it shall be; nothing is changed if it raises. `may_have_arrived`
    tells it of an attempt without an answer from before an admin queued the message again.
    """

    def work(c: Connection) -> Amended | None:
        row = c.one(_WAITING, {"message_id": message_id})
        if row is None:
            return None
        new = change(row)
        if new.changed:
            c.all(_AMEND, _params(row, new, by))
            lines = [
                Line(row["account_id"], row["recipient_id"], priority) for priority in (row["priority"], new.priority)
            ]
            elect_heads(c, lines)
        return new

    return db.transaction(work)


def _params(row: Row, new: Amended, by: Actor) -> Row:
    return {
        "message_id": row["id"],
        "content": new.content,
        "priority": new.priority,
        "send_at": new.send_at,
        "expires_at": new.expires_at,
        "moves": (new.priority, new.send_at) != (row["priority"], row["send_at"]),
        "details": Jsonb({"changed": new.changed}),
        **audit.by_params(by),
    }
