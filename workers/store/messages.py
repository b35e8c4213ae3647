"""A message on its way. One function per transition; each names the state it expects, and says when it did not find it.

Races closed here:

* *Two heads of one line.* Joining a line looks for its head under FOR SHARE. Whoever is taking that head out holds the
  row, so the newcomer waits and then sees that it is gone; whoever comes to take it out afterwards waits for the
  newcomer's commit, and then sees it among the held. What is left, two newcomers at once, meets the unique index
  `uq_messages_head`, and the loser tries again (`session.is_race`).
* *A stale claim.* Recording names the attempt's number: a drain whose message was rescued meanwhile changes nothing and
  is told (`StaleClaim`).

Plans are kept, and may have been made, or made again, while nothing waited: every quiet night ends like that. To such a
plan the partial indexes of waiting messages are empty, and it is as well to read one whole as to look something up; in
the morning that is every message that waits, for each one claimed. So whoever has a row's id asks for its state in a
way that no partial index knows (`state || ''`), and who looks for many lines looks for each (LATERAL); a test reads the
plans (`test_plans.py`).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.errors import DeadlockDetected, UniqueViolation
from psycopg.types.json import Json, Jsonb
from ulid import ULID

from ratelimit import Origin
from workers.domain.actor import Action, Actor
from workers.domain.decisions import VERIFY_AFTER_S, DeadLetterReason, DeferralReason
from workers.domain.errors import StaleClaim
from workers.domain.events import (
    Buried,
    Cancelled,
    Deferred,
    Expired,
    LateAnswer,
    LookupBegun,
    RetryScheduled,
    Sent,
    TakenBack,
)
from workers.domain.lookup import same_text
from workers.domain.message import Claim, Line, NewMessage
from workers.domain.outcome import Outcome
from workers.encoding import as_json
from workers.store import audit
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
class Orphan:
    """A claim whose drain is gone, or should be: `time_left_s` until its loan ends (negative: it has). server_up_s: how
    long PostgreSQL has been running."""

    claim: Claim
    worker: int
    time_left_s: float
    server_up_s: float = math.inf


# --- in -------------------------------------------------------------------------------------------------------------

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


@dataclass(frozen=True, slots=True)
class AcceptedTogether:
    """Messages as they stand in the database after COMMIT. held: the ids of those behind another to the same recipient.
    first_use: their key was used before, for this message among others; nothing was queued now."""

    queued_at: datetime
    held: frozenset[str] = frozenset()
    first_use: Accepted | None = None


def _heads_of(lines: str) -> str:
    """Joins the head `m` of each of these lines that has one: looked up first, so that `m` may be locked in the order
    of ids, and asked for its state again once it is."""
    return f"""CROSS JOIN LATERAL (
        SELECT id FROM messages
        WHERE account_id = {lines}.account_id AND recipient_id = {lines}.recipient_id AND priority = {lines}.priority
          AND state IN ('queued', 'sending', 'verifying')
        LIMIT 1
    ) found JOIN messages m ON m.id = found.id AND m.state || '' IN ('queued', 'sending', 'verifying')"""


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


_ADMIT_DUE = """
WITH due AS (
    SELECT id FROM messages
    WHERE state = 'scheduled' AND account_id = %(account_id)s AND due_at <= now()
    ORDER BY due_at LIMIT 1000 FOR UPDATE SKIP LOCKED
)
UPDATE messages m SET state = 'held' FROM due WHERE m.id = due.id AND m.state || '' = 'scheduled'
RETURNING m.account_id, m.recipient_id, m.priority
"""


def admit_due(db: Database, account_id: str) -> int:
    """Let the account's scheduled messages whose time has come join their lines. Returns how many did."""

    def work(c: Connection) -> int:
        rows = c.all(_ADMIT_DUE, {"account_id": account_id})
        elect_heads(c, map(_line, rows))
        return len(rows)

    admitted = 0
    while batch := db.transaction(work):
        admitted += batch
    return admitted


_ELECT_HEADS = """
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
UPDATE messages m SET state = 'queued' FROM first WHERE m.id = first.id AND m.state || '' = 'held'
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


# --- out ------------------------------------------------------------------------------------------------------------

CLAIMED_AT_ONCE = 128
# A LIMIT that is a parameter is one tenth of all rows to a generic plan, and a tenth of a million is worth a sequential
# scan of the table to join back to. A second LIMIT, of a number, tells it how few they are; so too in what follows.
#
# Walks the priorities from 10 down, fresh ones before redriven ones (steps 21, 20: priority 10; 19, 18: priority 9; …),
# each from its oldest due message, and stops at the first `want`: twenty index probes at worst. One scan over all
# priorities would wade through whatever is waiting for its retry at the higher ones.
# statement_timestamp(), because in a drain's transaction now() is older than what the statement before has just queued.
_CLAIM_NEXT = f"""
WITH origin AS (
    SELECT number = %(epoch)s AND server = %(server)s AND given < %(given)s AS valid FROM token_epoch
), next AS (SELECT * FROM (
    SELECT m.id, row_number() OVER () AS n
    FROM accounts a
    CROSS JOIN generate_series(21, 2, -1) AS step
    CROSS JOIN LATERAL (
        SELECT id FROM messages
        WHERE account_id = a.id AND priority = step / 2 AND redriven = (mod(step, 2) = 0) AND state = 'queued'
          AND due_at <= statement_timestamp()
          AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY due_at, seq LIMIT %(want)s FOR UPDATE SKIP LOCKED
    ) m
    WHERE a.id = %(account_id)s AND coalesce(a.budget, a.id) = %(budget)s
      AND (a.paused_at IS NULL OR a.paused_until <= statement_timestamp())
      AND (a.rest_until IS NULL OR %(probe)s::boolean)
      AND (SELECT valid FROM origin)
    LIMIT %(want)s
) wanted LIMIT {CLAIMED_AT_ONCE}), claimed AS (
    UPDATE messages m SET state = 'sending', attempts = m.attempts + 1, tries = m.tries + 1
    FROM next WHERE m.id = next.id AND m.state || '' = 'queued'
    RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.content, m.media_ids, m.attempts, m.tries, m.due_at,
              m.request_id, m.traceparent, m.refusals, m.throttles, m.throttled_at,
              (%(tokens)s::text[])[next.n] AS token
), intent AS (
    INSERT INTO attempts (message_id, account_id, number, token, worker, deadline_at, budget)
    SELECT id, account_id, attempts, token, %(worker)s, clock_timestamp() + %(lease_s)s * interval '1 second',
           nullif(%(budget)s, account_id)
    FROM claimed
)
SELECT origin.valid, claimed.*, extract(epoch FROM statement_timestamp() - due_at)::float8 AS due_s,
    CASE WHEN tries > 1 THEN (
        SELECT extract(epoch FROM clock_timestamp() - min(k.started_at))::float8 FROM attempts k
        WHERE k.message_id = claimed.id AND k.spent AND EXISTS (
            SELECT FROM attempts a
            WHERE a.message_id = claimed.id AND a.counted AND a.outcome = 'unknown' AND a.number > attempts - tries)
    ) END AS doubt_s,
    tries > 1 AND EXISTS (
        SELECT FROM attempts a JOIN accounts o ON o.id = claimed.account_id AND a.started_at < o.key_since
        WHERE a.message_id = claimed.id AND a.counted AND a.outcome = 'unknown' AND a.number > attempts - tries
    ) AS rekeyed,
    throttles > 0 AND EXISTS (
        SELECT FROM attempts a WHERE a.started_at > claimed.throttled_at AND a.account_id = claimed.account_id
           AND a.outcome = 'accepted'
    ) AS others_passed,
    (SELECT sum(n)::int FROM tallies WHERE account_id = %(account_id)s AND state = 'queued') AS queued
FROM origin LEFT JOIN claimed ON true
"""


def claim_next(
    c: Connection | Database,
    account_id: str,
    tokens: Sequence[str],
    worker: int,
    lease_s: float,
    *,
    origin: Origin,
    budget: str | None = None,
    probe: bool = False,
) -> list[Claim] | None:
    """Claim up to one message per token, `CLAIMED_AT_ONCE` at most, and put an attempt for each on record, committed
    before anything leaves.

    origin: where the tokens come from. None is returned, and nothing is claimed, if that is not the present epoch: then
    another server gives out the tokens, or this one has lost some that it gave out before.
    budget: where the tokens come from; None for the one that has the account's id. Nothing is claimed if the account
    draws on another by now. probe: also of an account that rests; see `accounts.begin_probe`.
    """
    if not tokens:
        return []
    params = {
        "account_id": account_id,
        "want": len(tokens),
        "tokens": list(tokens),
        "worker": worker,
        "lease_s": lease_s,
        "budget": budget or account_id,
        "probe": probe,
        "epoch": int(origin.epoch),
        "server": origin.server,
        "given": origin.given,
    }
    rows = c.all(_CLAIM_NEXT, params)
    if not rows[0]["valid"]:
        return None
    return [_claim(row) for row in rows if row["id"]]


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


# What an attempt came to; shared by every way of recording one. The number alone does not tell whose attempt it is: a
# deferral gives it back, and the next claim takes it again. The token does.
_CLOSE_ATTEMPT = """
closed AS (
    UPDATE attempts SET outcome = %(outcome)s, ended_at = clock_timestamp(), counted = %(counted)s, spent = %(spent)s,
        deferral = %(deferral)s, http_status = %(http_status)s, latency_ms = %(latency_ms)s, error = %(error)s
    WHERE message_id = %(message_id)s AND number = %(attempt)s AND token = %(token)s AND outcome IS NULL
    RETURNING message_id
)"""

_MARK_SENT = """
WITH o AS (
    SELECT * FROM unnest(%(ids)s::text[], %(attempts)s::int[], %(upstream_ids)s::text[], %(statuses)s::int[],
                         %(latencies)s::int[], %(tokens)s::text[])
        AS o (message_id, attempt, upstream_id, http_status, latency_ms, token)
), closed AS (
    UPDATE attempts a SET outcome = 'accepted', ended_at = clock_timestamp(), http_status = o.http_status,
        latency_ms = o.latency_ms
    FROM o  -- ANY, because a join alone may read the whole index of open attempts, dead entries and all
    WHERE a.message_id = ANY(%(ids)s::text[])
      AND a.message_id = o.message_id AND a.number = o.attempt AND a.token = o.token AND a.outcome IS NULL
    RETURNING a.message_id, a.number, o.upstream_id
)
UPDATE messages m SET state = 'sent', sent_at = clock_timestamp(), ended_at = clock_timestamp(),
    upstream_id = closed.upstream_id
FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'sending' AND m.attempts = closed.number
RETURNING m.id, extract(epoch FROM m.sent_at - m.queued_at)::float8 AS waited_s,
    extract(epoch FROM m.sent_at - m.estimated_at)::float8 AS estimate_error_s
"""


def mark_sent(c: Connection, accepted: Sequence[tuple[Claim, Outcome]]) -> list[Sent]:
    """Record that the upstream took these. Those of which nothing is returned were not this drain's any more."""
    if not accepted:
        return []
    accepted = sorted(accepted, key=lambda pair: pair[0].message_id)  # rows are locked in one order by everyone
    params = {
        "ids": [claim.message_id for claim, _ in accepted],
        "attempts": [claim.attempt for claim, _ in accepted],
        "upstream_ids": [outcome.upstream_id for _, outcome in accepted],
        "statuses": [outcome.http_status for _, outcome in accepted],
        "latencies": [round(outcome.latency_s * 1000) for _, outcome in accepted],
        "tokens": [claim.token for claim, _ in accepted],
    }
    pairs = {claim.message_id: (claim, outcome) for claim, outcome in accepted}
    sent = []
    for row in c.all(_MARK_SENT, params):
        claim, outcome = pairs[row["id"]]
        waited_s, error_s = row["waited_s"], row["estimate_error_s"]
        sent.append(Sent(claim=claim, outcome=outcome, waited_s=waited_s, estimate_error_s=error_s))
    return sent


# An answered refusal uses up the idempotency key: an upstream may replay it for ever. Not while an earlier attempt may
# have arrived under that very key: then it stays, and so does what it protects from. That holds also for an attempt
# from before an admin's retry, which `tries` and `doubt_s` do not count any more.
_REFUSALS = """
    refusals = m.refusals + (%(refused)s AND NOT EXISTS (
        SELECT FROM attempts u WHERE u.message_id = m.id AND u.counted AND u.outcome = 'unknown'))::int
"""

_SCHEDULE_RETRY = f"""
WITH {_CLOSE_ATTEMPT}
UPDATE messages m SET state = 'queued', due_at = clock_timestamp() + %(delay_s)s * interval '1 second',
    {_REFUSALS}
FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'sending' AND m.attempts = %(attempt)s
RETURNING m.id
"""


def schedule_retry(c: Connection, claim: Claim, outcome: Outcome, delay_s: float) -> RetryScheduled:
    """Queue the message again after a failed attempt; it stays the head of its line meanwhile. `throttles` is kept: an
    attempt that nobody knows the end of does not prove that the upstream lets the line through again."""
    _move(c, _SCHEDULE_RETRY, claim, outcome, delay_s=delay_s)
    return RetryScheduled(claim=claim, outcome=outcome, delay_s=delay_s)


# A line that rests goes on behind those that are due before it; any other deferral keeps its place.
_DEFER = f"""
WITH {_CLOSE_ATTEMPT}
UPDATE messages m SET state = 'queued', attempts = m.attempts - 1, tries = m.tries - 1, {_REFUSALS},
    due_at = CASE WHEN %(delay_s)s > 0 THEN clock_timestamp() + %(delay_s)s * interval '1 second' ELSE m.due_at END,
    throttles = CASE WHEN %(throttled)s THEN least(m.throttles + 1, 1000) ELSE m.throttles END,
    throttled_at = CASE WHEN %(throttled)s THEN clock_timestamp() ELSE m.throttled_at END
FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'sending' AND m.attempts = %(attempt)s
RETURNING m.id
"""


def defer(
    c: Connection,
    claim: Claim,
    outcome: Outcome,
    reason: DeferralReason,
    *,
    channel: str,
    delay_s: float = 0.0,
    cooldown_s: float = 0.0,
) -> Deferred:
    """Not its turn after all: back to its old place, nothing counted. delay_s: how long its line rests first. channel,
    cooldown_s: for the event alone."""
    throttled = reason is DeferralReason.THROTTLED
    _move(c, _DEFER, claim, outcome, counted=False, deferral=str(reason), delay_s=delay_s, throttled=throttled)
    return Deferred(
        claim=claim, outcome=outcome, channel=channel, reason=reason, delay_s=delay_s, cooldown_s=cooldown_s
    )


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


_TAKE_BACK = """
WITH closed AS (
    UPDATE attempts SET outcome = 'failed', ended_at = clock_timestamp(), counted = false, spent = false,
        deferral = 'interrupted', error = 'claimed, but nobody knew'
    WHERE token = ANY(%(tokens)s::text[]) AND worker = %(worker)s AND outcome IS NULL
    RETURNING message_id, number
)
UPDATE messages m SET state = 'queued', attempts = m.attempts - 1, tries = m.tries - 1
FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'sending' AND m.attempts = closed.number
RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.upstream_id
"""


def take_back(c: Connection, tokens: Sequence[str], worker: int) -> TakenBack:
    """Undo claims under these tokens whose COMMIT was never confirmed to this worker: nothing of them left. If an
    earlier attempt of such a message turned out to have arrived, the message is sent."""
    rows = c.all(_TAKE_BACK, {"tokens": list(tokens), "worker": worker}) if tokens else []
    for row in rows:
        if row["upstream_id"] is not None:
            _close_proved(c, row["id"], _line(row))
    return TakenBack(count=len(rows))


# When the history must show each attempt of the message that may have arrived: until an attempt's deadline the upstream
# may work on it, even if its connection was cut.
_SEEN_BY = """(
    SELECT max(a.deadline_at) + %(verify_after_s)s * interval '1 second' FROM attempts a
    WHERE a.message_id = m.id AND a.counted AND a.outcome = 'unknown' AND a.number > m.attempts - m.tries)"""

# Of an attempt that was withheld nothing is counted: its number goes to the next one.
_UNCOUNTED = "attempts = m.attempts - (NOT %(counted)s)::int, tries = m.tries - (NOT %(counted)s)::int"

_BURY = f"""
WITH {_CLOSE_ATTEMPT}, dead AS (
    UPDATE messages m SET state = 'failed', ended_at = clock_timestamp(), {_UNCOUNTED}, {_REFUSALS}
    FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'sending' AND m.attempts = %(attempt)s
    RETURNING m.id, m.account_id
)
INSERT INTO dead_letters (message_id, account_id, reason, error, http_status)
SELECT id, account_id, %(reason)s, %(error)s, %(http_status)s FROM dead
RETURNING message_id
"""


def bury(c: Connection, claim: Claim, outcome: Outcome, reason: DeadLetterReason) -> Buried:
    """Give it up: a dead letter for a person to look at. Its line moves on."""
    _move(c, _BURY, claim, outcome, counted=not outcome.withheld, deferral=_withheld(outcome), reason=str(reason))
    elect_heads(c, [claim.line])
    return Buried(claim=claim, outcome=outcome, reason=reason)


_AWAIT_VERIFICATION = f"""
WITH {_CLOSE_ATTEMPT}
UPDATE messages m SET state = 'verifying', lookups = 0, {_UNCOUNTED}, {_REFUSALS},
    due_at = greatest(clock_timestamp() + %(delay_s)s * interval '1 second', {_SEEN_BY})
FROM closed WHERE m.id = closed.message_id AND m.state || '' = 'sending' AND m.attempts = %(attempt)s
RETURNING m.id
"""


def await_verification(c: Connection, claim: Claim, outcome: Outcome, delay_s: float) -> LookupBegun:
    """Nobody knows whether it arrived: look it up after `delay_s`."""
    _move(
        c, _AWAIT_VERIFICATION, claim, outcome,
        counted=not outcome.withheld, deferral=_withheld(outcome), delay_s=delay_s, verify_after_s=VERIFY_AFTER_S,
    )  # fmt: skip
    return LookupBegun(claim=claim, outcome=outcome, delay_s=delay_s)


def _withheld(outcome: Outcome) -> str | None:
    return str(DeferralReason.WITHHELD) if outcome.withheld else None


# Whatever became of the message since: this attempt is proved to have arrived. If the message waits, is looked up or
# was given up, it is sent, and any open letter of it is closed. If another attempt of it is out, which cannot be called
# back, the message is sent once that has ended (`mark_proved`).
_ACCEPT_LATE_ANSWER = """
WITH doubtful AS (
    -- It ended now, with its answer, not when it was written off: the upstream may have taken it in between.
    UPDATE attempts SET outcome = 'accepted', ended_at = clock_timestamp(), http_status = %(http_status)s, error = NULL
    WHERE message_id = %(message_id)s AND number = %(attempt)s AND token = %(token)s AND counted
      AND (outcome = 'unknown' OR outcome = 'failed' AND http_status IS NULL)  -- failed: a lookup came too early
    RETURNING message_id
), closed AS (
    UPDATE dead_letters d SET closed_at = clock_timestamp(), closed_as = 'sent', closed_by = 'late answer'
    FROM doubtful WHERE d.message_id = doubtful.message_id AND d.closed_at IS NULL
)
UPDATE messages m SET upstream_id = %(upstream_id)s,
    state = CASE m.state WHEN 'sending' THEN 'sending' ELSE 'sent' END,
    sent_at = CASE m.state WHEN 'sending' THEN NULL ELSE clock_timestamp() END,
    ended_at = CASE m.state WHEN 'sending' THEN NULL ELSE clock_timestamp() END
FROM doubtful
WHERE m.id = doubtful.message_id
  AND m.state || '' IN ('scheduled', 'held', 'queued', 'sending', 'verifying', 'failed')
RETURNING m.state
"""


def accept_late_answer(c: Connection, claim: Claim, outcome: Outcome) -> Sent | LateAnswer:
    """The answer of an attempt already written off as unknown arrived after all: the message was delivered. It is
    `sent` now, unless another attempt of it is out."""
    params = {
        "message_id": claim.message_id,
        "attempt": claim.attempt,
        "token": claim.token,
        "http_status": outcome.http_status,
        "upstream_id": outcome.upstream_id,
    }
    rows = c.all(_ACCEPT_LATE_ANSWER, params)
    if not rows:
        raise StaleClaim(claim.message_id, claim.attempt)
    elect_heads(c, [claim.line])
    kind = Sent if rows[0]["state"] == "sent" else LateAnswer
    return kind(claim=claim, outcome=outcome)


_MARK_PROVED = """
WITH proved AS (
    UPDATE messages SET state = 'sent', sent_at = clock_timestamp(), ended_at = clock_timestamp()
    WHERE id = %(message_id)s AND upstream_id IS NOT NULL AND state || '' IN ('queued', 'verifying', 'failed')
    RETURNING id
)
UPDATE dead_letters d SET closed_at = clock_timestamp(), closed_as = 'sent', closed_by = 'late answer'
FROM proved WHERE d.message_id = proved.id AND d.closed_at IS NULL
"""
_IS_PROVED = "SELECT 1 FROM messages WHERE id = %(message_id)s AND upstream_id IS NOT NULL"


def mark_proved(c: Connection, claim: Claim) -> bool:
    """An earlier attempt turned out to have arrived while a later one was out. Now that this one has ended without a
    success, the message is sent. To be asked in the transaction that recorded it. Returns whether it is so."""
    if not c.all(_IS_PROVED, {"message_id": claim.message_id}):
        return False
    _close_proved(c, claim.message_id, claim.line)
    return True


def _close_proved(c: Connection, message_id: str, line: Line) -> None:
    c.all(_MARK_PROVED, {"message_id": message_id})
    elect_heads(c, [line])


def _move(
    c: Connection, sql: str, claim: Claim, outcome: Outcome, *, counted: bool = True, deferral: str | None = None,
    **params: Any,
) -> None:  # fmt: skip
    params |= {
        "message_id": claim.message_id,
        "attempt": claim.attempt,
        "token": claim.token,
        "outcome": str(outcome.kind),
        "counted": counted,
        "deferral": deferral,
        "spent": outcome.left,
        "http_status": outcome.http_status,
        "latency_ms": round(outcome.latency_s * 1000),
        "error": outcome.error,
        "refused": outcome.refused,
    }
    if not c.all(sql, params):
        raise StaleClaim(claim.message_id, claim.attempt)


# --- looked up ------------------------------------------------------------------------------------------------------

_CLAIM_LOOKUP = """
WITH due AS (SELECT * FROM (
    SELECT id FROM messages WHERE state = 'verifying' AND due_at <= now() AND account_id <> ALL(%(busy)s::text[])
    ORDER BY due_at LIMIT %(want)s FOR UPDATE SKIP LOCKED
) wanted LIMIT 100)
UPDATE messages m SET lookups = m.lookups + 1, due_at = clock_timestamp() + %(lease_s)s * interval '1 second'
FROM due WHERE m.id = due.id AND m.state || '' = 'verifying'
RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.content, m.media_ids, m.attempts, m.tries, m.lookups,
    m.request_id, m.traceparent, m.refusals, m.throttles,
    (SELECT extract(epoch FROM clock_timestamp() - min(a.started_at))::float8 FROM attempts a
     WHERE a.message_id = m.id AND a.counted AND a.outcome = 'unknown' AND a.number > m.attempts - m.tries
    ) AS doubt_s,
    EXISTS (
        SELECT FROM attempts a JOIN accounts o ON o.id = m.account_id AND a.started_at < o.key_since
        WHERE a.message_id = m.id AND a.counted AND a.outcome = 'unknown' AND a.number > m.attempts - m.tries
    ) AS rekeyed,
    (SELECT array_agg(s.upstream_id) FROM messages s
     WHERE s.recipient_id = m.recipient_id AND s.upstream_id IS NOT NULL
       AND s.account_id IN (
           SELECT other.id FROM accounts own JOIN accounts other ON other.id = own.id OR other.budget = own.budget
           WHERE own.id = m.account_id)
       AND s.state = 'sent' AND s.sent_at > m.queued_at - interval '1 day') AS known_ids
"""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A message to look for upstream. known_ids: upstream ids in that chat that belong to other messages."""

    claim: Claim
    lookups: int
    known_ids: frozenset[str]

    @property
    def since_s(self) -> float:
        """How long ago its first attempt began that may have arrived."""
        return self.claim.doubt_s or 0.0


def claim_lookup(db: Database, lease_s: float, *, busy: Collection[str] = ()) -> Lookup | None:
    """Take the message whose lookup has been due longest, of all but the `busy` accounts, for `lease_s` seconds: if it
    is not settled by then, it is due again. Whoever takes one after another so lets accounts take turns: one with a
    thousand doubtful messages, whose history hangs, keeps no other waiting."""
    row = db.one(_CLAIM_LOOKUP, {"want": 1, "lease_s": lease_s, "busy": list(busy)})
    if row is None:
        return None
    return Lookup(_claim(row | {"token": ""}), row["lookups"], frozenset(row["known_ids"] or ()))


_CONFIRM_SENT = """
WITH known AS (
    UPDATE attempts SET outcome = 'accepted', error = concat_ws('; ', error, 'looked up: it arrived'),
        ended_at = greatest(ended_at, deadline_at)  -- nobody knows when it arrived, only that it was not later
    WHERE message_id = %(message_id)s AND number = %(attempt)s AND counted AND outcome = 'unknown'
)
UPDATE messages SET state = 'sent', sent_at = clock_timestamp(), ended_at = clock_timestamp(),
    upstream_id = %(upstream_id)s
WHERE id = %(message_id)s AND state || '' = 'verifying' AND attempts = %(attempt)s
RETURNING id
"""


def confirm_sent(c: Connection, claim: Claim, upstream_id: str | None) -> None:
    """The upstream's history has it."""
    params = {"message_id": claim.message_id, "attempt": claim.attempt, "upstream_id": upstream_id}
    if not c.all(_CONFIRM_SENT, params):
        raise StaleClaim(claim.message_id, claim.attempt)
    elect_heads(c, [claim.line])


_LOCK_CHAT = """
SELECT pg_advisory_xact_lock(hashtextextended(coalesce(budget, id) || ' ' || %(recipient_id)s, 0))
FROM accounts WHERE id = %(account_id)s
"""


def lock_chat(c: Connection, claim: Claim) -> None:
    """Until the end of the transaction nobody else decides what was found in this chat: two look-ups at once must not
    take one entry of the history for two messages. A later statement sees what whoever was first has committed.
    Accounts under one credential write into the same chat."""
    c.all(_LOCK_CHAT, {"account_id": claim.account_id, "recipient_id": claim.recipient_id})


_OTHERS = """
SELECT other.content, other.media_ids, other.upstream_id IS NOT DISTINCT FROM %(upstream_id)s AS is_it
FROM messages mine JOIN messages other ON other.recipient_id = mine.recipient_id AND other.id <> mine.id
WHERE mine.id = %(message_id)s AND (other.upstream_id = %(upstream_id)s OR other.state = 'sending')
  AND other.account_id IN (
      SELECT a.id FROM accounts own JOIN accounts a ON a.id = own.id OR a.budget = own.budget
      WHERE own.id = mine.account_id)
"""


def is_anothers(c: Connection, claim: Claim, upstream_id: str | None) -> bool:
    """Whether what was found in the history is, or may yet turn out to be, another message of the same text. To be
    asked after the lookup: whatever the other one was when that began, it may have arrived since."""
    others = c.all(_OTHERS, {"message_id": claim.message_id, "upstream_id": upstream_id})
    return any(other["is_it"] or same_text(claim.content, other["content"]) for other in others)


_CONFIRM_ABSENT = """
WITH known AS (
    -- For the tokens it ended with its deadline all the same: no answer came, and the upstream may have seen it.
    UPDATE attempts SET outcome = 'failed', ended_at = greatest(ended_at, deadline_at),
        error = concat_ws('; ', error, 'looked up: it did not arrive')
    WHERE message_id = %(message_id)s AND number <= %(attempt)s AND number > %(attempt)s - %(tries)s
      AND counted AND outcome = 'unknown'
)
UPDATE messages SET state = 'queued', due_at = clock_timestamp()
WHERE id = %(message_id)s AND state || '' = 'verifying' AND attempts = %(attempt)s
RETURNING id
"""


def confirm_absent(c: Connection, claim: Claim) -> None:
    """The upstream's history proves that it did not arrive: it may go again."""
    params = {"message_id": claim.message_id, "attempt": claim.attempt, "tries": claim.tries}
    if not c.all(_CONFIRM_ABSENT, params):
        raise StaleClaim(claim.message_id, claim.attempt)


_LOOK_AGAIN = """
UPDATE messages SET due_at = clock_timestamp() + %(delay_s)s * interval '1 second',
    lookups = lookups - (NOT %(counted)s)::int
WHERE id = %(message_id)s AND state || '' = 'verifying' AND attempts = %(attempt)s
RETURNING id
"""


def look_again(c: Connection, claim: Claim, delay_s: float, *, counted: bool = True) -> None:
    """The history proved nothing, or could not even be asked (then it is not `counted`): once more in `delay_s`."""
    params = {"message_id": claim.message_id, "attempt": claim.attempt, "delay_s": delay_s, "counted": counted}
    if not c.all(_LOOK_AGAIN, params):
        raise StaleClaim(claim.message_id, claim.attempt)


_BURY_UNVERIFIED = """
WITH dead AS (
    UPDATE messages SET state = 'failed', ended_at = clock_timestamp()
    WHERE id = %(message_id)s AND state || '' = 'verifying' AND attempts = %(attempt)s
    RETURNING id, account_id
)
INSERT INTO dead_letters (message_id, account_id, reason, error)
SELECT id, account_id, %(reason)s, %(error)s FROM dead
RETURNING message_id
"""


def bury_unverified(c: Connection, claim: Claim, reason: DeadLetterReason, error: str | None) -> None:
    """Neither found nor proved absent (or absent, and tried often enough): a person must decide."""
    params = {"message_id": claim.message_id, "attempt": claim.attempt, "reason": str(reason), "error": error}
    if not c.all(_BURY_UNVERIFIED, params):
        raise StaleClaim(claim.message_id, claim.attempt)
    elect_heads(c, [claim.line])


# --- kept in order --------------------------------------------------------------------------------------------------

_ORPHANS = """
SELECT m.id, m.account_id, m.recipient_id, m.priority, m.content, m.media_ids, m.attempts, m.tries, a.token, a.worker,
       m.request_id, m.traceparent, m.refusals, m.throttles,
       (SELECT extract(epoch FROM clock_timestamp() - min(u.started_at))::float8 FROM attempts u
        WHERE u.message_id = m.id AND u.counted AND u.outcome = 'unknown' AND u.number > m.attempts - m.tries
       ) AS doubt_s,
       extract(epoch FROM a.deadline_at - clock_timestamp())::float8 AS time_left_s,
       extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8 AS server_up_s
FROM attempts a JOIN messages m ON m.id = a.message_id AND m.state || '' = 'sending' AND m.attempts = a.number
WHERE a.outcome IS NULL
  AND (a.deadline_at < now() - %(grace_s)s * interval '1 second'
       OR NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s
                      AND l.objid = a.worker::oid AND l.objsubid = 2 AND l.granted
                      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())))
ORDER BY a.deadline_at LIMIT %(want)s
"""


def find_orphans(db: Database, *, grace_s: float, lock_class: int, want: int = 1000) -> list[Orphan]:
    """Claims past their deadline, or whose worker holds its advisory lock no more, which means that it is dead."""
    rows = db.all(_ORPHANS, {"grace_s": grace_s, "lock_class": lock_class, "want": want})
    return [Orphan(_claim(row), row["worker"], row["time_left_s"], row["server_up_s"]) for row in rows]


# A message that waits to be sent again after an unknown outcome may have arrived already: to call it expired or
# cancelled could be a lie.
# Any attempt since it was queued may be the one that did; later ones that failed for certain prove nothing about it.
DOUBTFUL = """
(m.tries > 0 AND (SELECT true FROM attempts a WHERE a.message_id = m.id AND a.counted AND a.outcome = 'unknown'
                  AND a.number > m.attempts - m.tries LIMIT 1) IS TRUE)
"""

_VERIFY_EXPIRED = f"""
UPDATE messages m SET state = 'verifying', lookups = 0, due_at = greatest(clock_timestamp(), {_SEEN_BY})
WHERE m.expires_at IS NOT NULL AND m.state IN ('scheduled', 'held', 'queued') AND m.expires_at <= now()
  AND m.state || '' = 'queued'  -- as above: by way of expires_at, not of all that is queued
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
FROM past WHERE m.id = past.id AND m.state || '' IN ('scheduled', 'held', 'queued')
RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.request_id
"""


def expire(db: Database, want: int = 1000) -> list[Expired]:
    """Close waiting messages whose expiresAt is past."""

    def work(c: Connection) -> list[Expired]:
        verify_expired(c)
        rows = c.all(_EXPIRE, {"want": want})
        elect_heads(c, map(_line, rows))
        return [
            Expired(message_id=row["id"], account_id=row["account_id"], request_id=row["request_id"]) for row in rows
        ]

    return db.transaction(work)


_CANCEL = f"""
WITH cancelled AS (
    UPDATE messages m SET state = 'cancelled', ended_at = clock_timestamp()
    WHERE m.id = %(message_id)s AND m.state || '' IN ('scheduled', 'held', 'queued') AND NOT {DOUBTFUL}
    RETURNING m.id, m.account_id, m.recipient_id, m.priority
), noted AS ({audit.entry(Action.CANCEL, rows="cancelled", message_id="id")})
SELECT * FROM cancelled
"""


def cancel(db: Database, message_id: str, by: Actor) -> Cancelled | None:
    """Close a message that still waits. None if it does not, or if it may have arrived already."""

    def work(c: Connection) -> Cancelled | None:
        rows = c.all(_CANCEL, {"message_id": message_id, **audit.by_params(by)})
        elect_heads(c, map(_line, rows))
        return Cancelled(message_id=message_id, account_id=rows[0]["account_id"], by=by.subject) if rows else None

    return db.transaction(work)


_HEADLESS = """
SELECT * FROM (SELECT DISTINCT account_id, recipient_id, priority FROM messages WHERE state = 'held') h
WHERE (SELECT id FROM messages m WHERE m.account_id = h.account_id AND m.recipient_id = h.recipient_id
       AND m.priority = h.priority AND m.state IN ('queued', 'sending', 'verifying') LIMIT 1) IS NULL
LIMIT 1000
"""


def mend_headless_lines(db: Database) -> int:
    """Lines of held messages without a head should not exist; should they, this gives them one. Returns how many."""

    def work(c: Connection) -> int:
        return elect_heads(c, map(_line, c.all(_HEADLESS)))

    return db.transaction(work)


_PRUNE = """
WITH old AS (SELECT * FROM (
    SELECT id FROM messages
    WHERE id < %(before_id)s AND state IN ('sent', 'cancelled', 'expired')
      AND ended_at < now() - %(older_than_s)s * interval '1 second'
    ORDER BY id LIMIT %(most)s FOR UPDATE SKIP LOCKED
) wanted LIMIT 1000)
DELETE FROM messages m USING old WHERE m.id = old.id RETURNING m.id
"""

_CLOCK = "SELECT extract(epoch FROM now())::float8 AS now_s"


def prune(db: Database, older_than_s: float, most: int) -> int:
    """Forget finished messages, with their attempts, that ended longer ago than this. Never one that waits or is dead.

    Ids begin with the time of acceptance, so the primary key leads to the oldest. Returns how many it were, at most
    `most`: a small batch at a time keeps the tables healthy.
    """
    [clock] = db.all(_CLOCK)
    oldest_kept = ULID.from_timestamp(clock["now_s"] - older_than_s)
    params = {"before_id": f"msg_{oldest_kept}", "older_than_s": older_than_s, "most": most}
    return len(db.all(_PRUNE, params))


FOLDED_AT_ONCE = 1000
_FOLD_TALLIES = f"""
WITH apart AS (
    SELECT account_id, state, priority, slot FROM tallies WHERE slot <> 0 LIMIT {FOLDED_AT_ONCE} FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tallies t USING apart
    WHERE (t.account_id, t.state, t.priority, t.slot) = (apart.account_id, apart.state, apart.priority, apart.slot)
    RETURNING t.*
), together AS (
    INSERT INTO tallies AS t (account_id, state, priority, slot, n)
    SELECT account_id, state, priority, 0, sum(n) FROM gone GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n
)
SELECT count(*)::int AS n FROM gone
"""


def fold_tallies(db: Database) -> int:
    """Fold the backends' slots together, so that counts stay quick to read. Returns how many slots it folded."""
    folded = 0
    while n := db.transaction(lambda c: c.all(_FOLD_TALLIES))[0]["n"]:
        folded += n
        if n < FOLDED_AT_ONCE:
            break
    return folded


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


_COUNT_ACCOUNTS_WAITING = """
SELECT count(*)::int AS n FROM (
    SELECT FROM tallies t JOIN accounts a ON a.id = t.account_id AND (a.paused_at IS NULL OR a.paused_until IS NOT NULL)
    WHERE t.state IN ('scheduled', 'queued') GROUP BY t.account_id HAVING sum(t.n) > 0
) waiting
"""


def count_accounts_waiting(db: Database) -> int:
    """How many accounts should have a wake-up or a drain: those that wait, and those whose pause ends by itself."""
    row = db.one(_COUNT_ACCOUNTS_WAITING)
    return row["n"] if row else 0


def accounts_waiting(db: Database) -> list[str]:
    """Accounts that have something to send, now or later, and are not paused."""
    return [row["account_id"] for row in db.all(_ACCOUNTS_WAITING)]


_USES = """
SELECT coalesce(budget, account_id) AS budget, token,
       extract(epoch FROM CASE WHEN outcome IS NULL OR outcome = 'unknown' THEN greatest(deadline_at, ended_at)
                               ELSE ended_at END - clock_timestamp())::float8 AS ended_s,
       extract(epoch FROM clock_timestamp() - started_at)::float8 AS started_ago_s
FROM attempts
WHERE spent AND started_at > now() - (%(longest_s)s + 3600) * interval '1 second'
"""


def token_uses(db: Database, longest_s: float) -> list[Row]:
    """Every use of a token in the last `longest_s` seconds, all budgets at once: what a lost Redis is rebuilt from.

    A use ended with its answer; where none came, with its deadline.
    """
    return [row for row in db.all(_USES, {"longest_s": longest_s}) if row["ended_s"] > -longest_s]


def _line(row: Row) -> Line:
    return Line(row["account_id"], row["recipient_id"], row["priority"])


def _claim(row: Row) -> Claim:
    return Claim(
        message_id=row["id"],
        account_id=row["account_id"],
        recipient_id=row["recipient_id"],
        priority=row["priority"],
        content=row["content"],
        media_ids=tuple(row["media_ids"]),
        attempt=row["attempts"],
        tries=row["tries"],
        token=row["token"],
        request_id=row["request_id"],
        traceparent=row["traceparent"],
        due_s=row.get("due_s", 0.0),
        queued=row.get("queued", 0),
        doubt_s=row.get("doubt_s"),
        rekeyed=row.get("rekeyed", False),
        refusals=row["refusals"],
        throttles=row["throttles"],
        others_passed=row.get("others_passed", False),
    )
