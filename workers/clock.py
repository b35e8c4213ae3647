"""Clocks: one for deadlines, and moments of the calendar that are some seconds away.

The clock for deadlines is never set back, and it goes on while the machine is suspended. `time.monotonic` stands still
during a suspend on Linux, so a laptop closed in mid-send would think its loan still good.

A moment that another machine must understand is told as a duration, or by a server's clock: PostgreSQL's for rows,
Redis's for tokens and wake-ups. Nothing compares the wall clocks of two machines.
"""

import time
from datetime import UTC, datetime, timedelta

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_END = datetime(9999, 1, 1, tzinfo=UTC)
"""Every time zone can write all moments before this one; the API takes none from here on either."""


def monotonic_s() -> float:
    """Seconds since some fixed moment."""
    return time.clock_gettime(_CLOCK)


def moment_in(seconds: float, now: datetime) -> datetime | None:
    """The moment so many seconds after `now`. None for never (infinite), and for what no calendar can write."""
    try:
        moment = now + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return None
    return moment if moment < _END else None
