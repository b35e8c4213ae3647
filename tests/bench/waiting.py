"""What it costs to wait: CPU time of everything there is, servers included, while messages wait for their tokens.

Two whole stacks of the same build, side by side, watched over the same seconds: one with a full queue, one with an
empty one. Whatever else the machine does, it does to both.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark
from tests.bench.ours import Ours
from tests.bench.stage import Stage
from tests.bench.timing import together

LIMIT = "1/hour"
"""Whose token comes back long after the benchmark: they wait, all the time."""
CALM_MS = 100.0
"""CPU per second of a stack that has finished with what it could send, and with looking whether there is more."""
CALM_FOR_S, CALM_WITHIN_S = 4.0, 40.0


@benchmark(
    "waiting",
    Row(
        "CPU while 100,000 messages wait for the tokens of 1,000 accounts",
        "the same stack with an empty queue",
        "ms/s",
        figure="cpu",
        at_most=1.2,
    ),
)
@contextmanager
def waiting(stage: Stage) -> Iterator[Sides]:
    accounts, messages = stage.size(1000, 100), stage.size(100_000, 2000)
    with (
        stage.judge() as upstream,
        stage.paceline(upstream.url, own_servers=True, RATE_LIMIT=LIMIT) as full,
        stage.paceline(upstream.url, own_servers=True, RATE_LIMIT=LIMIT) as empty,
    ):
        for stack in (full, empty):
            stack.open_accounts(accounts)
        full.fill(messages)
        full.tidy()  # what a bulk of rows costs the database once is not the cost of waiting
        full.release()
        full.await_left(messages - accounts, within_s=60)
        await_calm(full)
        counters = {SUBJECT: full.cpu_s, "empty queue": empty.cpu_s}
        yield together(list(counters), lambda: cpu_of(counters, stage.size(15, 3)))


def await_calm(stack: Ours) -> None:
    deadline = time.monotonic() + CALM_WITHIN_S
    while cpu_of({"": stack.cpu_s}, CALM_FOR_S)[""]["cpu"] > CALM_MS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still busy after {CALM_WITHIN_S:.0f} s, with nothing to send")


def cpu_of(counters: Mapping[str, Callable[[], float]], window_s: float) -> dict[str, Figures]:
    """CPU time in the same seconds of all of them, in milliseconds per second."""
    before = {name: count() for name, count in counters.items()}
    began_s = time.monotonic()
    time.sleep(window_s)
    after = {name: count() for name, count in counters.items()}
    took_s = time.monotonic() - began_s
    return {name: {"cpu": (after[name] - before[name]) / took_s * 1000} for name in counters}
