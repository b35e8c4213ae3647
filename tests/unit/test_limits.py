"""Limits as people write them, and the words they get for those that make no sense."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import BadLimits, Limit, Limits, RateLimitError
from ratelimit.limits import MAX_COUNT, MAX_PERIOD_S

MINUTE = 60_000_000
"""In microseconds, as all periods."""

some_limits = st.lists(
    st.builds(
        Limit,
        count=st.integers(1, MAX_COUNT),
        period_us=st.one_of(
            st.integers(1, MAX_PERIOD_S * 1000).map(lambda ms: ms * 1000),
            st.sampled_from([1, 60, 90, 3600, 7200, 86400, MAX_PERIOD_S]).map(lambda s: s * 1_000_000),
        ),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda limit: limit.period_us,
)


@pytest.mark.parametrize(
    ("text", "count", "period_us"),
    [
        ("10/minute", 10, MINUTE),
        ("10/2s", 10, 2_000_000),
        ("1/second", 1, 1_000_000),
        ("1000/day", 1000, 1440 * MINUTE),
        ("5/300ms", 5, 300_000),
        ("1/1ms", 1, 1_000),
        ("7/hour", 7, 60 * MINUTE),
        ("7/3hours", 7, 180 * MINUTE),
        ("60/min", 60, MINUTE),
        ("60/m", 60, MINUTE),
        ("2/5 minutes", 2, 5 * MINUTE),
        (" 10 / 2 s ", 10, 2_000_000),
        ("10/MINUTE", 10, MINUTE),
        ("010/minute", 10, MINUTE),
        (f"{MAX_COUNT}/31days", MAX_COUNT, 31 * 1440 * MINUTE),
    ],
)
def test_a_limit_is_a_count_and_a_period(text: str, count: int, period_us: int) -> None:
    assert Limits.parse(text).all == (Limit(count, period_us),)


def test_several_limits_hold_at_once_shortest_period_first() -> None:
    limits = Limits.parse("1000/day, 1/second, 10/minute")
    assert list(limits) == [Limit(1, 1_000_000), Limit(10, MINUTE), Limit(1000, 1440 * MINUTE)]
    assert str(limits) == "1/second,10/minute,1000/day"
    assert limits.longest_period_s == 86400


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "'' is not a limit"),
        ("10", "'10' is not a limit"),
        ("minute", "'minute' is not a limit"),
        ("/minute", "'/minute' is not a limit"),
        ("10/", "'10/' is not a limit"),
        ("-1/s", "'-1/s' is not a limit"),
        ("1.5/s", "'1.5/s' is not a limit"),
        ("10 per minute", "'10 per minute' is not a limit"),
        ("١٠/minute", "'١٠/minute' is not a limit"),
        ("10/minute,", "'' is not a limit"),
        ("1/second;10/minute", "'1/second;10/minute' is not a limit"),
        ("1/second,nonsense,10/minute", "'nonsense' is not a limit"),
        ("10/" + "9" * 400 + "ms", "is not a limit"),
        ("9" * 5000 + "/s", "is not a limit"),
        ("10/fortnight", "'fortnight' is not a unit of time (ms, s, minute, hour, day)"),
        ("0/minute", "'0/minute': the count must be 1 to 100000"),
        ("100001/minute", "'100001/minute': the count must be 1 to 100000"),
        ("10/0s", "'10/0s': the period must be 1 ms to 31 days"),
        ("10/32days", "'10/32days': the period must be 1 ms to 31 days"),
    ],
)
def test_what_is_wrong_is_named_with_an_example_of_what_would_be_right(text: str, wrong: str) -> None:
    with pytest.raises(BadLimits) as caught:
        Limits.parse(text)
    assert wrong in str(caught.value)
    assert "write e.g. 10/minute, 10/2s or 1/second,10/minute,1000/day" in str(caught.value)


@pytest.mark.parametrize("example", ["10/minute", "10/2s", "1/second,10/minute,1000/day"])
def test_what_the_errors_recommend_is_right(example: str) -> None:
    assert str(Limits.parse(example)) == example


@pytest.mark.parametrize("text", ["1/s,2/second", "60/minute,1/60s", "1/1000ms,1/s"])
def test_the_same_period_twice_is_refused_however_it_is_written(text: str) -> None:
    with pytest.raises(BadLimits, match="limits the same period twice; keep the stricter one") as caught:
        Limits.parse(text)
    assert repr(text) in str(caught.value)


def test_bad_limits_are_a_value_error_too() -> None:
    assert issubclass(BadLimits, ValueError)
    assert issubclass(BadLimits, RateLimitError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10/60s", "10/minute"),
        ("10/1440m", "10/day"),
        ("1/120s", "1/120s"),
        ("3/1500ms", "3/1500ms"),
        ("3/2000ms", "3/2s"),
        ("4/1h", "4/hour"),
    ],
)
def test_limits_are_said_in_the_plainest_unit(text: str, said: str) -> None:
    assert str(Limits.parse(text)) == said


@given(some_limits)
def test_what_is_said_is_read_back_the_same(several: list[Limit]) -> None:
    limits = Limits(tuple(sorted(several, key=lambda limit: limit.period_us)))
    assert Limits.parse(str(limits)) == limits


@given(some_limits, st.randoms(use_true_random=False))
def test_the_order_of_writing_does_not_matter(several: list[Limit], random: Random) -> None:
    written = [str(limit) for limit in several]
    random.shuffle(written)
    assert [limit.period_us for limit in Limits.parse(",".join(written))] == sorted(x.period_us for x in several)


@pytest.mark.parametrize(
    ("text", "most"), [("10/minute", 10), ("3/second,10/minute", 3), ("30/second,10/minute,1000/day", 10)]
)
def test_the_smallest_count_is_the_most_that_can_be_out_at_once(text: str, most: int) -> None:
    assert Limits.parse(text).most_at_once == most


@pytest.mark.parametrize(
    ("text", "slowest"),
    [
        ("10/minute", "10/minute"),
        ("1/second,10/minute", "10/minute"),
        ("1/second,10/minute,1000/day", "1000/day"),
        ("1/10s,600/hour", "1/10s"),  # one per 10 s against one per 6 s
        ("1/second,100/minute", "1/second"),
    ],
)
def test_the_slowest_limit_is_the_one_with_the_longest_time_per_token(text: str, slowest: str) -> None:
    assert str(Limits.parse(text).slowest()) == slowest


def test_with_latency_a_short_period_may_be_the_slower_one() -> None:
    limits = Limits.parse("1/second,50/minute")  # every 1.0 s against every 1.2 s
    assert str(limits.slowest()) == "50/minute"
    assert str(limits.slowest(latency_s=1.0)) == "1/second"  # every 2.0 s against every 1.22 s
