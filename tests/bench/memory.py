"""What Redis holds: something per active account, nothing per message.

MEMORY USAGE of all keys, before and after.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark
from tests.bench.ours import Ours
from tests.bench.stage import Stage

LIMIT = "10/minute"
BUDGET_B = 1024


@benchmark(
    "memory",
    Row(
        f"Redis memory per active account at {LIMIT}, all tokens used",
        "1 KiB",
        "B",
        figure="per_account",
        at_most=1,
        constant=BUDGET_B,
    ),
    Row(
        "Redis memory with ten times the messages",
        "the same accounts with 20 messages each",
        "B",
        figure="used",
        at_most=1.05,
    ),
)
@contextmanager
def memory(stage: Stage) -> Iterator[Sides]:
    """Each measurement begins with an emptied Redis and accounts that have just been opened."""
    accounts = stage.size(100, 50)
    with stage.judge() as upstream, stage.paceline(upstream.url, own_servers=True, RATE_LIMIT=LIMIT) as ours:

        def measure(messages: int) -> Figures:
            return used_by(ours, accounts, messages)

        yield {SUBJECT: lambda: measure(200 * accounts), "20 messages": lambda: measure(20 * accounts)}


def used_by(ours: Ours, accounts: int, messages: int) -> Figures:
    """Memory that these accounts take once each has used its ten tokens and the rest of its messages wait."""
    adapters = ours.adapters
    adapters.db.all("TRUNCATE messages, attempts, dead_letters, idempotency_keys, tallies")
    client: redis.Redis = adapters.redis
    client.flushdb()
    ours.await_ready()
    before = _used(client)
    ours.open_accounts(accounts)
    ours.fill(messages)
    ours.release()
    left = ours.await_left(messages - 10 * accounts, within_s=60)
    assert left == messages - 10 * accounts, f"{left} left of {messages}"
    used = _used(client) - before
    return {"per_account": used / accounts, "used": used}


def _used(client: redis.Redis) -> int:
    """By all keys there are, with everything in them. (`used_memory` would count the clients' buffers as well.)"""
    return sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter(count=1000))
