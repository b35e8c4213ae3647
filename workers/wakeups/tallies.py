"""When each account last dealt with a message, and how long its upstream took to answer.

`Places.end_drain` writes both. The forecast needs the latency, and `/status` shows the time. Both travel with a call
that a drain makes anyway, so they cost no round trip.
"""

import redis

from ratelimit.connection import answered
from workers.wakeups.keys import LATENCY, PROCESSED

EXPECTED_LATENCY_S = 0.2
"""Of an upstream that has not answered yet."""


class Tallies:
    """What drains have told of the accounts. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def latency_s(self, account_id: str) -> float:
        """How long the account's upstream takes to answer, as of late."""
        return self.latencies_s([account_id])[0]

    def latencies_s(self, accounts: list[str]) -> list[float]:
        found = answered(lambda: self._redis.hmget(LATENCY, accounts)) if accounts else []
        return [float(latency or EXPECTED_LATENCY_S) for latency in found]

    def last_processed_s(self, accounts: list[str]) -> float | None:
        """Unix time of the last message dealt with on any of these accounts, as far as Redis remembers."""
        if not accounts:
            return None
        times = answered(lambda: self._redis.hmget(PROCESSED, accounts))
        return max((float(time) for time in times if time), default=None)
