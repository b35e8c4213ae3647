"""Forecasts when the k-th of a queue leaves, from the real return times of tokens, not from an average rate."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence

from ratelimit.limits import Limits

_SAME_S = 1e-6


def forecast(
    limits: Limits, uses: Sequence[float], place: int, *, latency_s: float, not_before_s: float = 0.0
) -> float:
    """Return the seconds from now until the entry at `place` (1: next to go) leaves.

    limits: the limits that all apply at once.
    uses: when each known use ended, in seconds from now (negative: past; positive: an open loan, expected to end
        one latency from now).
    latency_s: how long a use is expected to take; a token comes back a period after it.
    not_before_s: nothing leaves earlier (a cooldown or a pause with an end).

    A departure must wait until, for every limit N per p, the N-th use before it ended p ago. Example, 2 per 10 s,
    latency 1 s, no uses yet: places 1 and 2 leave at 0 and end at 1, places 3 and 4 leave at 11 and end at 12,
    5 and 6 leave at 22.
    """
    return forecast_many(limits, uses, [place], latency_s=latency_s, not_before_s=not_before_s)[0]


def forecast_many(
    limits: Limits,
    uses: Sequence[float],
    places: Sequence[int],
    *,
    latency_s: float,
    not_before_s: float = 0.0,
    later: Sequence[tuple[int, float]] = (),
) -> list[float]:
    """Return the same for many places, in their order, in one pass to the last of them.

    later: (place, seconds), both ascending: from this place on, nothing leaves earlier than that.
    Example, 1 per 10 s, latency 0, `later` (2, 60): places 1, 2 and 3 leave at 0, 60 and 70.
    """
    last = max(places, default=0)
    sections = [(1, not_before_s), *((place, at_s) for place, at_s in later if place <= last)]
    queue, wanted = _Queue(limits, uses, latency_s), deque(sorted(set(places)))
    found: dict[int, float] = {}
    for (first, at_s), (following, _) in zip(sections, [*sections[1:], (last + 1, 0.0)], strict=True):
        leaves_at = queue.go(following - first, at_s)
        while wanted and wanted[0] < following:
            place = wanted.popleft()
            found[place] = leaves_at(place - first + 1)
    return [found[place] for place in places]


def gone_before(
    limits: Limits,
    uses: Sequence[float],
    moments: Sequence[float],
    *,
    latency_s: float,
    not_before_s: float = 0.0,
    later: Sequence[tuple[int, float]] = (),
    length: int,
) -> list[int]:
    """Return how many of a queue of `length` have left before each moment (seconds from now, ascending)."""
    sections = [(1, not_before_s), *((place, at_s) for place, at_s in later if place <= length)]
    queue, wanted = _Queue(limits, uses, latency_s), deque(moments)
    found: list[int] = []
    for (first, at_s), (following, _) in zip(sections, [*sections[1:], (length + 1, 0.0)], strict=True):
        n = following - first
        leaves_at = queue.go(n, at_s)
        while n and wanted and wanted[0] - _SAME_S <= leaves_at(n):
            before = bisect_left(range(1, n + 1), wanted.popleft() - _SAME_S, key=leaves_at)
            found.append(first - 1 + before)
    return found + [length] * len(wanted)


class _Queue:
    """Computes departures one by one until they repeat: every N departures, one period and one latency later.

    With one limit they repeat from the second round on. With several, they repeat once only the slowest limit matters.
    That happens soon unless the paces of the limits are nearly the same.
    """

    def __init__(self, limits: Limits, uses: Sequence[float], latency_s: float) -> None:
        slowest = limits.slowest(latency_s)
        self._windows = [(limit.count, limit.period_s) for limit in limits]
        self._latency_s = latency_s
        self._count, self._round_s = slowest.count, slowest.period_s + latency_s
        # A departure depends on the other limits' reach. After that many repetitions in a row, all later ones repeat.
        self._settled = max((limit.count for limit in limits if limit is not slowest), default=1)
        self._longest = max(limit.count for limit in limits)
        self._ends = sorted(min(end, latency_s) for end in uses)
        self._leaves = 0.0

    def go(self, n: int, not_before_s: float) -> Callable[[int], float]:
        """Let the next n leave, none before `not_before_s`. Returns a function: nth (from 1) -> when it leaves."""
        ends, known = self._ends, len(self._ends)
        gone = self._until_they_repeat(n, not_before_s)

        def leaves_at(nth: int) -> float:
            rounds, beyond = divmod(nth - gone - 1, self._count) if nth > gone else (-1, nth - gone - 1 + self._count)
            return ends[known + gone + beyond - self._count] - self._latency_s + (rounds + 1) * self._round_s

        if gone < n:  # later departures depend on as many ends as the longest limit counts
            ends += [leaves_at(nth) + self._latency_s for nth in range(max(gone + 1, n - self._longest + 1), n + 1)]
            self._leaves = ends[-1] - self._latency_s
        return leaves_at

    def _until_they_repeat(self, n: int, not_before_s: float) -> int:
        """Compute departures until they repeat. Returns how many were computed, at most n."""
        leaves, repeated, gone, ends = max(self._leaves, not_before_s), 0, 0, self._ends
        while gone < n and repeated < self._settled:
            for most, period_s in self._windows:
                if len(ends) >= most:
                    leaves = max(leaves, ends[-most] + period_s)
            ends.append(leaves + self._latency_s)
            gone += 1
            repeats = gone > self._count and ends[-1] - ends[-1 - self._count] < self._round_s + _SAME_S
            repeated = repeated + 1 if repeats else 0
        self._leaves = leaves
        return gone
