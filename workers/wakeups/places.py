"""The places of drains: how many work on an account at once, each for as long as its lease is renewed."""

from collections.abc import Collection, Sequence
from pathlib import Path

import redis

from ratelimit.connection import answered, script
from ratelimit.limits import to_us
from workers.wakeups.keys import AGAIN, BEGUN, DUE, LATENCY, NUDGE, PROCESSED, PUBLICATIONS, PUBLISHED, drains_of

DRAIN_LEASE_S = 3.0
"""A drain that has not renewed its place for this long counts as dead."""

_HERE = Path(__file__).parent


class Places:
    """Places that drains take, renew and give up. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._begin_drain = script(client, _HERE / "begin_drain.lua")
        self._end_drain = script(client, _HERE / "end_drain.lua")

    def begin_drain(self, account_id: str, drain_id: str, most: int, publication: int | None = None) -> bool:
        """Take one of the account's `most` places for drains. False if all are taken: then whoever gives one up has the
        account looked at again, so that what came in during its last step is not overlooked.

        publication: the number that this drain was published under (`Due.publication`). False also if another drain of
        the account has begun since: while all workers are busy, copies of a drain pile up in the broker. Numbers tell
        stale copies apart, since clocks of two machines cannot.
        """
        return self._place(account_id, drain_id, most, publication)

    def renew_drain(self, account_id: str, drain_id: str) -> None:
        self._place(account_id, drain_id, -1)

    def _place(self, account_id: str, drain_id: str, most: int, publication: int | None = None) -> bool:
        keys = [PUBLISHED, drains_of(account_id), AGAIN, PUBLICATIONS, BEGUN]
        args = [account_id, drain_id, most, to_us(DRAIN_LEASE_S), "" if publication is None else publication]
        return bool(answered(lambda: self._begin_drain(keys=keys, args=args)))

    def end_drain(
        self, account_id: str, drain_id: str, *, next_s: float | None = None, latency_s: float | None = None
    ) -> None:
        """Give the place up, and have the account drained again in `next_s` seconds, or at once if another drain has
        found no place meanwhile. latency_s: if messages were dealt with, how long the account's upstream takes to
        answer: for the forecast, and with the time for people to see."""
        keys = [drains_of(account_id), AGAIN, DUE, PROCESSED, LATENCY]
        next_us = "" if next_s is None else to_us(next_s)
        latency = "" if latency_s is None else f"{latency_s:.4f}"
        answered(lambda: self._end_drain(keys=keys, args=[account_id, drain_id, NUDGE, next_us, latency]))

    def evict(self, accounts: Sequence[str], workers: Collection[int]) -> int:
        """Clear the places that dead workers' drains (named `<worker>.…`) have on these accounts, so that others need
        not wait for their leases to end. Returns how many it cleared."""
        dead = tuple(f"{worker}." for worker in workers)

        def clear() -> int:
            with self._redis.pipeline(transaction=False) as pipe:
                for account_id in accounts:
                    pipe.zrange(drains_of(account_id), 0, -1)
                placed = dict(zip(accounts, pipe.execute(), strict=True))
                gone = {
                    account: [d for d in map(str, drains) if d.startswith(dead)] for account, drains in placed.items()
                }
                for account_id, drains in gone.items():
                    if drains:
                        pipe.zrem(drains_of(account_id), *drains)
                return sum(pipe.execute())

        return answered(clear) if accounts and dead else 0
