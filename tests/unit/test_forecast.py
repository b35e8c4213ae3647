"""The forecast against the slowest, plainest way to work it out: moment by moment, looking at the whole past."""

import bisect
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import Limit, Limits, forecast, forecast_many


def departures(
    limits: Limits,
    uses: list[float],
    places: int,
    latency_s: float,
    not_before_s: float,
    later: Sequence[tuple[int, float]] = (),
) -> list[float]:
    """When each of the first `places` leaves, by trying every moment at which a token could come back.

    It knows only the rule: at a departure, fewer than N uses may have ended within the last period, or not at all yet.
    """
    ends = sorted(min(end, latency_s) for end in uses)
    left: list[float] = []
    now = max(0.0, not_before_s)
    for place in range(1, places + 1):
        now = max([now, *(at for first, at in later if first <= place)])
        while any(len(_counting(ends, now, limit)) >= limit.count for limit in limits):
            now = min(
                _counting(ends, now, limit)[0] + limit.period_s for limit in limits if _counting(ends, now, limit)
            )
        left.append(now)
        bisect.insort(ends, now + latency_s)
    return left


def _counting(ends: list[float], now: float, limit: Limit) -> list[float]:
    """The uses that hold a place in this limit at this moment."""
    return ends[bisect.bisect_right(ends, now - limit.period_s) :]


# Times in eighths of a second add up exactly: the simulation can compare them.
eighths = st.integers(0, 8 * 60).map(lambda n: n / 8)
some_limits = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 8 * 40)), min_size=1, max_size=3, unique_by=lambda limit: limit[1]
).map(lambda several: Limits.parse(",".join(f"{count}/{period * 125}ms" for count, period in several)))
some_uses = st.lists(st.one_of(eighths.map(lambda s: -s), eighths), max_size=15)
latency = st.integers(0, 24).map(lambda n: n / 8)


@settings(max_examples=200, deadline=None)
@given(some_limits, some_uses, st.integers(1, 60), latency, eighths)
def test_everybody_leaves_as_soon_as_the_rule_allows(
    limits: Limits, uses: list[float], place: int, latency_s: float, not_before_s: float
) -> None:
    told = [forecast(limits, uses, one, latency_s=latency_s, not_before_s=not_before_s) for one in range(1, place + 1)]
    assert told == pytest.approx(departures(limits, uses, place, latency_s, not_before_s), abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(some_limits, some_uses, st.integers(1, 300), latency, eighths)
def test_who_is_behind_never_leaves_earlier(
    limits: Limits, uses: list[float], place: int, latency_s: float, not_before_s: float
) -> None:
    def told(place: int) -> float:
        return forecast(limits, uses, place, latency_s=latency_s, not_before_s=not_before_s)

    assert not_before_s <= told(place) <= told(place + 1) + 1e-6


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 300), some_uses, st.integers(100, 1500), latency, eighths)
def test_for_one_limit_far_places_are_exact(
    count: int, period: int, uses: list[float], place: int, latency_s: float, not_before_s: float
) -> None:
    limits = Limits.parse(f"{count}/{period * 125}ms")
    told = forecast(limits, uses, place, latency_s=latency_s, not_before_s=not_before_s)
    assert told == pytest.approx(departures(limits, uses, place, latency_s, not_before_s)[-1], abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(some_limits, some_uses, st.integers(300, 1500), latency, eighths)
def test_for_several_limits_far_places_are_exact(
    limits: Limits, uses: list[float], place: int, latency_s: float, not_before_s: float
) -> None:
    told = forecast(limits, uses, place, latency_s=latency_s, not_before_s=not_before_s)
    assert told == pytest.approx(departures(limits, uses, place, latency_s, not_before_s)[-1], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "latency_s"),
    [
        ("1/second,10/minute,1000/day", 0.25),
        ("11/8s,372/271s,257/186s", 5.0),  # which limit is the slowest depends on the latency
        ("358/301s,365/306s", 0.125),  # nearly the same pace: it takes long until the slower one is all that holds
        ("757/255s,862/294s", 0.0),
        ("1/s,10/10s,100/100s", 0.0),  # all the same pace
    ],
)
def test_the_twelve_thousandth_is_told_as_exactly_as_the_first(text: str, latency_s: float) -> None:
    limits = Limits.parse(text)
    uses = [-5.0, -3.0, 1.0]
    told = [forecast(limits, uses, place, latency_s=latency_s) for place in (1, 500, 6_000, 12_000)]
    left = departures(limits, uses, 12_000, latency_s, 0.0)
    assert told == pytest.approx([left[0], left[499], left[5_999], left[11_999]], abs=1e-3)


@settings(max_examples=200, deadline=None)
@given(some_limits, some_uses, st.lists(st.integers(1, 300), max_size=20), latency, eighths)
def test_many_are_told_what_each_would_be_told_alone(
    limits: Limits, uses: list[float], places: list[int], latency_s: float, not_before_s: float
) -> None:
    alone = [forecast(limits, uses, place, latency_s=latency_s, not_before_s=not_before_s) for place in places]
    told = forecast_many(limits, uses, places, latency_s=latency_s, not_before_s=not_before_s)
    assert told == pytest.approx(alone, abs=1e-6)


some_later = st.lists(st.tuples(st.integers(1, 150), eighths), max_size=8).map(
    lambda steps: list(zip(sorted(place for place, _ in steps), sorted(at for _, at in steps), strict=True))
)


@settings(max_examples=200, deadline=None)
@given(some_limits, some_uses, st.integers(1, 300), latency, eighths, some_later)
def test_who_comes_later_leaves_as_soon_as_the_rule_allows_from_then_on(
    limits: Limits, uses: list[float], places: int, latency_s: float, not_before_s: float, later: list[Any]
) -> None:
    told = forecast_many(
        limits, uses, range(1, places + 1), latency_s=latency_s, not_before_s=not_before_s, later=later
    )
    expected = departures(limits, uses, places, latency_s, not_before_s, later)
    assert told == pytest.approx(expected, abs=1e-6)
    far = forecast_many(limits, uses, [places], latency_s=latency_s, not_before_s=not_before_s, later=later)
    assert far == pytest.approx(expected[-1:], abs=1e-6)


def test_ten_thousand_who_come_one_by_one_are_told_at_once() -> None:
    limits = Limits.parse("1000/minute,100000/day")
    later = [(place, 0.1 * place) for place in range(2, 10_001)]
    began = time.process_time()
    told = forecast_many(limits, [], range(1, 10_001), latency_s=0.2, later=later)
    assert told[-1] >= 1000
    assert time.process_time() - began < 2


def test_the_example_of_the_docstring() -> None:
    limits = Limits.parse("2/10s")
    assert [forecast(limits, [], place, latency_s=1.0) for place in range(1, 7)] == [0, 0, 11, 11, 22, 22]


def test_ten_go_at_once_and_the_eleventh_waits_a_minute_and_one_answer() -> None:
    limits = Limits.parse("10/minute")
    assert [forecast(limits, [], place, latency_s=0.5) for place in (1, 10, 11, 20, 21)] == [0, 0, 60.5, 60.5, 121]


def test_the_next_one_leaves_when_the_oldest_use_is_a_period_old() -> None:
    limits = Limits.parse("2/10s")
    assert forecast(limits, [-7.0, -4.0], 1, latency_s=1.0) == 3.0
    assert forecast(limits, [-7.0, -4.0], 2, latency_s=1.0) == 6.0


def test_a_loan_is_taken_to_end_one_latency_from_now_and_not_at_its_deadline() -> None:
    limits = Limits.parse("1/10s")
    assert forecast(limits, [13.0], 1, latency_s=0.5) == 10.5


def test_a_loan_about_to_end_counts_with_its_end() -> None:
    limits = Limits.parse("1/10s")
    assert forecast(limits, [0.25], 1, latency_s=0.5) == 10.25


def test_nobody_leaves_before_the_cooldown_is_over() -> None:
    limits = Limits.parse("2/10s")
    told = [forecast(limits, [-9.0, -9.0], place, latency_s=1.0, not_before_s=30.0) for place in (1, 2, 3)]
    assert told == [30.0, 30.0, 41.0]


def test_a_cooldown_long_past_lets_nobody_leave_in_the_past() -> None:
    assert forecast(Limits.parse("2/10s"), [], 1, latency_s=1.0, not_before_s=-5.0) == 0.0


def test_uses_older_than_every_period_hold_nobody_back() -> None:
    assert forecast(Limits.parse("1/second,2/10s"), [-11.0, -12.0, -13.0], 1, latency_s=1.0) == 0.0


def test_of_several_limits_the_one_that_frees_last_decides() -> None:
    limits = Limits.parse("1/second,3/10s")
    assert [forecast(limits, [], place, latency_s=0.0) for place in range(1, 8)] == [0, 1, 2, 10, 11, 12, 20]


def test_more_uses_than_the_limit_allows_hold_until_few_enough_are_left() -> None:
    """After a limit has been lowered."""
    assert forecast(Limits.parse("2/10s"), [-4.0, -3.0, -2.0, -1.0], 1, latency_s=0.0) == 8.0
