"""When an upstream wants to be asked again, by its own clock: RFC 9110 §10.2.3 (Retry-After) and §5.6.7 (dates)."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

LONGEST_S = 2.0**31
"""A larger number counts as this one, as RFC 9111 §1.2.2 has it for other headers that hold seconds."""

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = "Mon|Tue|Wed|Thu|Fri|Sat|Sun"
_LONG_DAY = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = (
    re.compile(rf"(?:{_DAY}), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),  # IMF-fixdate
    re.compile(rf"(?:{_LONG_DAY}), (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),  # RFC 850
    re.compile(rf"(?:{_DAY}) {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})"),  # asctime
)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How many seconds an answer asks to wait; None if it does not say, or says something malformed.

    A date is measured against the answer's own Date, so that the upstream's clock need not agree with ours. Fractions
    of a second are not in the RFC, but some upstreams send them, and there is only one way to read them.
    """
    value = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), LONGEST_S)
    until = http_date(value)
    return None if until is None else max(0.0, (until - answered_at(headers)).total_seconds())


def answered_at(headers: Mapping[str, str]) -> datetime:
    """When the upstream answered, by its own clock; by ours if the answer does not say."""
    return http_date(headers.get("Date", "").strip()) or datetime.now(UTC)


def http_date(text: str, now: datetime | None = None) -> datetime | None:
    """A date in one of the three forms of RFC 9110, else None. now: what a year of two digits is read against."""
    for form in _DATES:
        if found := form.fullmatch(text):
            return _moment(found, now or datetime.now(UTC))
    return None


def _moment(found: re.Match[str], now: datetime) -> datetime | None:
    year, second = int(found["year"]), int(found["second"])
    two_digits = len(found["year"]) == 2
    leap = second == 60  # a leap second, which datetime does not know
    try:
        moment = datetime(
            year + (now.year // 100 * 100 if two_digits else 0),
            _MONTHS.index(found["month"]) + 1,
            int(found["day"]),
            int(found["hour"]),
            int(found["minute"]),
            59 if leap else second,
            tzinfo=UTC,
        )
        moment += timedelta(seconds=leap)
        # RFC 9110 §5.6.7: two digits that seem to be more than 50 years ahead mean the last year that ended like this.
        if two_digits and moment.year > now.year + 50:
            moment = moment.replace(year=moment.year - 100)
    except (ValueError, OverflowError):
        return None
    return moment
