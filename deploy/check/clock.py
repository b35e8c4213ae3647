"""Whether another machine's clock agrees with ours, as far as the way there lets us know."""

import time
from collections.abc import Callable, Iterator

from workers.domain.remarks import Remark, warn

TOLERATED_S = 2.0


def apart_s(asked_s: float, theirs_s: float, answered_s: float) -> float:
    """By how much a clock differs at least (ahead is positive), asked at one time of ours and answered at another."""
    if theirs_s > answered_s:
        return theirs_s - answered_s
    return min(0.0, theirs_s - asked_s)


def compare(ask: Callable[[], float], clock: Callable[[], float] = time.time) -> Iterator[Remark]:
    """ask: tells what the other clock says, in seconds since 1970."""
    asked_s = clock()
    theirs_s = ask()
    off_s = apart_s(asked_s, theirs_s, clock())
    if abs(off_s) > TOLERATED_S:
        yield warn(
            f"its clock is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} this machine's: times in "
            "answers are wrong by as much, and if the clock is corrected, tokens return too late or too early: run NTP"
        )
