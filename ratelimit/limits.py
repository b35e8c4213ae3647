"""Limits as people write them: `10/minute`, `10/2s`, `1/second,10/minute,1000/day` (all apply at once)."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ratelimit.errors import BadLimits

MICROSECONDS = 1_000_000

_UNITS = {
    "ms": 0.001,
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
}  # fmt: skip
_NAMES = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}
_LIMIT = re.compile(r"(\d{1,12})\s*/\s*(\d{1,12})?\s*([a-z]+)", re.ASCII)
_EXAMPLES = "write e.g. 10/minute, 10/2s or 1/second,10/minute,1000/day"

MAX_COUNT = 100_000  # Redis stores this many uses per key; a higher limit paces nothing
MAX_PERIOD_S = 31 * 86400


def to_us(seconds: float) -> int:
    """Convert seconds to the whole microseconds that are sent to Redis."""
    return round(seconds * MICROSECONDS)


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` uses in any rolling `period_us` microseconds."""

    count: int
    period_us: int

    @property
    def period_s(self) -> float:
        return self.period_us / MICROSECONDS

    def __str__(self) -> str:
        if self.period_s in _NAMES:
            return f"{self.count}/{_NAMES[int(self.period_s)]}"
        if self.period_us % MICROSECONDS:
            return f"{self.count}/{self.period_us // 1000}ms"
        return f"{self.count}/{self.period_us // MICROSECONDS}s"


@dataclass(frozen=True, slots=True)
class Limits:
    """Several limits that all apply at once, shortest period first."""

    all: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Read limits from text. Raises `BadLimits` with the remedy."""
        limits = tuple(sorted((_parse_one(part) for part in text.split(",")), key=lambda limit: limit.period_us))
        periods = [limit.period_us for limit in limits]
        if len(set(periods)) != len(periods):
            raise BadLimits(f"{text!r} limits the same period twice; keep the stricter one")
        return cls(limits)

    @property
    def longest_period_s(self) -> float:
        return self.all[-1].period_s

    @property
    def most_at_once(self) -> int:
        """How many tokens can be on loan at the same time."""
        return min(limit.count for limit in self.all)

    def strictest(self, *others: "Limits") -> "Limits":
        """Return limits that satisfy these and the others: for each period the smallest count."""
        counts: dict[int, int] = {}
        for limit in itertools.chain(self.all, *(other.all for other in others)):
            counts[limit.period_us] = min(limit.count, counts.get(limit.period_us, limit.count))
        return Limits(tuple(Limit(count, period_us) for period_us, count in sorted(counts.items())))

    def slowest(self, latency_s: float = 0.0) -> Limit:
        """The limit that decides the pace in the long run, if each use keeps its token for `latency_s`."""
        return max(self.all, key=lambda limit: (limit.period_s + latency_s) / limit.count)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.all)

    def __str__(self) -> str:
        return ",".join(map(str, self.all))


def _parse_one(part: str) -> Limit:
    match = _LIMIT.fullmatch(part.strip().lower())
    if not match:
        raise BadLimits(f"{part.strip()!r} is not a limit; {_EXAMPLES}")
    count, multiple, unit = int(match[1]), int(match[2] or 1), match[3]
    if unit not in _UNITS:
        raise BadLimits(f"{unit!r} is not a unit of time (ms, s, minute, hour, day); {_EXAMPLES}")
    period_us = round(multiple * _UNITS[unit] * MICROSECONDS)
    if not 1 <= count <= MAX_COUNT:
        raise BadLimits(f"{part.strip()!r}: the count must be 1 to {MAX_COUNT}; {_EXAMPLES}")
    if not 1 <= period_us <= MAX_PERIOD_S * MICROSECONDS:
        raise BadLimits(f"{part.strip()!r}: the period must be 1 ms to 31 days; {_EXAMPLES}")
    return Limit(count, period_us)
