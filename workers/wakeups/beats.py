"""Which processes live, and whether Celery's broker can be reached, as the processes themselves said lately."""

from pathlib import Path

import redis

from ratelimit.connection import answered, script
from workers.wakeups.keys import BROKER_AWAY, alive_of

BROKER_AWAY_FOR_S = 6
"""How long a pacer's word counts that it cannot reach Celery's broker: it repeats it sooner while anything is due."""

_HERE = Path(__file__).parent


class Beats:
    """Signs of life that expire. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._beat = script(client, _HERE / "beat.lua")
        self._alive = script(client, _HERE / "alive.lua")

    def note_broker_away(self) -> None:
        """A pacer could not publish what is due."""
        answered(lambda: self._redis.set(BROKER_AWAY, "1", ex=BROKER_AWAY_FOR_S))

    def broker_is_away(self) -> bool:
        """Whether a pacer said so lately."""
        return bool(answered(lambda: self._redis.exists(BROKER_AWAY)))

    def beat(self, kind: str, name: str, for_s: float) -> None:
        """A process of some kind says that it lives, for `for_s` seconds."""
        answered(lambda: self._beat(keys=[alive_of(kind)], args=[name, for_s]))

    def alive(self, kind: str) -> int:
        """How many processes of a kind have said lately that they live."""
        return int(answered(lambda: self._alive(keys=[alive_of(kind)], args=[])))
