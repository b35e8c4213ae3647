"""Retry-After in every form that RFC 9110 allows, and in those that it does not: malformed counts as not said."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.channels.http.retry_after import LONGEST_S, answered_at, http_date, retry_after_s

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def imf_fixdate(at: datetime) -> str:
    return f"{DAYS[at.weekday()][:3]}, {at:%d} {MONTHS[at.month - 1]} {at.year:04} {at:%H:%M:%S} GMT"


def rfc_850(at: datetime) -> str:
    return f"{DAYS[at.weekday()]}, {at:%d}-{MONTHS[at.month - 1]}-{at.year % 100:02} {at:%H:%M:%S} GMT"


def asctime(at: datetime) -> str:
    return f"{DAYS[at.weekday()][:3]} {MONTHS[at.month - 1]} {at.day:2} {at:%H:%M:%S} {at.year:04}"


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
FORMS = (imf_fixdate, rfc_850, asctime)
"""Written here without strftime's %a and %b, which follow the locale."""


def after_s(value: str, date: str = imf_fixdate(NOON)) -> float | None:
    return retry_after_s({"Retry-After": value, "Date": date})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        ("0.5", 0.5),
        (" 7 ", 7.0),
        ("9" * 400, LONGEST_S),
        ("Fri, 20 Nov 2026 12:01:00 GMT", 60.0),
        ("Friday, 20-Nov-26 12:01:00 GMT", 60.0),
        ("Fri Nov 20 12:01:00 2026", 60.0),
        ("Fri, 20 Nov 2026 12:00:60 GMT", 60.0),  # a leap second
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 20 Nov 2026 12:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_upstreams_clock(value: str, seconds: float) -> None:
    assert after_s(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-4",
        "-0000",
        "+3",
        "nan",
        "inf",
        "1e3",
        "1.",
        ".5",
        "0x10",
        "1_000",
        "30, 60",
        "\u0663",  # a digit, but not one of HTTP's
        "30s",
        "Fri, 20 Nov 2026 12:01:00 -0000",
        "Fri, 20 Nov 2026 12:01:00 +0100",
        "Fri, 31 Nov 2026 12:01:00 GMT",
        "Fri, 20 Nov 2026 24:00:00 GMT",
        "Fri, 20 Nov 99999999999999 12:01:00 GMT",
        "Fri, 20 Nov 0000 12:01:00 GMT",
        "2026-11-20T12:01:00Z",
    ],
)
def test_what_is_malformed_counts_as_not_said(value: str) -> None:
    assert after_s(value) is None


def test_nothing_said_is_none() -> None:
    assert retry_after_s({"Date": imf_fixdate(NOON)}) is None


def test_without_a_date_of_its_own_an_answer_counts_as_just_given() -> None:
    for date in ({}, {"Date": "yesterday"}, {"Date": "Fri, 20 Nov 2026 12:00:00 -0000"}):
        before = datetime.now(UTC)
        assert before <= answered_at(date) <= datetime.now(UTC)


@given(st.integers(min_value=0, max_value=10**12))
def test_any_number_of_seconds_is_taken(seconds: int) -> None:
    assert after_s(str(seconds)) == min(seconds, LONGEST_S)


@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2070, 1, 1)).map(lambda at: at.replace(microsecond=0, tzinfo=UTC)),
    st.sampled_from(FORMS),
)
def test_every_date_is_read_in_every_form(at: datetime, form: Callable[[datetime], str]) -> None:
    assert http_date(form(at), NOW) == at


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2060, 1, 1)).map(lambda at: at.replace(microsecond=0, tzinfo=UTC)),
    st.integers(min_value=-(10**6), max_value=10**7),
    st.sampled_from(FORMS),
    st.sampled_from(FORMS),
)
def test_only_the_upstreams_two_clocks_count(
    at: datetime, ahead_s: int, said: Callable[[datetime], str], dated: Callable[[datetime], str]
) -> None:
    """Whatever our own clock says, and in whichever forms the upstream writes its dates."""
    value = said(at + timedelta(seconds=ahead_s))
    assert after_s(value, dated(at)) == max(0, ahead_s)


def test_two_digits_of_a_year_are_never_more_than_fifty_years_ahead() -> None:
    assert http_date("Friday, 20-Nov-76 12:00:00 GMT", NOW) == datetime(2076, 11, 20, 12, tzinfo=UTC)
    assert http_date("Sunday, 20-Nov-77 12:00:00 GMT", NOW) == datetime(1977, 11, 20, 12, tzinfo=UTC)


@given(st.text(), st.text())
@example("9" * 5000, "")
@example("Monday, 29-Feb-00 00:00:00 GMT", "Wed, 31 Dec 9999 23:59:60 GMT")
def test_no_text_breaks_it(value: str, date: str) -> None:
    found = after_s(value, date)
    assert found is None or 0 <= found < float("inf")
