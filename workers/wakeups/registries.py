"""The four registries as one adapter."""

import redis

from workers.wakeups.beats import Beats
from workers.wakeups.due import DueTimes
from workers.wakeups.places import Places
from workers.wakeups.tallies import Tallies


class Wakeups(DueTimes, Places, Beats, Tallies):
    """All registries over one client. Thread-safe. Raises `ratelimit.TokensUnavailable` if Redis is unavailable."""

    def __init__(self, client: redis.Redis) -> None:
        for registry in (DueTimes, Places, Beats, Tallies):
            registry.__init__(self, client)
