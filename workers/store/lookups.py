"""Messages with an unknown outcome: which to look up in the upstream's records, and what that proved."""

from collections.abc import Collection
from dataclasses import dataclass

from workers.domain.decisions import DeadLetterReason
from workers.domain.errors import StaleClaim
from workers.domain.lookup import same_text
from workers.domain.message import Claim
from workers.store.claims import claim_of
from workers.store.lines import elect_heads
from workers.store.plans import unindexed
from workers.store.session import Connection, Database


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


_CLAIM_LOOKUP = f"""
WITH due AS (SELECT * FROM (
    SELECT id FROM messages WHERE state = 'verifying' AND due_at <= now() AND account_id <> ALL(%(busy)s::text[])
    ORDER BY due_at LIMIT %(want)s FOR UPDATE SKIP LOCKED
) wanted LIMIT 100)
UPDATE messages m SET lookups = m.lookups + 1, due_at = clock_timestamp() + %(lease_s)s * interval '1 second'
FROM due WHERE m.id = due.id AND {unindexed("m.state")} = 'verifying'
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


def claim_lookup(db: Database, lease_s: float, *, busy: Collection[str] = ()) -> Lookup | None:
    """Take the message whose lookup has been due longest, of all but the `busy` accounts, for `lease_s` seconds: if it
    is not settled by then, it is due again. Whoever takes one after another so lets accounts take turns: one with a
    thousand doubtful messages, whose history hangs, keeps no other waiting."""
    row = db.one(_CLAIM_LOOKUP, {"want": 1, "lease_s": lease_s, "busy": list(busy)})
    if row is None:
        return None
    return Lookup(claim_of(row | {"token": ""}), row["lookups"], frozenset(row["known_ids"] or ()))


_CONFIRM_SENT = f"""
WITH known AS (
    UPDATE attempts SET outcome = 'accepted', error = concat_ws('; ', error, 'looked up: it arrived'),
        ended_at = greatest(ended_at, deadline_at)  -- nobody knows when it arrived, only that it was not later
    WHERE message_id = %(message_id)s AND number = %(attempt)s AND counted AND outcome = 'unknown'
)
UPDATE messages SET state = 'sent', sent_at = clock_timestamp(), ended_at = clock_timestamp(),
    upstream_id = %(upstream_id)s
WHERE id = %(message_id)s AND {unindexed("state")} = 'verifying' AND attempts = %(attempt)s
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
    """Until the end of the transaction nobody else decides what was found in this chat: two lookups at once must not
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


_CONFIRM_ABSENT = f"""
WITH known AS (
    -- For the tokens it ended with its deadline all the same: no answer came, and the upstream may have seen it.
    UPDATE attempts SET outcome = 'failed', ended_at = greatest(ended_at, deadline_at),
        error = concat_ws('; ', error, 'looked up: it did not arrive')
    WHERE message_id = %(message_id)s AND number <= %(attempt)s AND number > %(attempt)s - %(tries)s
      AND counted AND outcome = 'unknown'
)
UPDATE messages SET state = 'queued', due_at = clock_timestamp()
WHERE id = %(message_id)s AND {unindexed("state")} = 'verifying' AND attempts = %(attempt)s
RETURNING id
"""


def confirm_absent(c: Connection, claim: Claim) -> None:
    """The upstream's history proves that it did not arrive: it may go again."""
    params = {"message_id": claim.message_id, "attempt": claim.attempt, "tries": claim.tries}
    if not c.all(_CONFIRM_ABSENT, params):
        raise StaleClaim(claim.message_id, claim.attempt)


_LOOK_AGAIN = f"""
UPDATE messages SET due_at = clock_timestamp() + %(delay_s)s * interval '1 second',
    lookups = lookups - (NOT %(counted)s)::int
WHERE id = %(message_id)s AND {unindexed("state")} = 'verifying' AND attempts = %(attempt)s
RETURNING id
"""


def look_again(c: Connection, claim: Claim, delay_s: float, *, counted: bool = True) -> None:
    """The history proved nothing, or could not even be asked (then it is not `counted`): once more in `delay_s`."""
    params = {"message_id": claim.message_id, "attempt": claim.attempt, "delay_s": delay_s, "counted": counted}
    if not c.all(_LOOK_AGAIN, params):
        raise StaleClaim(claim.message_id, claim.attempt)


_BURY_UNVERIFIED = f"""
WITH dead AS (
    UPDATE messages SET state = 'failed', ended_at = clock_timestamp()
    WHERE id = %(message_id)s AND {unindexed("state")} = 'verifying' AND attempts = %(attempt)s
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
