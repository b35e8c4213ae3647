"""When each account has something to do: one sorted set, one entry per account, never one per message.

A wake-up may be lost (a process killed, Redis emptied): the reconciler repeats it from PostgreSQL. A wake-up may come
once too often: a drain that finds nothing to do costs a few round trips. So nothing here needs to be exact, and nothing
here is the truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

from ratelimit import TokensUnavailable
from ratelimit.connection import answered, script
from ratelimit.limits import MICROSECONDS, to_us
from workers.telemetry.logs import logger
from workers.wakeups.keys import AGAIN, DUE, NUDGE, PUBLICATIONS, PUBLISHED, VERIFY, drains_of

PUBLISHED_FOR_S = 3.0
"""A drain task that has not begun this long after it was published counts as lost."""
PUBLICATION = "paceline_publication"
"""The header of a drain task that carries `Due.publication`. A worker of an older version ignores it."""

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


class Nudges:
    """Tells one sleeper of wake-ups that come in earlier than all others. For one thread.

    Not BLPOP with a timeout, which is as late as the server's next look at its clock: up to 100 ms on an idle one
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


class DueTimes:
    """Which account is to be drained, and when. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._wake = script(client, _HERE / "wake.lua")
        self._take_due = script(client, _HERE / "take_due.lua")

    def wake(self, account_id: str, delay_s: float = 0.0) -> None:
        """Have the account drained in `delay_s` seconds, or earlier if it is due earlier already."""
        answered(lambda: self._wake(keys=[DUE], args=[account_id, to_us(delay_s), NUDGE]))

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
                    self._wake(keys=[DUE], args=[account_id, to_us(delay_s), NUDGE], client=pipe)
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
            scores = self._redis.zmscore(DUE, accounts)
            idle = [account for account, score in zip(accounts, scores, strict=True) if score is None]
            now = to_us(self._now())
            with self._redis.pipeline(transaction=False) as pipe:
                for account in idle:
                    pipe.zcount(drains_of(account), now, "+inf")
                return [account for account, drains in zip(idle, pipe.execute(), strict=True) if not drains]

        def wake(lost: list[str]) -> None:
            with self._redis.pipeline(transaction=False) as pipe:
                for account_id in lost:
                    self._wake(keys=[DUE], args=[account_id, 0, NUDGE], client=pipe)
                pipe.execute()

        lost = answered(forgotten)
        answered(lambda: wake(lost))
        return len(lost)

    def take_due(self, most: int = 500) -> Due:
        """Take what is due. Whoever takes it publishes it."""
        args = [most, to_us(PUBLISHED_FOR_S)]
        keys = [DUE, PUBLISHED, PUBLICATIONS]
        next_us, late_us, publication, *accounts = answered(lambda: self._take_due(keys=keys, args=args))
        next_s = None if int(next_us) < 0 else int(next_us) / MICROSECONDS
        return Due(tuple(accounts), next_s, int(late_us) / MICROSECONDS, int(publication))

    def listen(self) -> Nudges:
        """For a pacer to sleep on."""
        return Nudges(self._redis)

    def forget(self, accounts: Sequence[str]) -> None:
        """Forget all wake-ups, what is published, and the places of drains on these accounts: in a copy of another
        server's data the times are by that server's clock. The reconciler wakes by name whoever waits."""

        def forget() -> None:
            for keys in ([DUE, PUBLISHED, AGAIN, VERIFY], [*map(drains_of, accounts)]):
                if keys:
                    self._redis.delete(*keys)

        answered(forget)

    def publish_again(self) -> None:
        """Forget which drains have been published and have not begun: a process died, and nobody knows which of them it
        had in hand. One that is published twice costs a look."""
        answered(lambda: self._redis.delete(PUBLISHED))

    def may_verify(self, every_s: float) -> bool:
        """Whether it is time to have unknown outcomes looked up again, whoever asks: at most once in `every_s`."""
        return bool(answered(lambda: self._redis.set(VERIFY, "1", nx=True, px=round(every_s * 1000))))

    def _now(self) -> float:
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / MICROSECONDS
