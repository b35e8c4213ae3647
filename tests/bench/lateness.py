"""How promptly a token is used: from the moment it is free to the request on the wire, by the judge's own books.

With a limit of N per period, an account's nth message may go one period after its (n - N)th arrived; what it comes
later than that is its lateness. What has not come when a measurement ends counts as coming then, which flatters whoever
is that late. Nobody can be early: what is, broke the limit (Celery + `limits` counts when it asks, not when the request
arrives; `compare.py` has the figures).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark, percentile
from tests.bench.dispatch import warm_up
from tests.bench.judge import Arrival, Judge
from tests.bench.ours import Ours
from tests.bench.rivals import CELERY_LIMITS, Rival
from tests.bench.stage import Stage

COUNT, PERIOD_S = 10, 6
EACH = 12
"""Messages per account in one measurement: the first ten need not wait, the others do."""
WITHIN_S = 20.0


@benchmark(
    "lateness",
    *(
        Row(
            f"token free → request on the wire, 1,000 accounts at {COUNT} per {PERIOD_S} s, {figure}",
            "Celery + limits under the same load",
            "ms",
            figure=figure,
            at_most=1,
        )
        for figure in ("p50", "p99")
    ),
)
@contextmanager
def lateness(stage: Stage) -> Iterator[Sides]:
    """All accounts begin at once, with as many messages each."""
    accounts = stage.size(1000, 50)
    messages = accounts * EACH
    with (
        stage.judge() as upstream,
        stage.paceline(upstream.url, RATE_LIMIT=f"{COUNT}/{PERIOD_S}s") as ours,
        stage.rival(CELERY_LIMITS, upstream.url, count=COUNT, period_s=PERIOD_S) as theirs,
    ):
        ours.open_accounts(accounts)
        warm_up(theirs, upstream)
        yield {
            SUBJECT: lambda: _ours(ours, upstream, messages, accounts),
            CELERY_LIMITS.name: lambda: _theirs(theirs, upstream, messages, accounts),
        }


def _ours(ours: Ours, upstream: Judge, messages: int, accounts: int) -> Figures:
    ours.await_left(0, within_s=30)
    ours.free_tokens()
    upstream.forget()
    ours.fill(messages)
    ours.release()
    found = _figures(upstream, messages, accounts)
    return found


def _theirs(theirs: Rival, upstream: Judge, messages: int, accounts: int) -> Figures:
    theirs.fill(messages, accounts)
    upstream.forget()
    theirs.release()
    found = _figures(upstream, messages, accounts)
    theirs.hold()
    if upstream.count() < messages:  # what is left would be in the way of the next measurement
        theirs.restart()
        warm_up(theirs, upstream)
    return found


def _figures(upstream: Judge, messages: int, accounts: int) -> Figures:
    upstream.await_arrivals(messages, WITHIN_S)
    ended_s = time.monotonic()
    times = [of_one + [ended_s] * (EACH - len(of_one)) for of_one in times_by_account(upstream.arrivals(), accounts)]
    late_s = lateness_s(times, COUNT, PERIOD_S)
    return {"p50": percentile(late_s, 0.5) * 1000, "p99": percentile(late_s, 0.99) * 1000}


def times_by_account(arrivals: Iterable[Arrival], accounts: int) -> list[list[float]]:
    """When each account's messages arrived, in order. Their Idempotency-Keys end in `-n`: the nth is account n's,
    round and round."""
    times: list[list[float]] = [[] for _ in range(accounts)]
    for arrival in arrivals:
        times[int(arrival.idempotency_key.rpartition("-")[2]) % accounts].append(arrival.at_s)
    return [sorted(of_one) for of_one in times]


def lateness_s(times_by_account: Iterable[Sequence[float]], count: int, period_s: float) -> list[float]:
    """How late each message was that had to wait for a token, in seconds; negative if it was too early."""
    return [
        at - (earlier + period_s)
        for times in times_by_account
        for earlier, at in zip(times, times[count:], strict=False)
    ]
