"""Why an account sends nothing: it is paused, it rests and is probed, or it cools down.

A pause belongs to one account, or to all under a credential that is refused. A rest and a cooldown belong to an
identity: to every account that draws on the same budget. Each statement locks these accounts in one order, so that two
statements never wait for each other.
"""

from datetime import datetime

from workers.domain.actor import PACELINE
from workers.domain.events import AccountCoolingDown, AccountOpened, AccountPaused, AccountResting
from workers.domain.message import Claim
from workers.store.session import Connection, Database, Row

_PAUSE = """
UPDATE accounts SET paused_at = now(), paused_until = %(until)s, pause_reason = %(reason)s, paused_by = 'admin'
WHERE id = %(account_id)s RETURNING id
"""


def pause(c: Connection | Database, account_id: str, reason: str, until: datetime | None = None) -> bool:
    """Hold the account's messages back until a time, or until it is resumed. False if there is no such account."""
    return bool(c.all(_PAUSE, {"account_id": account_id, "reason": reason, "until": until}))


_RESUME = """
UPDATE accounts SET paused_at = NULL, paused_until = NULL, pause_reason = NULL, paused_by = NULL,
    refused = '{}', refused_at = NULL
WHERE id = %(account_id)s RETURNING id
"""


def resume(c: Connection | Database, account_id: str) -> bool:
    """End a pause. False if there is no such account."""
    return bool(c.all(_RESUME, {"account_id": account_id}))


_CLOSE = """
UPDATE accounts SET paused_at = now(), paused_until = NULL, pause_reason = %(reason)s, paused_by = 'upstream',
    refused = '{}', refused_at = NULL
WHERE id = %(account_id)s AND (paused_at IS NULL OR paused_until <= now()) RETURNING id
"""


def close(c: Connection, account_id: str, reason: str) -> list[AccountPaused]:
    """The upstream refuses the account: pause it until somebody resumes it. Returns nothing if an admin or another
    answer of the same kind has paused it."""
    return _paused(c.all(_CLOSE, {"account_id": account_id, "reason": reason}), reason)


_TOGETHER = """
together AS (
    SELECT b.id FROM accounts of_it JOIN accounts b ON b.id = of_it.id OR b.budget = of_it.budget
    WHERE of_it.id = %(account_id)s
    ORDER BY b.id FOR NO KEY UPDATE OF b
)"""
"""The accounts that draw on one budget, because they send with the same credential; the one itself among them. NO KEY:
an INSERT of a message refers to its account, and must not wait for this lock."""


_CLOSE_CREDENTIAL = f"""
WITH {_TOGETHER}
UPDATE accounts a SET paused_at = now(), paused_until = NULL, pause_reason = %(reason)s, paused_by = 'upstream'
FROM together WHERE a.id = together.id AND (a.paused_at IS NULL OR a.paused_until <= now()) RETURNING a.id
"""


def close_credential(c: Connection, account_id: str, reason: str) -> list[AccountPaused]:
    """The upstream refuses the account's credential: pause every account under it, as `close` does one."""
    return _paused(c.all(_CLOSE_CREDENTIAL, {"account_id": account_id, "reason": reason}), reason)


def _paused(rows: list[Row], reason: str) -> list[AccountPaused]:
    return [AccountPaused(account_id=row["id"], reason=reason, by=PACELINE.subject) for row in rows]


# A recipient counts once, and a message that got through since the last refusal ends the row. Requests go side by side
# and refusals are often answered first. So the row is not complete while a request is out that began no later than this
# one. refused_at is now(), the start of the transaction: it also records what got through beside the refusal.
_NOTE_REFUSAL = """
WITH row AS (
    SELECT a.id, mine.started_at, CASE WHEN a.refused_at IS NULL OR EXISTS (
        SELECT FROM attempts t WHERE t.account_id = a.id AND t.outcome = 'accepted' AND t.ended_at > a.refused_at
            AND t.started_at > a.refused_at - interval '1 hour'  -- only when attempts began is indexed
    ) THEN '{}' ELSE a.refused END AS refused
    FROM accounts a JOIN attempts mine
        ON mine.message_id = %(message_id)s AND mine.number = %(attempt)s AND mine.token = %(token)s
    WHERE a.id = %(account_id)s FOR NO KEY UPDATE OF a
)
UPDATE accounts a SET refused_at = now(),
    refused = CASE WHEN %(recipient_id)s = ANY(row.refused) THEN row.refused
                   ELSE array_append(row.refused, %(recipient_id)s) END
FROM row WHERE a.id = row.id
RETURNING CASE WHEN EXISTS (
    SELECT FROM attempts t WHERE t.outcome IS NULL AND t.account_id = a.id AND t.started_at <= row.started_at
) THEN 0 ELSE cardinality(a.refused) END AS n
"""


def note_refusal(c: Connection, claim: Claim) -> int:
    """A recipient was refused, and it is not certain whose fault that is. Returns how many different ones were refused
    in a row, with no message of the account accepted in between; 0 while that is not certain, because an attempt that
    began no later has no answer yet."""
    row = c.one(
        _NOTE_REFUSAL,
        {
            "account_id": claim.account_id,
            "recipient_id": claim.recipient_id,
            "message_id": claim.message_id,
            "attempt": claim.attempt,
            "token": claim.token,
        },
    )
    return row["n"] if row else 0


_REST = f"""
WITH {_TOGETHER}
UPDATE accounts a SET rest_kind = %(kind)s, rest_error = %(error)s, rests = a.rests + 1,
    rest_since = coalesce(a.rest_since, clock_timestamp()),
    rest_until = clock_timestamp() + %(for_s)s * interval '1 second'
FROM together WHERE a.id = together.id AND (a.rest_until IS NULL OR %(probed)s::boolean) RETURNING a.id
"""


def rest(c: Connection, account_id: str, kind: str, error: str, for_s: float, *, probed: bool) -> list[AccountResting]:
    """The identity of the account rests for `for_s` seconds: nothing is claimed for any account that shares it. While
    it rests already, only a probe that failed makes it rest anew."""
    params = {"account_id": account_id, "kind": kind, "error": error, "for_s": for_s, "probed": probed}
    return [AccountResting(account_id=row["id"], kind=kind, reason=error) for row in c.all(_REST, params)]


_BEGIN_PROBE = f"""
WITH {_TOGETHER}
UPDATE accounts a SET rest_until = clock_timestamp() + %(for_s)s * interval '1 second'
FROM together WHERE a.id = together.id AND a.rest_until <= clock_timestamp() RETURNING a.id
"""


def begin_probe(db: Database, account_id: str, for_s: float) -> bool:
    """Take the right to probe a resting identity with one message, for `for_s` seconds: nobody else does meanwhile."""
    params = {"account_id": account_id, "for_s": for_s}
    return db.transaction(lambda c: bool(c.all(_BEGIN_PROBE, params)))


_END_PROBE = f"""
WITH {_TOGETHER}
UPDATE accounts a SET rest_until = clock_timestamp()
FROM together WHERE a.id = together.id AND a.rest_until IS NOT NULL
"""


def end_probe(c: Connection | Database, account_id: str) -> None:
    """Give that right back: nothing was sent."""
    c.all(_END_PROBE, {"account_id": account_id})


_OPEN = f"""
WITH {_TOGETHER}
UPDATE accounts a SET rest_kind = NULL, rest_error = NULL, rest_since = NULL, rest_until = NULL, rests = 0
FROM together WHERE a.id = together.id AND a.rest_until IS NOT NULL RETURNING a.id
"""


def open_again(c: Connection | Database, account_id: str) -> list[AccountOpened]:
    """The upstream serves the identity again: every account that rested with it may go on."""
    return [AccountOpened(account_id=row["id"]) for row in c.all(_OPEN, {"account_id": account_id})]


# The account and those that draw on the same budget, which is to say: those under its credential. Locked in one order
# by every statement, so that two of them never wait for each other.
_COOL_DOWN = f"""
WITH {_TOGETHER}
UPDATE accounts a SET cooldown_until = greatest(cooldown_until, clock_timestamp() + %(for_s)s * interval '1 second')
FROM together WHERE a.id = together.id RETURNING a.id
"""


def cool_down(c: Connection | Database, account_id: str, for_s: float) -> list[AccountCoolingDown]:
    """Note that the upstream closed the budget that the account draws on: for every account that draws on it. A
    cooldown is only ever extended."""
    rows = c.all(_COOL_DOWN, {"account_id": account_id, "for_s": for_s})
    return [AccountCoolingDown(account_id=row["id"], for_s=for_s) for row in rows]


_LIFT_COOLDOWN = f"""
WITH {_TOGETHER}
UPDATE accounts a SET cooldown_until = NULL FROM together WHERE a.id = together.id RETURNING a.id
"""


def lift_cooldown(c: Connection | Database, account_id: str) -> list[str]:
    """Let the budget that the account draws on be used again before its cooldown is over. Returns the accounts that
    draw on it."""
    return [row["id"] for row in c.all(_LIFT_COOLDOWN, {"account_id": account_id})]
