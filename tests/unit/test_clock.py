"""Moments of the calendar, and what lies beyond it."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from workers.clock import moment_in

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def test_a_moment_is_so_many_seconds_away() -> None:
    assert moment_in(0.25, NOW) == NOW + timedelta(milliseconds=250)
    assert moment_in(-60.0, NOW) == NOW - timedelta(minutes=1)


@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan, 1e12, 1e300, 7972.5 * 365.2425 * 86400])
def test_never_and_what_no_calendar_can_write_is_none(seconds: float) -> None:
    assert moment_in(seconds, NOW) is None


def test_the_last_year_of_all_is_out_of_reach_in_some_time_zone() -> None:
    last = datetime(9999, 1, 1, tzinfo=UTC)
    assert moment_in((last - NOW).total_seconds(), NOW) is None
    assert moment_in((last - NOW).total_seconds() - 1, NOW) == last - timedelta(seconds=1)
