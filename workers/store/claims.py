"""Claims: a drain takes messages to send, and an attempt for each is on record before its request leaves.

A race is closed here and in `outcomes`: *a stale claim*. Each record names the attempt's number. A drain whose message
was rescued meanwhile changes nothing, and learns of it (`StaleClaim`).
"""

from collections.abc import Sequence

from ratelimit import Origin
from workers.domain.events import TakenBack
from workers.domain.message import Claim
from workers.store.lines import line_of
from workers.store.outcomes import close_proved
from workers.store.plans import unindexed
from workers.store.session import Connection, Database, Row

CLAIMED_AT_ONCE = 128

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
    FROM next WHERE m.id = next.id AND {unindexed("m.state")} = 'queued'
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
    draws on another by now. probe: also of an account that rests; see `closures.begin_probe`.
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
    return [claim_of(row) for row in rows if row["id"]]


_TAKE_BACK = f"""
WITH closed AS (
    UPDATE attempts SET outcome = 'failed', ended_at = clock_timestamp(), counted = false, spent = false,
        deferral = 'interrupted', error = 'claimed, but nobody knew'
    WHERE token = ANY(%(tokens)s::text[]) AND worker = %(worker)s AND outcome IS NULL
    RETURNING message_id, number
)
UPDATE messages m SET state = 'queued', attempts = m.attempts - 1, tries = m.tries - 1
FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'sending' AND m.attempts = closed.number
RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.upstream_id
"""


def take_back(c: Connection, tokens: Sequence[str], worker: int) -> TakenBack:
    """Undo claims under these tokens whose COMMIT was never confirmed to this worker: nothing of them left. If an
    earlier attempt of such a message turned out to have arrived, the message is sent."""
    rows = c.all(_TAKE_BACK, {"tokens": list(tokens), "worker": worker}) if tokens else []
    for row in rows:
        if row["upstream_id"] is not None:
            close_proved(c, row["id"], line_of(row))
    return TakenBack(count=len(rows))


def claim_of(row: Row) -> Claim:
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
