"""What people ask of the store: one message whole, lists, counts. Reads only.

Every query takes the accounts the caller may know of (`scope`; None for all): a message outside it does not exist.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Boolean, ColumnElement, Select, and_, false, func, literal_column, not_, select

from workers.domain.decisions import DeadLetterReason
from workers.domain.filters import FailureFilter, MessageFilter, Scope
from workers.domain.state import State
from workers.store.backlog import LineAhead, line_ahead, line_head, line_held
from workers.store.lines import line_rests
from workers.store.schema import TALLY_RANK, Attempt, DeadLetter, Message
from workers.store.session import Database, Row


def message(db: Database, message_id: str, scope: Scope) -> Row | None:
    if "\0" in message_id:  # PostgreSQL cannot even be asked
        return None
    rows = db.select(_messages(scope).where(Message.id == message_id))
    return rows[0] if rows else None


def messages(db: Database, wanted: MessageFilter, scope: Scope, limit: int) -> list[Row]:
    """Newest first."""
    query = _messages(scope)
    if wanted.states:
        query = query.where(Message.state.in_([str(state) for state in wanted.states]))
    if wanted.recipient_id is not None:
        query = query.where(Message.recipient_id == wanted.recipient_id)
    if wanted.account_id is not None:
        query = query.where(Message.account_id == wanted.account_id)
    if wanted.batch_id is not None:
        query = query.where(Message.batch_id == wanted.batch_id)
    if wanted.before_id is not None:
        query = query.where(Message.id < wanted.before_id)
    return db.select(query.order_by(Message.id.desc()).limit(limit))


def attempts(db: Database, message_id: str) -> list[Row]:
    """Everything that was sent out for a message, deferrals included, oldest first."""
    table = Attempt.__table__
    return db.select(select(table).where(Attempt.message_id == message_id).order_by(Attempt.id))


def failures(db: Database, wanted: FailureFilter, scope: Scope, limit: int, offset: int) -> tuple[list[Row], int]:
    """Open dead letters, latest first, each with its `letter_id`, and how many match in all, whatever the cursor."""
    joined = DeadLetter.__table__.join(Message.__table__, Message.id == DeadLetter.message_id)
    where = and_(*_failure_conditions(wanted, scope))
    total = db.select(select(func.count().label("n")).select_from(joined).where(where))[0]["n"]
    if wanted.before_id is not None:
        where = and_(where, DeadLetter.id < wanted.before_id)
    page = (
        select(
            Message.__table__,
            DeadLetter.id.label("letter_id"),
            DeadLetter.reason,
            DeadLetter.error.label("failure_error"),
            DeadLetter.http_status,
            DeadLetter.failed_at,
        )
        .select_from(joined)
        .where(where)
        .order_by(DeadLetter.id.desc())
        .limit(limit)
        .offset(offset)
    )
    return db.select(page), total


class Failed(NamedTuple):
    """How many messages of an account were given up. expired: those of them whose expiresAt has passed meanwhile.
    least: the lowest priority of the others; None if there are none. last_id: the latest of their dead letters."""

    account_id: str
    n: int
    expired: int
    least: int | None
    last_id: int

    @property
    def going(self) -> int:
        """How many may still be sent."""
        return self.n - self.expired


_EXPIRED = func.coalesce(Message.expires_at <= func.now(), false())


def failed(db: Database, wanted: FailureFilter, scope: Scope, *, include_unknown: bool) -> list[Failed]:
    """What matches of the open dead letters, account by account."""
    query = (
        select(
            DeadLetter.account_id,
            func.count().label("n"),
            func.count().filter(_EXPIRED).label("expired"),
            func.min(Message.priority).filter(not_(_EXPIRED)).label("least"),
            func.max(DeadLetter.id).label("last_id"),
        )
        .join(Message, Message.id == DeadLetter.message_id)
        .where(and_(*_redrive_conditions(wanted, scope, include_unknown)))
        .group_by(DeadLetter.account_id)
    )
    return [Failed(**row) for row in db.select(query)]


def failed_ids(
    db: Database, wanted: FailureFilter, scope: Scope, *, include_unknown: bool, after: int, up_to: int, limit: int
) -> list[tuple[int, str]]:
    """(dead letter, message) of the next of those that match and may still be sent, oldest failure first."""
    query = (
        select(DeadLetter.id, DeadLetter.message_id)
        .join(Message, Message.id == DeadLetter.message_id)
        .where(and_(*_redrive_conditions(wanted, scope, include_unknown), not_(_EXPIRED)))
        .where(DeadLetter.id > after, DeadLetter.id <= up_to)
        .order_by(DeadLetter.id)
        .limit(limit)
    )
    return [(row["id"], row["message_id"]) for row in db.select(query)]


def dead_letters(db: Database, message_id: str) -> list[Row]:
    """Every time a message was given up, oldest first."""
    return db.select(select(DeadLetter.__table__).where(DeadLetter.message_id == message_id).order_by(DeadLetter.id))


_COUNTS = """
SELECT account_id, state, sum(n)::int AS n FROM tallies
WHERE %(scope)s::text[] IS NULL OR account_id = ANY(%(scope)s::text[])
GROUP BY account_id, state HAVING sum(n) > 0
"""


def counts(db: Database, scope: Scope) -> dict[str, dict[State, int]]:
    """How many messages each account has in each counted state; accounts with none are missing."""
    found: dict[str, dict[State, int]] = {}
    for row in db.all(_COUNTS, {"scope": None if scope is None else list(scope)}):
        found.setdefault(row["account_id"], {})[State(row["state"])] = row["n"]
    return found


# From the end: a page begins with the newest messages, and few stand behind those. Each rank is read once, from the
# first of its wanted messages on, however many are wanted. Held and queued apart, because each has a partial index of
# its own; together they would be looked for in all of the account's history. OFFSET 0 has each of them looked up;
# joined otherwise, all of an account would be read.
_AHEAD = f"""
WITH wanted AS MATERIALIZED (
    SELECT id, account_id, priority, redriven, due_at, seq, 2 * priority + (NOT redriven)::int AS rank,
           greatest(due_at, now()) AS may_go_at
    FROM messages WHERE id = ANY(%(message_ids)s::text[])
), first AS MATERIALIZED (
    SELECT DISTINCT ON (account_id, priority, redriven) account_id, priority, redriven, due_at, seq
    FROM wanted ORDER BY account_id, priority, redriven, due_at, seq
), line AS (
    SELECT first.account_id, first.priority, first.redriven, o.due_at, o.seq, NULL AS id
    FROM first CROSS JOIN LATERAL (
        SELECT due_at, seq FROM messages
        WHERE account_id = first.account_id AND priority = first.priority AND redriven = first.redriven
          AND state = 'queued' AND (due_at, seq) >= (first.due_at, first.seq)
        UNION ALL
        SELECT due_at, seq FROM messages
        WHERE account_id = first.account_id AND priority = first.priority AND redriven = first.redriven
          AND state = 'held' AND (due_at, seq) >= (first.due_at, first.seq)
    ) o
    UNION ALL
    SELECT account_id, priority, redriven, due_at, seq, id FROM wanted
), place AS (
    SELECT id, count(*) FILTER (WHERE id IS NULL) OVER (
               PARTITION BY account_id, priority, redriven ORDER BY due_at DESC, seq DESC, id DESC NULLS FIRST
               ROWS UNBOUNDED PRECEDING
           ) AS from_here
    FROM line
), too_late AS (
    SELECT account_id, rank, may_go_at, (
        SELECT count(*) FROM generate_series(rank + 1, 21) AS higher CROSS JOIN LATERAL (
            SELECT FROM messages
            WHERE account_id = moment.account_id AND priority = higher / 2 AND redriven = (mod(higher, 2) = 0)
              AND state = 'queued' AND due_at > moment.may_go_at
            OFFSET 0
        ) retries
    ) AS n
    FROM (SELECT DISTINCT account_id, rank, may_go_at FROM wanted) moment
), schedule AS (
    SELECT last.account_id, last.rank AS own, o.due_at, o.rank, o.seq, NULL AS id
    FROM (SELECT account_id, rank, max(due_at) AS due_at FROM wanted WHERE due_at > now() GROUP BY 1, 2) last
    CROSS JOIN LATERAL (
        SELECT due_at, 2 * priority + (NOT redriven)::int AS rank, seq FROM messages
        WHERE account_id = last.account_id AND state = 'scheduled' AND due_at <= last.due_at
        OFFSET 0
    ) o
    WHERE o.rank >= last.rank
    UNION ALL
    SELECT account_id, rank, due_at, rank, seq, id FROM wanted WHERE due_at > now()
), sooner AS (
    SELECT id, count(*) FILTER (WHERE id IS NULL) OVER (
               PARTITION BY account_id, own ORDER BY due_at, rank DESC, seq, id NULLS LAST ROWS UNBOUNDED PRECEDING
           ) AS n
    FROM schedule
)
SELECT id, (coalesce(
    (SELECT sum(n) FROM tallies
     WHERE account_id = wanted.account_id AND state IN ('held', 'queued') AND {TALLY_RANK} >= wanted.rank), 0)
    - place.from_here - too_late.n + coalesce(sooner.n, 0))::int AS ahead
FROM wanted JOIN place USING (id) JOIN too_late USING (account_id, rank, may_go_at) LEFT JOIN sooner USING (id)
"""


def ahead_of(db: Database, message_ids: Sequence[str]) -> dict[str, int]:
    """How many waiting messages go before each of these: those that may go by the time that it may."""
    return {row["id"]: row["ahead"] for row in db.all(_AHEAD, {"message_ids": list(message_ids)})}


_LINES_AHEAD = f"""
SELECT m.id, head.*, held.*
FROM messages m
CROSS JOIN LATERAL ({line_head("m.account_id", "m.recipient_id", "m.priority")}) head
CROSS JOIN LATERAL ({line_held("m.account_id", "m.recipient_id", "m.priority", "m.due_at, m.seq")}) held
WHERE m.id = ANY(%(message_ids)s::text[])
"""


def lines_ahead(db: Database, message_ids: Sequence[str]) -> dict[str, LineAhead]:
    """Who goes before each of these messages, all of them held, to the same recipient."""
    rows = db.all(_LINES_AHEAD, {"message_ids": list(message_ids)}) if message_ids else []
    return {row["id"]: line_ahead(row) for row in rows}


_OLDEST = """
SELECT waiting.account_id AS id, extract(epoch FROM now() - min(first.due_at))::float8 AS age_s
FROM (SELECT account_id, abs(priority) AS priority, priority < 0 AS redriven FROM tallies
      WHERE state = 'queued' AND (%(scope)s::text[] IS NULL OR account_id = ANY(%(scope)s::text[]))
      GROUP BY 1, 2, 3 HAVING sum(n) > 0) waiting
CROSS JOIN LATERAL (SELECT due_at FROM messages
                    WHERE account_id = waiting.account_id AND priority = waiting.priority
                      AND redriven = waiting.redriven AND state = 'queued' AND due_at <= now()
                    ORDER BY due_at LIMIT 1) first
GROUP BY waiting.account_id
"""


def oldest_ages_s(db: Database, scope: Scope = None) -> dict[str, float]:
    """How long the longest waiting message of each of these accounts, or of all, has been due; one index probe for
    each rank at which an account has any queued (twenty at most), none for the others."""
    return {row["id"]: row["age_s"] for row in db.all(_OLDEST, {"scope": None if scope is None else list(scope)})}


_LAST_DUE = """
SELECT waiting.account_id AS id, extract(epoch FROM max(last.due_at) - now())::float8 AS due_s
FROM (SELECT account_id, state, abs(priority) AS priority, priority < 0 AS redriven FROM tallies
      WHERE state IN ('queued', 'scheduled') AND (%(scope)s::text[] IS NULL OR account_id = ANY(%(scope)s::text[]))
      GROUP BY 1, 2, 3, 4 HAVING sum(n) > 0) waiting
CROSS JOIN LATERAL (
    (SELECT due_at FROM messages
     WHERE account_id = waiting.account_id AND state = 'scheduled' AND waiting.state = 'scheduled'
     ORDER BY due_at DESC LIMIT 1)
    UNION ALL
    (SELECT due_at FROM messages
     WHERE account_id = waiting.account_id AND priority = waiting.priority AND redriven = waiting.redriven
       AND state = 'queued' AND waiting.state = 'queued'
     ORDER BY due_at DESC LIMIT 1)
) last
GROUP BY 1
"""


def last_due_s(db: Database, scope: Scope = None) -> dict[str, float]:
    """For each of these accounts, or of all, that has messages waiting: seconds until the last of them may go by its
    sendAt or its next try, negative in the past; one index probe for each rank."""
    return {row["id"]: row["due_s"] for row in db.all(_LAST_DUE, {"scope": None if scope is None else list(scope)})}


def _messages(scope: Scope) -> Select:
    query = select(Message.__table__, literal_column(line_rests("messages"), Boolean).label("line_rests"))
    return query if scope is None else query.where(Message.account_id.in_(scope))


def _failure_conditions(wanted: FailureFilter, scope: Scope) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [DeadLetter.closed_at.is_(None)]
    if scope is not None:
        conditions.append(DeadLetter.account_id.in_(scope))
    if wanted.account_id is not None:
        conditions.append(DeadLetter.account_id == wanted.account_id)
    if wanted.reason is not None:
        conditions.append(DeadLetter.reason == wanted.reason)
    if wanted.recipient_id is not None:
        conditions.append(Message.recipient_id == wanted.recipient_id)
    if wanted.batch_id is not None:
        conditions.append(Message.batch_id == wanted.batch_id)
    if wanted.http_status is not None:
        conditions.append(DeadLetter.http_status == wanted.http_status)
    conditions += [DeadLetter.error.icontains(word, autoescape=True) for word in wanted.words]
    if wanted.since is not None:
        conditions.append(DeadLetter.failed_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(DeadLetter.failed_at < wanted.until)
    return conditions


def _redrive_conditions(wanted: FailureFilter, scope: Scope, include_unknown: bool) -> list[ColumnElement[bool]]:
    conditions = _failure_conditions(wanted, scope)
    if not include_unknown:
        conditions.append(DeadLetter.reason != str(DeadLetterReason.OUTCOME_UNKNOWN))
    return conditions
