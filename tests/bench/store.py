"""Whether it stays as quick when the queue is long: single calls, on a long queue and on a short one in turn.

The calls are the services' own, on the real database, without HTTP. A million rows are made once, by one statement;
what a round has changed is put back after it, and vacuumed, outside the time that counts.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import psycopg

from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark
from tests.bench.stage import Stage
from tests.bench.timing import Call, p50s, together
from workers.bootstrap import Adapters
from workers.domain.actor import Actor
from workers.domain.message import Claim
from workers.store.claims import claim_next
from workers.store.session import Connection

ACCOUNTS = 10_000
SHORT, SHORT_ACCOUNTS = 1000, 10
CLAIMS = 60
"""Of each side in a round: few enough to leave the short queue as good as it was."""
LEASE_S = 12.0

_ACCOUNTS = "INSERT INTO accounts (id) SELECT 'account-' || n FROM generate_series(0, %s - 1) AS n"
_QUEUE = """
INSERT INTO messages (id, account_id, recipient_id, priority, content, due_at, state)
SELECT 'msg-' || lpad(n::text, 9, '0'), 'account-' || n %% %(accounts)s, 'fan-' || n, 1 + n / %(accounts)s %% 10,
       'Hello, how are you?', now(), 'queued'
FROM generate_series(%(first)s, %(first)s + %(messages)s - 1) AS n
"""
_LINE = """
INSERT INTO messages (id, account_id, recipient_id, priority, content, due_at, state)
SELECT 'msg-line-' || lpad(n::text, 9, '0'), %(account)s, 'stuck', 5, 'Hello, how are you?',
       CASE n WHEN 0 THEN now() + interval '1 hour' ELSE now() END, CASE n WHEN 0 THEN 'queued' ELSE 'held' END
FROM generate_series(0, %(messages)s - 1) AS n
"""
_UNCLAIM = "UPDATE messages SET state = 'queued', attempts = 0, tries = 0 WHERE id = ANY(%(ids)s)"


@contextmanager
def long_and_short(stage: Stage) -> Iterator[tuple[Adapters, Adapters]]:
    """Two databases with the same accounts: one with a million messages, one with a thousand."""
    with ExitStack() as running:
        both = [running.enter_context(stage.adapters(pool_size=2)) for _ in range(2)]
        accounts = stage.size(ACCOUNTS, 500)
        for adapters, n, of in ((both[0], stage.size(1_000_000, 20_000), accounts), (both[1], SHORT, SHORT_ACCOUNTS)):
            with filling(adapters) as database:
                database.execute(_ACCOUNTS, [accounts])
                database.execute(_QUEUE, {"accounts": of, "first": 0, "messages": n})
        yield both[0], both[1]


@benchmark(
    "claim",
    Row(
        "claim of the next message, 1,000,000 queued over 10,000 accounts",
        "the same with 1,000 queued",
        "ms",
        figure="p50",
        at_most=1.25,
    ),
    Row("status, 1,000,000 queued", "the same with 1,000 queued", "ms", figure="status", at_most=1.5),
)
@contextmanager
def claim(stage: Stage) -> Iterator[Sides]:
    """Claims meet accounts at random; status is of all 10,000 accounts, on both sides."""
    with long_and_short(stage) as (full, short):
        many = [f"account-{n}" for n in range(stage.size(ACCOUNTS, 500))]
        claimers = {SUBJECT: Claimer(full, many), "1,000 queued": Claimer(short, many[:SHORT_ACCOUNTS])}
        readers = {SUBJECT: full.reader(), "1,000 queued": short.reader()}

        def watch() -> dict[str, Figures]:
            claims = claimed_p50s(claimers)
            status = p50s({name: partial(reader.status, None) for name, reader in readers.items()}, 5)
            return {name: {**claims[name], "status": status[name]["p50"]} for name in claimers}

        yield together(list(claimers), watch)


@benchmark(
    "held",
    Row(
        "claim while 100,000 messages are held behind one failing recipient",
        "the same with none held",
        "ms",
        figure="p50",
        at_most=1.25,
    ),
)
@contextmanager
def held(stage: Stage) -> Iterator[Sides]:
    """Two accounts in one table, each with 1,000 messages that may go; one has the line besides."""
    with stage.adapters(pool_size=2) as adapters:
        with filling(adapters) as database:
            database.execute(_ACCOUNTS, [2])
            database.execute(_QUEUE, {"accounts": 2, "first": 0, "messages": 2 * SHORT})
            database.execute(_LINE, {"account": "account-0", "messages": stage.size(100_000, 5000)})
        claimers = {SUBJECT: Claimer(adapters, ["account-0"]), "none held": Claimer(adapters, ["account-1"])}
        yield together(list(claimers), lambda: claimed_p50s(claimers))


@benchmark(
    "accept-deep",
    Row(
        "accept with position and estimate, 100,000 queued on that account",
        "the same on an empty queue",
        "ms",
        figure="p50",
        at_most=1.25,
    ),
)
@contextmanager
def accept_deep(stage: Stage) -> Iterator[Sides]:
    """From validated fields to COMMIT and wake-up. Both accounts have used up their tokens."""
    with stage.adapters(pool_size=2) as adapters:
        with filling(adapters) as database:
            database.execute(_ACCOUNTS, [2])
            database.execute(_QUEUE, {"accounts": 1, "first": 0, "messages": stage.size(100_000, 5000)})
        for account in ("account-0", "account-1"):
            adapters.tokens.open_new(account)
            adapters.tokens.borrow(account, adapters.settings.rate_limit, want=10, lease_s=3600)
        submitter, caller = adapters.submitter(), Actor(subject="bench", role="operator")
        accepted: list[str] = []

        def submit(account: str) -> None:
            wanted = {"recipient_id": f"new-{len(accepted)}", "content": "Hello", "priority": 5}
            accepted.append(submitter.submit(wanted, account, by=caller).message_id)

        def watch() -> dict[str, Figures]:
            sides: dict[str, Call] = {SUBJECT: lambda: submit("account-0"), "empty": lambda: submit("account-1")}
            found = p50s(sides, stage.size(150, 20))
            with filling(adapters) as database:
                database.execute("DELETE FROM messages WHERE id = ANY(%s)", [accepted])
            accepted.clear()
            return found

        yield together([SUBJECT, "empty"], watch)


class Claimer:
    """Claims for real, within a transaction; what is timed is the claim, not the COMMIT that it shares with others."""

    def __init__(self, adapters: Adapters, accounts: Sequence[str]) -> None:
        self._adapters, self._accounts = adapters, accounts
        self._random = random.Random(1)
        self._claimed: list[str] = []
        now = adapters.tokens.origin()
        self._origin = replace(now, given=now.given + 1)

    def claim(self) -> float:
        """Seconds."""
        account = self._random.choice(self._accounts)

        def work(c: Connection) -> tuple[float, list[Claim] | None]:
            began_s = time.perf_counter()
            claims = claim_next(c, account, ["token"], 1, LEASE_S, origin=self._origin)
            return time.perf_counter() - began_s, claims

        took_s, claims = self._adapters.db.transaction(work)
        assert claims, f"{account} had nothing to claim"
        self._claimed += [claim.message_id for claim in claims]
        return took_s

    def put_back(self) -> None:
        with filling(self._adapters) as database:
            database.execute(_UNCLAIM, {"ids": self._claimed})
            database.execute("DELETE FROM attempts")
        self._claimed.clear()


def claimed_p50s(claimers: dict[str, Claimer]) -> dict[str, Figures]:
    found = p50s({name: claimer.claim for name, claimer in claimers.items()}, CLAIMS)
    for claimer in claimers.values():
        claimer.put_back()
    return found


@contextmanager
def filling(adapters: Adapters) -> Iterator[psycopg.Connection]:
    """A connection without Paceline's time-outs; afterwards the tables are as autovacuum would have them."""
    with psycopg.connect(adapters.settings.database_url, autocommit=True) as database:
        database.execute("SET synchronous_commit = off")
        yield database
        for table in ("messages", "attempts", "tallies"):
            database.execute(f"VACUUM (ANALYZE, INDEX_CLEANUP ON) {table}")
