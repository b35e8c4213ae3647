"""Accounts: their limits, keys, pauses and cooldowns."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from ratelimit import Limits
from workers.domain.actor import PACELINE
from workers.domain.events import AccountCoolingDown, AccountOpened, AccountPaused, AccountResting
from workers.domain.health import Closed, Rest, closed
from workers.domain.message import Claim, Line
from workers.store.schema import TALLY_RANK
from workers.store.session import Connection, Database, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """As the database has it. budget: the key of the tokens that it draws on; accounts under one credential have the
    same. limits: None for the default. sealed_key: its key upstream, encrypted (`workers.credentials`); None for the
    channel's. paused_s, cooldown_s: what is left of it, in seconds; paused_s is infinite for a pause without an end;
    0 for neither."""

    id: str
    channel: str
    budget: str
    limits: Limits | None
    sealed_key: str | None
    display_name: str | None = None
    paused_s: float = 0.0
    paused_until: datetime | None = None
    pause_reason: str | None = None
    paused_by: str | None = None
    paused_since: datetime | None = None
    cooldown_s: float = 0.0
    rest: Rest | None = None
    other_limits: tuple[Limits | None, ...] = ()
    """Limits of accounts that draw on the same budget, where they differ from its own."""
    credential: str | None = None
    """Fingerprint of the key that it sends with; None until one was taken."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def limits_in_force(self, default: Limits) -> Limits:
        """Its limits, `default` where it has none of its own. Where accounts that draw on the same budget have other
        limits, all of them hold."""
        own = self.limits or default
        return own.strictest(*(limits or default for limits in self.other_limits)) if self.other_limits else own

    def closed(self, cooldown_s: float = 0.0) -> Closed | None:
        """Why it sends nothing; None if it may. cooldown_s: of its tokens, which know of one sooner."""
        return closed(
            paused_s=self.paused_s,
            paused_by=self.paused_by,
            pause_reason=self.pause_reason,
            rest=self.rest,
            cooldown_s=max(self.cooldown_s, cooldown_s),
        )

    def __repr__(self) -> str:
        return f"Account({self.id})"


_COLUMNS = """
    a.id, a.channel, a.display_name, a.limits, a.api_key, a.pause_reason, a.paused_by, a.paused_until, a.paused_at,
    coalesce(a.budget, a.id) AS budget, a.credential, a.settings,
    ARRAY(SELECT DISTINCT b.limits FROM accounts b
          WHERE b.budget = a.budget AND b.limits IS DISTINCT FROM a.limits) AS other_limits,
    CASE WHEN a.paused_at IS NULL THEN 0
         WHEN a.paused_until IS NULL THEN 'infinity'::float8
         ELSE greatest(0, extract(epoch FROM a.paused_until - now())::float8) END AS paused_s,
    greatest(0, coalesce(extract(epoch FROM a.cooldown_until - now())::float8, 0)) AS cooldown_s,
    a.rest_kind, a.rest_since, a.rests, a.rest_error,
    greatest(0, extract(epoch FROM a.rest_until - now())::float8) AS rest_s
"""

_GET = f"SELECT {_COLUMNS} FROM accounts a WHERE a.id = %(account_id)s"
_LIST = f"SELECT {_COLUMNS} FROM accounts a WHERE %(ids)s::text[] IS NULL OR a.id = ANY(%(ids)s::text[]) ORDER BY a.id"


def get(db: Connection | Database, account_id: str) -> Account | None:
    row = db.one(_GET, {"account_id": account_id})
    return _account(row) if row else None


_BESIDE = f"""
SELECT {_COLUMNS} FROM accounts of_it JOIN accounts a ON a.budget = of_it.budget AND a.id <> of_it.id
WHERE of_it.id = %(account_id)s ORDER BY a.id
"""


def beside(c: Connection | Database, account_id: str) -> list[Account]:
    """The other accounts that draw on the account's budget."""
    return [_account(row) for row in c.all(_BESIDE, {"account_id": account_id})]


def all_of(db: Database, ids: list[str] | None = None) -> list[Account]:
    """The accounts of these ids, or all there are."""
    return [_account(row) for row in db.all(_LIST, {"ids": ids})]


_IN_LINE = f"""
SELECT {_COLUMNS} FROM tallies t JOIN accounts a ON a.id = t.account_id
WHERE t.state = 'queued' AND (a.paused_at IS NULL OR a.paused_until <= now())
  AND (a.cooldown_until IS NULL OR a.cooldown_until <= now())
  AND (a.rest_until IS NULL OR a.rest_until <= now())
GROUP BY a.id HAVING sum(t.n) > 0
"""


def in_line(db: Database) -> list[Account]:
    """Accounts that have messages in line, and no pause, cooldown or rest."""
    return [_account(row) for row in db.all(_IN_LINE)]


def limits_in_use(db: Database) -> set[Limits]:
    """The limits that accounts have of their own."""
    rows = db.all("SELECT DISTINCT limits FROM accounts WHERE limits IS NOT NULL")
    return {Limits.parse(row["limits"]) for row in rows}


class Later(NamedTuple):
    """So many messages of one rank that wait for the same moment: for their sendAt, or to be tried again."""

    due_at: datetime
    rank: int
    n: int


class LineAhead(NamedTuple):
    """Who goes before a message to the same recipient: the head of its line, which may go at `due_at`, and then so many
    held ones, one at a time. fresh: how many held ones of all the line are not redriven. redriven: whether the head is,
    and waits for its turn."""

    head_id: str
    due_at: datetime
    redriven: bool
    held: int
    fresh: int


@dataclass(frozen=True, slots=True)
class Standing:
    """An account as a new message finds it.

    at: when, by PostgreSQL's clock. depth: how many messages wait. in_line: how many of these may go now, by rank.
    later: those that wait for a time, by time. neighbours: for every other account that draws on the same budget, how
    many messages may go now. tokens: the tokens of the budget that messages have been put to of late. line: who goes
    before the new message to the same recipient; None if nobody does.
    """

    account: Account
    at: datetime
    depth: int
    in_line: Mapping[int, int]
    later: Sequence[Later]
    neighbours: Sequence[int]
    tokens: frozenset[str]
    line: LineAhead | None = None

    def ahead(self, rank: int, due_at: datetime | None = None) -> int:
        """How many would go before a new message of this rank that may go at this time; None: now. It goes behind all
        others of its rank that may go by then."""
        return self.ahead_by(rank)(due_at)

    def ahead_by(self, rank: int) -> Callable[[datetime | None], int]:
        """The same, for many messages of this rank: by the time that each may go at."""
        now = sum(n for other, n in self.in_line.items() if other >= rank)
        later = [group for group in self.later if group.rank >= rank]
        at, totals = [group.due_at for group in later], [0, *accumulate(group.n for group in later)]
        return lambda due_at: now + (totals[bisect_right(at, due_at)] if due_at else 0)


# Open attempts, and the latest few of all, which are read off the end of the primary key.
_TOKENS = """
    SELECT token FROM attempts WHERE coalesce(budget, account_id) = coalesce(a.budget, a.id) AND outcome IS NULL
    UNION
    SELECT token FROM (SELECT token, budget, account_id FROM attempts ORDER BY id DESC LIMIT 200) latest
    WHERE coalesce(latest.budget, latest.account_id) = coalesce(a.budget, a.id)
"""

# Messages that wait for a time are looked up, since no tally counts them by time; each part is a range of an index.
_SOONEST = 1000
_NEAREST = 10_000
_LATER = f"""
    SELECT due_at, rank, count(*)::int AS n, tried FROM (
        (SELECT due_at, 2 * priority + (NOT redriven)::int AS rank, false AS tried FROM messages
         WHERE account_id = a.id AND state = 'scheduled' AND due_at > greatest(now(), wanted.until)
         ORDER BY due_at LIMIT {_SOONEST})
        UNION ALL
        (SELECT due_at, 2 * priority + (NOT redriven)::int, false FROM messages
         WHERE account_id = a.id AND state = 'scheduled' AND due_at > now() AND due_at <= wanted.until
         ORDER BY due_at DESC LIMIT {_NEAREST})
        UNION ALL
        SELECT due_at, rank, true FROM unnest(t.queued) AS rank CROSS JOIN LATERAL (
            SELECT due_at FROM messages
            WHERE account_id = a.id AND priority = rank / 2 AND redriven = (mod(rank, 2) = 0) AND state = 'queued'
              AND due_at > now()
            ORDER BY due_at LIMIT {_SOONEST}
        ) retries
    ) each GROUP BY 1, 2, 4
"""


def line_head(account_id: str, recipient_id: str, priority: str) -> str:
    """SQL: the head of this line. LIMIT, so that it is looked up by the line, whatever the statistics say."""
    return f"""
        SELECT id AS head_id, due_at AS head_due_at, redriven AND state = 'queued' AS head_redriven FROM messages
        WHERE account_id = {account_id} AND recipient_id = {recipient_id} AND priority = {priority}
          AND state IN ('queued', 'sending', 'verifying')
        LIMIT 1"""


def line_held(account_id: str, recipient_id: str, priority: str, before: str | None = None) -> str:
    """SQL: how many are held in this line, as far as that is counted quickly: all of them, or those `before` this
    (due_at, seq); and how many of all are fresh."""
    earlier = f"FILTER (WHERE (due_at, seq) < ({before}))" if before else ""
    return f"""
        SELECT (count(*) {earlier})::int AS held, (count(*) FILTER (WHERE NOT redriven))::int AS fresh
        FROM (SELECT due_at, seq, redriven FROM messages
              WHERE account_id = {account_id} AND recipient_id = {recipient_id} AND priority = {priority}
                AND state = 'held'
              ORDER BY due_at, seq LIMIT {_SOONEST}) first"""


_STANDINGS = f"""
SELECT {_COLUMNS}, now() AS at, t.depth, t.ranks, t.in_line, later.*, line.*, ARRAY({_TOKENS}) AS tokens, ARRAY(
    SELECT waiting.n FROM accounts b CROSS JOIN LATERAL (
        SELECT sum(n)::int AS n FROM tallies WHERE account_id = b.id AND state IN ('held', 'queued')
    ) waiting
    WHERE b.budget = a.budget AND b.id <> a.id AND (b.paused_at IS NULL OR b.paused_until <= now()) AND waiting.n > 0
) AS neighbours
FROM unnest(%(account_ids)s::text[], %(until)s::timestamptz[]) AS wanted (id, until)
JOIN accounts a ON a.id = wanted.id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(n), 0)::int AS depth, array_agg(rank) AS ranks, array_agg(in_line) AS in_line,
           array_agg(rank) FILTER (WHERE queued > 0) AS queued
    FROM (SELECT {TALLY_RANK} AS rank, sum(n) AS n,
                 coalesce(sum(n) FILTER (WHERE state <> 'scheduled'), 0)::int AS in_line,
                 coalesce(sum(n) FILTER (WHERE state = 'queued'), 0) AS queued
          FROM tallies WHERE account_id = a.id AND state IN ('scheduled', 'held', 'queued') GROUP BY 1) ranked
) t
CROSS JOIN LATERAL (
    SELECT array_agg(due_at) AS later_at, array_agg(rank) AS later_rank, array_agg(n) AS later_n,
           array_agg(tried) AS later_tried
    FROM ({_LATER}) grouped
) later
LEFT JOIN LATERAL (
    SELECT head.*, held.* FROM ({line_head("a.id", "%(recipient_id)s", "%(priority)s::smallint")}) head
    CROSS JOIN LATERAL ({line_held("a.id", "%(recipient_id)s", "%(priority)s::smallint")}) held
) line ON true
"""


def standings(db: Database, wanted: Mapping[str, datetime | None]) -> dict[str, Standing]:
    """Of each of these accounts that there is, with the messages that wait for a time until then (if that is to come),
    and soon after: as many as it takes to say when a message goes. In numbers: the ten thousand scheduled ones nearest
    before, the thousand soonest after, and the thousand soonest retries of each rank."""
    params = {"account_ids": list(wanted), "until": list(wanted.values()), "recipient_id": None, "priority": None}
    return {row["id"]: _standing(row) for row in db.all(_STANDINGS, params)}


def standing(db: Database, line: Line, until: datetime | None) -> Standing | None:
    """The same of one account, with who goes before a new message of this line. None if there is no such account."""
    params = {
        "account_ids": [line.account_id],
        "until": [until],
        "recipient_id": line.recipient_id,
        "priority": line.priority,
    }
    row = db.one(_STANDINGS, params)
    return _standing(row) if row else None


_PUT = """
INSERT INTO accounts AS a (id, channel, limits, display_name, api_key, settings)
VALUES (%(id)s, %(channel)s, %(limits)s, %(display_name)s, %(sealed_key)s, %(settings)s)
ON CONFLICT (id) DO UPDATE SET channel = EXCLUDED.channel, limits = EXCLUDED.limits,
    display_name = EXCLUDED.display_name, settings = EXCLUDED.settings,
    api_key = CASE WHEN %(clear_key)s THEN NULL ELSE coalesce(EXCLUDED.api_key, a.api_key) END,
    key_since = CASE WHEN %(clear_key)s OR EXCLUDED.api_key IS NOT NULL THEN clock_timestamp() ELSE a.key_since END
RETURNING (xmax = 0) AS created
"""


def put(
    c: Connection | Database,
    account_id: str,
    *,
    channel: str = "onlyfans",
    limits: Limits | None = None,
    display_name: str | None = None,
    sealed_key: str | None = None,
    clear_key: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> bool:
    """Create an account, or give it these properties; a key of None leaves the one it has, unless it is to be cleared.
    True if it was created."""
    row = c.one(
        _PUT,
        {
            "id": account_id,
            "channel": channel,
            "limits": None if limits is None else str(limits),
            "display_name": display_name,
            "sealed_key": sealed_key,
            "clear_key": clear_key,
            "settings": Jsonb(dict(settings or {})),
        },
    )
    return bool(row and row["created"])


def sealed_keys(db: Database) -> list[tuple[str, str]]:
    """(account id, its key as it is stored) of every account that has a key of its own."""
    rows = db.all("SELECT id, api_key FROM accounts WHERE api_key IS NOT NULL ORDER BY id")
    return [(row["id"], row["api_key"]) for row in rows]


_RESEAL = "UPDATE accounts SET api_key = %(new)s WHERE id = %(account_id)s AND api_key = %(old)s RETURNING id"


def reseal(db: Connection | Database, account_id: str, old: str, new: str) -> bool:
    """Store the same key under another encryption. False if somebody gave the account another key meanwhile."""
    return bool(db.all(_RESEAL, {"account_id": account_id, "old": old, "new": new}))


_PAUSE = """
UPDATE accounts SET paused_at = now(), paused_until = %(until)s, pause_reason = %(reason)s, paused_by = 'admin'
WHERE id = %(account_id)s RETURNING id
"""


def pause(c: Connection | Database, account_id: str, reason: str, until: datetime | None = None) -> bool:
    """Hold the account's messages back until a time, or until it is resumed. False if there is no such account."""
    return bool(c.all(_PAUSE, {"account_id": account_id, "reason": reason, "until": until}))


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


_RESUME = """
UPDATE accounts SET paused_at = NULL, paused_until = NULL, pause_reason = NULL, paused_by = NULL,
    refused = '{}', refused_at = NULL
WHERE id = %(account_id)s RETURNING id
"""


def resume(c: Connection | Database, account_id: str) -> bool:
    """End a pause. False if there is no such account."""
    return bool(c.all(_RESUME, {"account_id": account_id}))


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


def _standing(row: Row) -> Standing:
    in_line = dict(zip(row["ranks"] or (), row["in_line"] or (), strict=True))
    found = zip(*(row[name] or () for name in ("later_at", "later_rank", "later_n", "later_tried")), strict=True)
    later = []
    for due_at, rank, n, tried in sorted(found, key=lambda one: (one[0], -one[1])):
        later.append(Later(due_at.astimezone(UTC), rank, n))
        if tried:
            in_line[rank] = max(0, in_line[rank] - n)
    return Standing(
        account=_account(row),
        at=row["at"].astimezone(UTC),
        depth=row["depth"],
        in_line=in_line,
        later=later,
        neighbours=row["neighbours"],
        tokens=frozenset(row["tokens"]),
        line=line_ahead(row) if row["head_id"] else None,
    )


def line_ahead(row: Row) -> LineAhead:
    return LineAhead(
        head_id=row["head_id"],
        due_at=row["head_due_at"],
        redriven=row["head_redriven"],
        held=row["held"],
        fresh=row["fresh"],
    )


def _limits(written: str | None) -> Limits | None:
    return Limits.parse(written) if written else None


def _account(row: Row) -> Account:
    return Account(
        id=row["id"],
        channel=row["channel"],
        limits=_limits(row["limits"]),
        sealed_key=row["api_key"],
        display_name=row["display_name"],
        paused_s=row["paused_s"],
        paused_until=row["paused_until"] if row["paused_s"] else None,
        pause_reason=row["pause_reason"] if row["paused_s"] else None,
        paused_by=row["paused_by"] if row["paused_s"] else None,
        paused_since=row["paused_at"] if row["paused_s"] else None,
        cooldown_s=row["cooldown_s"],
        budget=row["budget"],
        other_limits=tuple(map(_limits, row["other_limits"])),
        credential=row["credential"],
        settings=row["settings"],
        rest=_rest(row),
    )


def _rest(row: Row) -> Rest | None:
    if row["rest_kind"] is None:
        return None
    return Rest(
        kind=row["rest_kind"],
        since=row["rest_since"],
        times=row["rests"],
        left_s=row["rest_s"],
        error=row["rest_error"],
    )
