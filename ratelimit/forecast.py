"""When will the k-th in line go? Computed from the tokens' real return times, never from an average rate."""

from collections.abc import Sequence

from ratelimit.limits import Limits

SIMULATED = 5_000
"""How many departures are worked out one by one; further ones repeat the pace of the slowest limit."""


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
    ends = sorted(min(end, latency_s) for end in uses)
    slowest = limits.slowest
    simulated, rounds = place, 0
    alone = len(limits.all) == 1
    horizon = slowest.count if alone else max(SIMULATED, 2 * slowest.count)
    if place > horizon:
        # With one limit every round of N repeats the first one, a period and a latency later. With several, the pattern
        # settles once the slowest limit is what holds; the horizon leaves it time to.
        rounds = -(-(place - horizon) // slowest.count)
        simulated = place - rounds * slowest.count
    leaves = not_before_s
    for _ in range(simulated):
        for limit in limits:
            if len(ends) >= limit.count:
                leaves = max(leaves, ends[-limit.count] + limit.period_s)
        ends.append(leaves + latency_s)
    return leaves + rounds * (slowest.period_s + latency_s)
