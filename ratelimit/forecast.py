"""When will the k-th in line go? Computed from the tokens' real return times, never from an average rate."""

from collections.abc import Sequence

from ratelimit.limits import Limits

_SAME_S = 1e-6


def forecast(
    limits: Limits, uses: Sequence[float], place: int, *, latency_s: float, not_before_s: float = 0.0
) -> float:
    """Seconds from now until the one at `place` (1: next to go) leaves.

    limits: what holds, all at once.
    uses: when each known use ended, in seconds from now (negative: past; positive: a loan still out, taken to end
        one latency from now).
    latency_s: how long a use is expected to take; a token comes back a period after it.
    not_before_s: nothing leaves earlier (a cooldown or a pause with an end).

    A departure must wait until, for every limit N per p, the N-th use before it ended p ago. Example, 2 per 10 s,
    latency 1 s, no uses yet: places 1 and 2 leave at 0 and end at 1, places 3 and 4 leave at 11 and end at 12,
    5 and 6 leave at 22.
    """
    return forecast_many(limits, uses, [place], latency_s=latency_s, not_before_s=not_before_s)[0]


def forecast_many(
    limits: Limits, uses: Sequence[float], places: Sequence[int], *, latency_s: float, not_before_s: float = 0.0
) -> list[float]:
    """The same for many places, in their order, by one walk to the last of them.

    Departures are worked out one by one until they repeat, every N of them a period and a latency after the N before:
    for one limit from the second round on; for several once the slowest alone is what holds, soon unless their paces
    are nearly the same.
    """
    ends = sorted(min(end, latency_s) for end in uses)
    known = len(ends)
    windows = [(limit.count, limit.period_s) for limit in limits]
    slowest = limits.slowest(latency_s)
    count, round_s = slowest.count, slowest.period_s + latency_s
    # A departure looks back as far as the other limits reach: that many repetitions in a row, and all follow.
    settled = max((limit.count for limit in limits if limit is not slowest), default=1)
    leaves, repeated, gone = max(0.0, not_before_s), 0, 0
    last = max(places, default=0)
    while gone < last and repeated < settled:
        for most, period_s in windows:
            if len(ends) >= most:
                leaves = max(leaves, ends[-most] + period_s)
        ends.append(leaves + latency_s)
        gone += 1
        repeats = gone > count and ends[-1] - ends[-1 - count] < round_s + _SAME_S
        repeated = repeated + 1 if repeats else 0

    def leaves_at(place: int) -> float:
        if place <= gone:
            return ends[known + place - 1] - latency_s
        rounds, nth = divmod(place - gone - 1, count)
        return ends[nth - count] - latency_s + (rounds + 1) * round_s

    return [leaves_at(place) for place in places]
