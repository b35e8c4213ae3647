"""Which account has something to do, and when: one sorted set in Redis, one entry per account, never one per message.

A wake-up may be lost (a process killed, Redis emptied): the reconciler repeats it from PostgreSQL. A wake-up may come
once too often: a drain that finds nothing to do costs a few round trips. So nothing here needs to be exact, and nothing
here is the truth.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

from ratelimit import TokensUnavailable
from ratelimit.connection import answered, script
from ratelimit.limits import MICROSECONDS, to_us
from workers.telemetry.logs import logger

PUBLISHED_FOR_S = 3.0
"""A drain task that has not begun this long after it was published counts as lost."""
DRAIN_LEASE_S = 3.0
"""A drain that has not renewed its place for this long counts as dead."""
BROKER_AWAY_FOR_S = 6
"""How long a pacer's word counts that it cannot reach Celery's broker: it repeats it sooner while anything is due."""
EXPECTED_LATENCY_S = 0.2
"""Of an upstream that has not answered yet."""

# One hash tag: these belong to one script, so Redis Cluster must keep them on one node. They are small.
_KEYS = "paceline:{wakeups}:"
_DUE, _PUBLISHED = _KEYS + "due", _KEYS + "published"
_AGAIN, _VERIFY = _KEYS + "again", _KEYS + "verify"
_PUBLICATIONS, _BEGUN = _KEYS + "publications", _KEYS + "begun"
_PROCESSED, _LATENCY = _KEYS + "processed", _KEYS + "latency"
_BROKER_AWAY = _KEYS + "broker_away"

PUBLICATION = "paceline_publication"
"""The header of a drain task that carries `Due.publication`. A worker of an older version ignores it."""

NUDGE = _KEYS + "nudge"
"""The channel that pacers listen to."""

log = logger(__name__)

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Due:
    """accounts: to be drained now. next_s: seconds until the next wake-up, None if there is none.
    late_s: how late the latest of them is. publication: the number that their drains are published under."""

    accounts: tuple[str, ...]
    next_s: float | None
    late_s: float
    publication: int


class Wakeups:
    """Thread-safe. Raises `ratelimit.TokensUnavailable` while Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._wake = script(client, _HERE / "wake.lua")
        self._take_due = script(client, _HERE / "take_due.lua")
        self._begin_drain = script(client, _HERE / "begin_drain.lua")
        self._end_drain = script(client, _HERE / "end_drain.lua")
        self._beat = script(client, _HERE / "beat.lua")
        self._alive = script(client, _HERE / "alive.lua")

    def wake(self, account_id: str, delay_s: float = 0.0) -> None:
        """Have the account drained in `delay_s` seconds, or earlier if it is due earlier already."""
        answered(lambda: self._wake(keys=[_DUE], args=[account_id, to_us(delay_s), NUDGE]))

    def try_wake(self, account_id: str, delay_s: float = 0.0) -> None:
        """`wake`, by somebody who has done what they were asked to already: should Redis be away or refuse, for
        whatever reason, the reconciler finds what there is to do."""
        try:
            self.wake(account_id, delay_s)
        except (TokensUnavailable, redis.RedisError) as error:
            log.warning("wake_lost", account_id=account_id, error=str(error))

    def try_wake_many(self, delays_s: Mapping[str, float]) -> None:
        """The same for many accounts, each in so many seconds, in one round trip."""

        def wake() -> None:
            with self._redis.pipeline(transaction=False) as pipe:
                for account_id, delay_s in delays_s.items():
                    self._wake(keys=[_DUE], args=[account_id, to_us(delay_s), NUDGE], client=pipe)
                pipe.execute()

        try:
            answered(wake)
        except (TokensUnavailable, redis.RedisError) as error:
            log.warning("wakes_lost", accounts=len(delays_s), error=str(error))

    def wake_all(self, accounts: list[str]) -> int:
        """Wake those that have neither a wake-up nor a drain. Returns how many."""

        def forgotten() -> list[str]:
            if not accounts:
                return []
            scores = self._redis.zmscore(_DUE, accounts)
            idle = [account for account, score in zip(accounts, scores, strict=True) if score is None]
            now = to_us(self._now())
            with self._redis.pipeline(transaction=False) as pipe:
                for account in idle:
                    pipe.zcount(_drains(account), now, "+inf")
                return [account for account, drains in zip(idle, pipe.execute(), strict=True) if not drains]

        def wake(lost: list[str]) -> None:
            with self._redis.pipeline(transaction=False) as pipe:
                for account_id in lost:
                    self._wake(keys=[_DUE], args=[account_id, 0, NUDGE], client=pipe)
                pipe.execute()

        lost = answered(forgotten)
        answered(lambda: wake(lost))
        return len(lost)

    def count(self) -> int:
        """How many accounts have a wake-up."""
        return int(answered(lambda: self._redis.zcard(_DUE)))

    def take_due(self, most: int = 500) -> Due:
        """Take what is due. Whoever takes it publishes it."""
        args = [most, to_us(PUBLISHED_FOR_S)]
        keys = [_DUE, _PUBLISHED, _PUBLICATIONS]
        next_us, late_us, publication, *accounts = answered(lambda: self._take_due(keys=keys, args=args))
        next_s = None if int(next_us) < 0 else int(next_us) / MICROSECONDS
        return Due(tuple(accounts), next_s, int(late_us) / MICROSECONDS, int(publication))

    def listen(self) -> "Nudges":
        """For a pacer to sleep on."""
        return Nudges(self._redis)

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
        keys = [_PUBLISHED, _drains(account_id), _AGAIN, _PUBLICATIONS, _BEGUN]
        args = [account_id, drain_id, most, to_us(DRAIN_LEASE_S), "" if publication is None else publication]
        return bool(answered(lambda: self._begin_drain(keys=keys, args=args)))

    def end_drain(
        self, account_id: str, drain_id: str, *, next_s: float | None = None, latency_s: float | None = None
    ) -> None:
        """Give the place up, and have the account drained again in `next_s` seconds, or at once if another drain has
        found no place meanwhile. latency_s: if messages were dealt with, how long the account's upstream takes to
        answer: for the forecast, and with the time for people to see."""
        keys = [_drains(account_id), _AGAIN, _DUE, _PROCESSED, _LATENCY]
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
                    pipe.zrange(_drains(account_id), 0, -1)
                placed = dict(zip(accounts, pipe.execute(), strict=True))
                gone = {
                    account: [d for d in map(str, drains) if d.startswith(dead)] for account, drains in placed.items()
                }
                for account_id, drains in gone.items():
                    if drains:
                        pipe.zrem(_drains(account_id), *drains)
                return sum(pipe.execute())

        return answered(clear) if accounts and dead else 0

    def forget(self, accounts: Sequence[str]) -> None:
        """Forget all wake-ups, what is published, and the places of drains on these accounts: in a copy of another
        server's data the times are by that server's clock. The reconciler wakes by name whoever waits."""

        def forget() -> None:
            for keys in ([_DUE, _PUBLISHED, _AGAIN, _VERIFY], [*map(_drains, accounts)]):
                if keys:
                    self._redis.delete(*keys)

        answered(forget)

    def publish_again(self) -> None:
        """Forget which drains have been published and have not begun: a process died, and nobody knows which of them it
        had in hand. One that is published twice costs a look."""
        answered(lambda: self._redis.delete(_PUBLISHED))

    def may_verify(self, every_s: float) -> bool:
        """Whether it is time to have unknown outcomes looked up again, whoever asks: at most once in `every_s`."""
        return bool(answered(lambda: self._redis.set(_VERIFY, "1", nx=True, px=round(every_s * 1000))))

    def latency_s(self, account_id: str) -> float:
        """How long the account's upstream takes to answer, as of late."""
        return self.latencies_s([account_id])[0]

    def latencies_s(self, accounts: list[str]) -> list[float]:
        found = answered(lambda: self._redis.hmget(_LATENCY, accounts)) if accounts else []
        return [float(latency or EXPECTED_LATENCY_S) for latency in found]

    def last_processed_s(self, accounts: list[str]) -> float | None:
        """Unix time of the last message dealt with on any of these accounts, as far as Redis remembers."""
        if not accounts:
            return None
        times = answered(lambda: self._redis.hmget(_PROCESSED, accounts))
        return max((float(time) for time in times if time), default=None)

    def note_broker_away(self) -> None:
        """A pacer could not publish what is due."""
        answered(lambda: self._redis.set(_BROKER_AWAY, "1", ex=BROKER_AWAY_FOR_S))

    def broker_is_away(self) -> bool:
        """Whether a pacer said so lately."""
        return bool(answered(lambda: self._redis.exists(_BROKER_AWAY)))

    def beat(self, kind: str, name: str, for_s: float) -> None:
        """A process of some kind says that it lives, for `for_s` seconds."""
        answered(lambda: self._beat(keys=[_alive(kind)], args=[name, for_s]))

    def alive(self, kind: str) -> int:
        """How many processes of a kind have said lately that they live."""
        return int(answered(lambda: self._alive(keys=[_alive(kind)], args=[])))

    def _now(self) -> float:
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / MICROSECONDS


class Nudges:
    """Tells one sleeper of wake-ups that come in earlier than all others. For one thread.

    Not BLPOP with a time-out, which is as late as the server's next look at its clock: up to 100 ms on an idle one
    (`hz 10`), for every token that comes back. Here the sleeper looks at its own.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is a nudge, `timeout_s` seconds at most, less when it has only begun to listen: what came
        before that was not heard. Returns whether there was one."""
        try:
            return answered(lambda: self._hear(timeout_s))
        except TokensUnavailable:
            self._pubsub.reset()
            raise

    def _hear(self, timeout_s: float) -> bool:
        if not self._pubsub.subscribed:
            self._pubsub.subscribe(NUDGE)
        heard = self._pubsub.get_message(timeout=max(0.0, timeout_s)) is not None
        while heard and self._pubsub.get_message() is not None:
            pass  # one look at what is due is enough for all of them
        return heard


def _alive(kind: str) -> str:
    return f"paceline:alive:{kind}"


def _drains(account_id: str) -> str:
    return f"{_KEYS}drains:{account_id}"
