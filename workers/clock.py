"""A clock for deadlines: never set back, and it goes on while the machine is suspended.

A moment that another machine must understand is told as a duration, or by a server's clock: PostgreSQL's for rows,
Redis's for tokens and wake-ups. Nothing compares the wall clocks of two machines.

`time.monotonic` stands still during a suspend on Linux, so a laptop closed in mid-send would think its loan still good.
"""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic_s() -> float:
    """Seconds since some fixed moment."""
    return time.clock_gettime(_CLOCK)
