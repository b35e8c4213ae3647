"""What goes before a new message: an account's backlog as the message finds it, for the estimate of its time."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import NamedTuple

from workers.domain.message import Line
from workers.store.accounts import COLUMNS, Account, account_of
from workers.store.schema import TALLY_RANK
from workers.store.session import Database, Row


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
SELECT {COLUMNS}, now() AS at, t.depth, t.ranks, t.in_line, later.*, line.*, ARRAY({_TOKENS}) AS tokens, ARRAY(
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


def _standing(row: Row) -> Standing:
    in_line = dict(zip(row["ranks"] or (), row["in_line"] or (), strict=True))
    found = zip(*(row[name] or () for name in ("later_at", "later_rank", "later_n", "later_tried")), strict=True)
    later = []
    for due_at, rank, n, tried in sorted(found, key=lambda one: (one[0], -one[1])):
        later.append(Later(due_at.astimezone(UTC), rank, n))
        if tried:
            in_line[rank] = max(0, in_line[rank] - n)
    return Standing(
        account=account_of(row),
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
