"""What an attempt came to, and where the message goes from there. A stale claim changes nothing (see `claims`)."""

from collections.abc import Sequence
from typing import Any

from workers.domain.decisions import VERIFY_AFTER_S, DeadLetterReason, DeferralReason
from workers.domain.errors import StaleClaim
from workers.domain.events import (
    Buried,
    Deferred,
    LateAnswer,
    LookupBegun,
    RetryScheduled,
    Sent,
)
from workers.domain.message import Claim, Line
from workers.domain.outcome import Outcome
from workers.store.lines import elect_heads
from workers.store.plans import unindexed
from workers.store.session import Connection

# What an attempt came to; shared by every way of recording one. The number alone does not tell whose attempt it is: a
# deferral gives it back, and the next claim takes it again. The token does.
_CLOSE_ATTEMPT = """
closed AS (
    UPDATE attempts SET outcome = %(outcome)s, ended_at = clock_timestamp(), counted = %(counted)s, spent = %(spent)s,
        deferral = %(deferral)s, http_status = %(http_status)s, latency_ms = %(latency_ms)s, error = %(error)s
    WHERE message_id = %(message_id)s AND number = %(attempt)s AND token = %(token)s AND outcome IS NULL
    RETURNING message_id
)"""


_MARK_SENT = f"""
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
FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'sending' AND m.attempts = closed.number
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
FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'sending' AND m.attempts = %(attempt)s
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
FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'sending' AND m.attempts = %(attempt)s
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


# When the history must show each attempt of the message that may have arrived: until an attempt's deadline the upstream
# may work on it, even if its connection was cut.
SEEN_BY = """(
    SELECT max(a.deadline_at) + %(verify_after_s)s * interval '1 second' FROM attempts a
    WHERE a.message_id = m.id AND a.counted AND a.outcome = 'unknown' AND a.number > m.attempts - m.tries)"""


# Of an attempt that was withheld nothing is counted: its number goes to the next one.
_UNCOUNTED = "attempts = m.attempts - (NOT %(counted)s)::int, tries = m.tries - (NOT %(counted)s)::int"


_BURY = f"""
WITH {_CLOSE_ATTEMPT}, dead AS (
    UPDATE messages m SET state = 'failed', ended_at = clock_timestamp(), {_UNCOUNTED}, {_REFUSALS}
    FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'sending' AND m.attempts = %(attempt)s
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
    due_at = greatest(clock_timestamp() + %(delay_s)s * interval '1 second', {SEEN_BY})
FROM closed WHERE m.id = closed.message_id AND {unindexed("m.state")} = 'sending' AND m.attempts = %(attempt)s
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
_ACCEPT_LATE_ANSWER = f"""
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
  AND {unindexed("m.state")} IN ('scheduled', 'held', 'queued', 'sending', 'verifying', 'failed')
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


_MARK_PROVED = f"""
WITH proved AS (
    UPDATE messages SET state = 'sent', sent_at = clock_timestamp(), ended_at = clock_timestamp()
    WHERE id = %(message_id)s AND upstream_id IS NOT NULL AND {unindexed("state")} IN ('queued', 'verifying', 'failed')
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
    close_proved(c, claim.message_id, claim.line)
    return True


def close_proved(c: Connection, message_id: str, line: Line) -> None:
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
