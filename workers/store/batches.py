"""Messages that a caller has given one name: counted, and cancelled together.

A batch is no row of its own, only a name that messages carry; another caller may use the same name. So everything here
takes the accounts that the caller may know of (`scope`; None for all).
"""

from collections.abc import Sequence

from workers.domain.actor import Action, Actor
from workers.domain.filters import Scope
from workers.domain.message import Line
from workers.domain.state import State
from workers.store import audit
from workers.store.endings import DOUBTFUL
from workers.store.lines import elect_heads, line_rests
from workers.store.plans import unindexed
from workers.store.session import Connection, Database, Row

_OF_BATCH = """
    m.batch_id = %(batch_id)s AND (%(scope)s::text[] IS NULL OR m.account_id = ANY(%(scope)s::text[]))
"""

_COUNTS = f"SELECT state, count(*)::int AS n FROM messages m WHERE {_OF_BATCH} GROUP BY state"


def counts(db: Database, batch_id: str, scope: Scope) -> dict[State, int]:
    """How many messages of the batch are in each state; empty if there is no such batch."""
    return {State(row["state"]): row["n"] for row in db.all(_COUNTS, _params(batch_id, scope))}


# Whatever is last in line goes last, unless something that is due later still does.
_LAST = f"""
WITH waiting AS MATERIALIZED (
    SELECT id, account_id, priority, redriven, due_at, seq
    FROM messages m WHERE {_OF_BATCH} AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued')
), last AS (
    (SELECT DISTINCT ON (account_id) id FROM waiting
     ORDER BY account_id, priority, redriven DESC, due_at DESC, seq DESC)
    UNION
    (SELECT DISTINCT ON (account_id) id FROM waiting ORDER BY account_id, due_at DESC, priority, seq DESC)
)
SELECT m.*, {line_rests("m")} AS line_rests FROM last CROSS JOIN LATERAL (SELECT * FROM messages WHERE id = last.id) m
"""


def last_to_go(db: Database, batch_id: str, scope: Scope) -> list[Row]:
    """The messages among which, on each account, the last of the batch to go is: at most two of each. Empty if none
    waits."""
    return db.all(_LAST, _params(batch_id, scope))


# The last of each line first: had its head been cancelled alone, the next would take its place and might be sent.
_WAITING = f"""
SELECT array_agg(m.id ORDER BY m.account_id, m.recipient_id, m.priority, m.due_at DESC, m.seq DESC) AS ids
FROM messages m WHERE {_OF_BATCH} AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued')
"""


def waiting(db: Database, batch_id: str, scope: Scope) -> list[str]:
    """The ids of the messages of the batch that wait, line by line, in the order in which to cancel them."""
    row = db.one(_WAITING, _params(batch_id, scope))
    return (row and row["ids"]) or []


_NOTED = audit.entry(Action.CANCEL_BATCH, rows="share", details="details")

_CANCEL_MANY = f"""
WITH wanted AS (
    SELECT id FROM messages m
    WHERE m.id = ANY(%(message_ids)s::text[]) AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued')
      AND NOT {DOUBTFUL}
    ORDER BY id FOR UPDATE
), cancelled AS (
    UPDATE messages m SET state = 'cancelled', ended_at = clock_timestamp()
    FROM wanted WHERE m.id = wanted.id AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued')
    RETURNING m.id, m.account_id, m.recipient_id, m.priority
), share AS (
    SELECT account_id, jsonb_build_object('batchId', %(batch_id)s::text, 'messages', count(*)) AS details
    FROM cancelled GROUP BY account_id
), noted AS ({_NOTED})
SELECT * FROM cancelled
"""


def cancel_many(db: Database, message_ids: Sequence[str], batch_id: str, by: Actor) -> list[str]:
    """Close those of these messages that still wait, and have certainly not arrived. Returns the account of each."""
    params = {"message_ids": list(message_ids), "batch_id": batch_id, **audit.by_params(by)}

    def work(c: Connection) -> list[str]:
        rows = c.all(_CANCEL_MANY, params)
        elect_heads(c, (Line(row["account_id"], row["recipient_id"], row["priority"]) for row in rows))
        return [row["account_id"] for row in rows]

    return db.transaction(work)


def _params(batch_id: str, scope: Scope) -> Row:
    return {"batch_id": batch_id, "scope": None if scope is None else list(scope)}
