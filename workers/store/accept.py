"""A message comes in: one statement stores it, its idempotency key and its audit entry, and commits.

A race is closed here: *two heads of one line*. To join a line, a statement looks for the line's head under FOR SHARE.
A transaction that takes this head out holds its row, so the new message waits, and then sees that the head is gone. A
transaction that comes for the head afterwards waits for the new message's COMMIT, and then sees it among the held. Two
new messages at once remain: the unique index `uq_messages_head` rejects one, and that one retries (`session.is_race`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.errors import DeadlockDetected, UniqueViolation
from psycopg.types.json import Json, Jsonb

from workers.domain.actor import Action, Actor
from workers.domain.message import NewMessage
from workers.encoding import as_json
from workers.store import audit
from workers.store.plans import unindexed
from workers.store.session import Connection, Database, Row, is_race


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message as it stands in the database after COMMIT. replayed: it was there before, under the same key."""

    message_id: str
    state: str
    queued_at: datetime
    replayed: bool = False
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class AcceptedTogether:
    """Messages as they stand in the database after COMMIT. held: the ids of those behind another to the same recipient.
    first_use: their key was used before, for this message among others; nothing was queued now."""

    queued_at: datetime
    held: frozenset[str] = frozenset()
    first_use: Accepted | None = None


_ACCEPT = f"""
WITH key AS (
    INSERT INTO idempotency_keys (subject, key, fingerprint, message_id)
    SELECT %(by_subject)s, %(key)s::text, %(fingerprint)s, %(id)s WHERE %(key)s::text IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING 1
), head AS (
    SELECT 1 FROM messages
    WHERE account_id = %(account_id)s AND recipient_id = %(recipient_id)s AND priority = %(priority)s::smallint
      AND state IN ('queued', 'sending', 'verifying')
    FOR SHARE
), accepted AS (
    INSERT INTO messages (id, account_id, recipient_id, priority, content, media_ids, metadata, batch_id, send_at,
                          expires_at, estimated_at, due_at, state, request_id, traceparent)
    SELECT %(id)s, %(account_id)s, %(recipient_id)s, %(priority)s::smallint, %(content)s, %(media_ids)s::text[],
           %(metadata)s::jsonb, %(batch_id)s, %(send_at)s, %(expires_at)s, %(estimated_at)s,
           coalesce(greatest(%(send_at)s::timestamptz, now()), now()),
           CASE WHEN %(send_at)s::timestamptz > now() THEN 'scheduled'
                WHEN EXISTS (SELECT FROM head) THEN 'held'
                ELSE 'queued' END,
           %(by_request_id)s, %(by_traceparent)s
    WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM key)
    RETURNING id, account_id, state, queued_at
), noted AS ({audit.entry(Action.SEND, rows="accepted", message_id="id")})
SELECT id, state, queued_at FROM accepted
"""


_FIRST_USE = """
SELECT k.fingerprint, m.id, m.state, m.queued_at
FROM idempotency_keys k JOIN messages m ON m.id = k.message_id
WHERE k.subject = %(by_subject)s AND k.key = %(key)s
"""


def accept(
    db: Database,
    message: NewMessage,
    *,
    by: Actor,
    estimated_at: datetime | None = None,
    key: str | None = None,
    fingerprint: str | None = None,
) -> Accepted:
    """Insert the message and commit. With an idempotency key that came before: what was accepted then."""
    params = {
        "id": message.id,
        "account_id": message.account_id,
        "recipient_id": message.recipient_id,
        "priority": message.priority,
        "content": message.content,
        "media_ids": list(message.media_ids),
        "metadata": None if message.metadata is None else Jsonb(message.metadata),
        "batch_id": message.batch_id,
        "send_at": message.send_at,
        "expires_at": message.expires_at,
        "estimated_at": estimated_at,
        "key": key,
        "fingerprint": fingerprint,
        **audit.by_params(by),
    }
    row = db.retrying(lambda: db.one(_ACCEPT, params))
    if row:
        return Accepted(row["id"], row["state"], row["queued_at"])
    first = _first_use(db, by, key)
    if first is None:  # pruned between the two statements: the key is free again
        return accept(db, message, by=by, estimated_at=estimated_at, key=key, fingerprint=fingerprint)
    return first


def _heads_of(lines: str) -> str:
    """Joins the head `m` of each of these lines that has one: looked up first, so that `m` may be locked in the order
    of ids, and asked for its state again once it is."""
    return f"""CROSS JOIN LATERAL (
        SELECT id FROM messages
        WHERE account_id = {lines}.account_id AND recipient_id = {lines}.recipient_id AND priority = {lines}.priority
          AND state IN ('queued', 'sending', 'verifying')
        LIMIT 1
    ) found JOIN messages m ON m.id = found.id AND {unindexed("m.state")} IN ('queued', 'sending', 'verifying')"""


# nextval() is called row by row as the list is read, so `seq` follows the list. The rows go in line by line all the
# same: two lists with recipients in common then meet at the first of them, and not crosswise. IN (SELECT …) is hashed;
# a join would be a nested loop, since the plan is made for a short list.
_ACCEPT_MANY = f"""
WITH key AS (
    INSERT INTO idempotency_keys (subject, key, fingerprint, message_id)
    SELECT %(by_subject)s, %(key)s::text, %(fingerprint)s, %(last_to_go)s WHERE %(key)s::text IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING 1
), listed AS (
    SELECT nextval('messages_seq_seq') AS seq, *, coalesce(send_at > now(), false) AS later
    FROM json_to_recordset(%(messages)s::json) AS listed (
        id text, account_id text, recipient_id text, priority smallint, content text, media_ids text[], metadata jsonb,
        batch_id text, send_at timestamptz, expires_at timestamptz, estimated_at timestamptz
    )
    WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM key)
), new AS MATERIALIZED (
    SELECT *, row_number() OVER (PARTITION BY account_id, recipient_id, priority, later ORDER BY seq) AS nth
    FROM listed
), head AS MATERIALIZED (
    SELECT new.seq FROM new {_heads_of("new")}
    WHERE new.nth = 1 AND NOT new.later
    ORDER BY m.id FOR SHARE OF m
), accepted AS (
    INSERT INTO messages (id, seq, account_id, recipient_id, priority, content, media_ids, metadata, batch_id, send_at,
                          expires_at, estimated_at, due_at, state, request_id, traceparent)
    OVERRIDING SYSTEM VALUE
    SELECT id, seq, account_id, recipient_id, priority, content, coalesce(media_ids, '{{}}'), metadata, batch_id,
           send_at, expires_at, estimated_at, coalesce(greatest(send_at, now()), now()),
           CASE WHEN later THEN 'scheduled'
                WHEN nth > 1 OR seq IN (SELECT seq FROM head) THEN 'held'
                ELSE 'queued' END,
           %(by_request_id)s, %(by_traceparent)s
    FROM new ORDER BY account_id, recipient_id, priority, later, seq
    RETURNING id, account_id, state, queued_at
), share AS (
    SELECT account_id, jsonb_build_object('messages', count(*), 'first', min(id), 'last', max(id)) AS details
    FROM accepted GROUP BY account_id
), noted AS ({audit.entry(Action.SEND_BULK, rows="share", details="details")})
SELECT min(queued_at) AS queued_at, array_agg(id) FILTER (WHERE state = 'held') AS held FROM accepted
"""


_HOLD_HEADS = f"""
WITH line AS (
    SELECT DISTINCT account_id, recipient_id, priority
    FROM json_to_recordset(%(messages)s::json) AS line (account_id text, recipient_id text, priority smallint)
)
SELECT 1 FROM line {_heads_of("line")}
ORDER BY m.id FOR SHARE OF m
"""


def accept_many(
    db: Database,
    listed: Sequence[Mapping[str, Any]],
    *,
    by: Actor,
    last_to_go: str,
    key: str | None = None,
    fingerprint: str | None = None,
) -> AcceptedTogether:
    """Insert all of them and commit, in one statement; with an idempotency key that came before, none.

    listed: the fields of `NewMessage`, and `estimated_at`. last_to_go: the id of the one that the key is remembered
    with, and forgotten.

    A list that reaches into a thousand lines whose heads come and go loses the race for one of them nearly every time.
    Once it has, it first takes hold of the heads that there are, which then stay for as long as it takes.
    """
    params = {
        "messages": Json(listed, as_json),
        "last_to_go": last_to_go,
        "key": key,
        "fingerprint": fingerprint,
        **audit.by_params(by),
    }

    def holding_on(c: Connection) -> Row | None:
        c.all(_HOLD_HEADS, params)
        return c.one(_ACCEPT_MANY, params)

    try:
        row = db.one(_ACCEPT_MANY, params)
    except (DeadlockDetected, UniqueViolation) as error:
        if not is_race(error):
            raise
        row = db.transaction(holding_on)
    if row and row["queued_at"]:
        return AcceptedTogether(row["queued_at"], frozenset(row["held"] or ()))
    first = _first_use(db, by, key)
    if first is None:  # pruned between the two statements: the key is free again
        return accept_many(db, listed, by=by, last_to_go=last_to_go, key=key, fingerprint=fingerprint)
    return AcceptedTogether(first.queued_at, first_use=first)


def _first_use(db: Database, by: Actor, key: str | None) -> Accepted | None:
    row = db.one(_FIRST_USE, {"by_subject": by.subject, "key": key})
    return Accepted(row["id"], row["state"], row["queued_at"], True, row["fingerprint"]) if row else None


def key_used(db: Database, subject: str, key: str) -> bool:
    """Whether a caller has used this idempotency key already."""
    return db.one(_FIRST_USE, {"by_subject": subject, "key": key}) is not None
