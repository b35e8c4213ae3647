"""What it costs to wait: CPU time of everything there is, servers included, while messages wait for their tokens.

Two whole stacks of the same build, side by side, watched over the same seconds: one with a full queue, one with an
empty one. Whatever else the machine does, it does to both.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark
from tests.bench.ours import Ours
from tests.bench.stage import Stage
from tests.bench.timing import together

LIMIT = "1/hour"
"""Whose token comes back long after the benchmark: they wait, all the time."""
CALM_MS = 100.0
"""CPU per second of a stack that has finished with what it could send, and with looking whether there is more."""
CALM_FOR_S, CALM_WITHIN_S = 4.0, 40.0
SETTLED_AFTER_S = 35.0
"""By then whatever looks at the accounts twice a minute has seen that they have no token, and until when."""
STEPS, STEP_S = 3, 10
"""A round measures the last 30 s, so it overlaps the round before. Rare work (names compared every tenth round of the
reconciler, chores and autovacuum every 30 s) costs as much as everything else does in a second or two. A shorter round
would contain that work on one side only, by chance."""

Counters = Mapping[str, Callable[[], float]]
"""CPU seconds so far."""


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
        full.tidy()
        full.release()
        released_s = time.monotonic()
        full.await_left(messages - accounts, within_s=60)
        for stack in (full, empty):
            stack.tidy()  # what a bulk of rows costs the database once is not the cost of waiting
        await_calm(full)
        time.sleep(max(0.0, released_s + SETTLED_AFTER_S - time.monotonic()))
        counters = {SUBJECT: full.cpu_s, "empty queue": empty.cpu_s}
        yield together(list(counters), sliding(counters, stage.size(STEP_S, 1)))


def await_calm(stack: Ours) -> None:
    deadline = time.monotonic() + CALM_WITHIN_S
    look = sliding({"": stack.cpu_s}, CALM_FOR_S, steps=1)
    while look()[""]["cpu"] > CALM_MS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still busy after {CALM_WITHIN_S:.0f} s, with nothing to send")


@dataclass(frozen=True, slots=True)
class Reading:
    at_s: float
    cpu_s: Mapping[str, float]

    def since(self, other: "Reading") -> dict[str, Figures]:
        """CPU time in the same seconds of all of them, in milliseconds per second."""
        took_s = self.at_s - other.at_s
        return {name: {"cpu": (cpu_s - other.cpu_s[name]) / took_s * 1000} for name, cpu_s in self.cpu_s.items()}


def sliding(
    counters: Counters,
    step_s: float,
    steps: int = STEPS,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Callable[[], dict[str, Figures]]:
    """What looks at the last so many steps, and is one step further each time."""
    readings: deque[Reading] = deque(maxlen=steps + 1)

    def read() -> None:
        readings.append(Reading(clock(), {name: count() for name, count in counters.items()}))

    def look() -> dict[str, Figures]:
        if not readings:
            read()
        for _ in range(max(1, steps + 1 - len(readings))):
            sleep(step_s)
            read()
        return readings[-1].since(readings[0])

    return look
