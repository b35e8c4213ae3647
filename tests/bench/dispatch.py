"""How fast messages go out, all guarantees on, where limits are not what holds them back.

Every side has its queue filled while its workers stand still (Paceline's: while nobody wakes its accounts), then is
released; the clock stops when the last message has arrived at the judge. Several accounts, as users have: one account's
messages share one set of tokens. All have two worker processes and the same servers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark
from tests.bench.bullmq import BULLMQ
from tests.bench.judge import Judge
from tests.bench.ours import Ours
from tests.bench.rivals import CELERY_LIMITS, DRAMATIQ, OBVIOUS, Rival
from tests.bench.stage import Stage

ACCOUNTS = 8
NO_LIMIT = "100000/s"
WITHIN_S = 60.0

LATENCY_MS = 50.0
HIGH_LIMIT = 400
"""Messages per second of one account."""


class NotAllArrived(AssertionError):
    """A side lost messages, or was too slow to be measured at this size."""


@benchmark(
    "dispatch",
    Row(
        "dispatch end to end, limits out of the way",
        "the obvious design: a Celery task per message, ORM, requests",
        "messages/s",
        at_least=8,
        against=("obvious",),
    ),
    Row(
        "the same",
        "the best of Celery + limits, dramatiq, BullMQ",
        "messages/s",
        at_least=1.5,
        against=("celery_limits", "dramatiq_window", "bullmq"),
    ),
)
@contextmanager
def dispatch(stage: Stage) -> Iterator[Sides]:
    """Each side as many messages as take it a few seconds."""
    with stage.judge() as upstream, ExitStack() as running:
        ours = running.enter_context(stage.paceline(upstream.url, RATE_LIMIT=NO_LIMIT))
        ours.open_accounts(ACCOUNTS)
        sides = {SUBJECT: lambda: _ours(ours, upstream, stage.size(4000, 400))}
        for kind, messages in ((OBVIOUS, 600), (CELERY_LIMITS, 2000), (DRAMATIQ, 2000), (BULLMQ, 8000)):
            if not kind.installed:
                stage.say(f"dispatch · {kind.name} is left out: it is not installed")
                continue
            rival = running.enter_context(stage.rival(kind, upstream.url))
            warm_up(rival, upstream)
            sides[kind.name] = _played(rival, upstream, stage.size(messages, messages // 10))
        _ours(ours, upstream, 200)
        yield sides


def warm_up(rival: Rival, upstream: Judge) -> None:
    """Until its workers have connected to everything; then have it stand still until it is its turn."""
    rival.fill(50, ACCOUNTS)
    _all_arrived(upstream, 50)
    rival.hold()


def _played(rival: Rival, upstream: Judge, messages: int) -> Callable[[], Figures]:
    def measure() -> Figures:
        rival.fill(messages, ACCOUNTS)
        upstream.forget()
        began_s = time.monotonic()
        rival.release()
        took_s = _all_arrived(upstream, messages) - began_s
        rival.hold()
        return {"rate": messages / took_s}

    return measure


def _ours(ours: Ours, upstream: Judge, messages: int) -> Figures:
    upstream.forget()
    ours.fill(messages)
    began_s = time.monotonic()
    ours.release()
    took_s = _all_arrived(upstream, messages) - began_s
    if left := ours.await_left(0, WITHIN_S):
        raise NotAllArrived(f"{left} messages without an outcome")
    return {"rate": messages / took_s}


def _all_arrived(upstream: Judge, messages: int) -> float:
    """When the last of them did (monotonic s)."""
    arrived = upstream.await_arrivals(messages, WITHIN_S)
    if arrived < messages:
        raise NotAllArrived(f"{arrived} of {messages} arrived within {WITHIN_S:g} s")
    return upstream.arrivals()[messages - 1].at_s


@benchmark(
    "latency",
    Row(
        f"dispatch with {LATENCY_MS:.0f} ms upstream latency, one account with {HIGH_LIMIT}/s",
        "its limit by arithmetic",
        "messages/s",
        at_least=0.9,
        constant=HIGH_LIMIT,
    ),
)
@contextmanager
def latency(stage: Stage) -> Iterator[Sides]:
    """A token comes back one period after the answer, so of `N/s` no more than N / (1 s + latency) can be reached: 0.95
    of the limit. Counted over whole turns of the window, after the first."""
    turns = stage.size(3, 2)
    with stage.judge(LATENCY_MS) as upstream, stage.paceline(upstream.url, RATE_LIMIT=f"{HIGH_LIMIT}/s") as ours:
        ours.open_accounts(1)

        def measure() -> Figures:
            upstream.forget()
            messages = HIGH_LIMIT * (turns + 1)
            ours.fill(messages)
            ours.release()
            _all_arrived(upstream, messages)
            times_s = [arrival.at_s for arrival in upstream.arrivals()]
            first_s, last_s = times_s[HIGH_LIMIT - 1], times_s[-1]
            if left := ours.await_left(0, WITHIN_S):
                raise NotAllArrived(f"{left} messages without an outcome")
            return {"rate": (messages - HIGH_LIMIT) / (last_s - first_s)}

        yield {SUBJECT: measure}
