"""What a user would pick instead, on the same work and before the same judge.

The judge is the sandbox: a strict rolling limit per account, a 429 for whoever breaks it, a ledger of everything. It
does not honour idempotency keys, so that what is sent twice arrives twice. Each contestant has two worker processes.

    pace     5 accounts at 10 per 2 s, 50 messages each: the worst rolling window, 429s, utilisation, lateness
    kill     the same; every worker is killed with SIGKILL, three times, and started again
    empty    the same; Redis is emptied three seconds in
    cost     limits out of the way: CPU time per 1,000 messages, servers included
    wait     all tokens used up: CPU time while the rest waits

    python -m tests.bench.compare [--only celery_limits] [--markdown docs/benchmarks.md]
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from deploy.sandbox import Entry, Sandbox
from deploy.sandbox.ledger import COUNTED, fullest_window
from deploy.servers.places import throwaway_directory
from tests.bench.benchmark import percentile
from tests.bench.contestants import Contestant, ours_on_trial, rival_on_trial
from tests.bench.dispatch import NO_LIMIT
from tests.bench.lateness import lateness_s
from tests.bench.processes import clean_up_on_sigterm
from tests.bench.report import markdown_table, number, write
from tests.bench.rivals import CELERY_LIMITS, CELERY_RATE, DRAMATIQ
from tests.bench.stage import Stage
from workers.telemetry.logs import configure_logging

ACCOUNTS, EACH = 5, 50
MESSAGES = ACCOUNTS * EACH
COUNT, PERIOD_S = 10, 2
IDEAL_S = (EACH / COUNT - 1) * PERIOD_S
"""From the first to the last message of an account that uses every token at once."""
LATENCY_MS = 20.0
RECOVERY_S, EMPTY_S = 150.0, 40.0
"""How long to wait for what does not come: Celery looks for the tasks of dead workers every 100 s."""
MANY = 2000

Start = Callable[[Sandbox, int, int, int], AbstractContextManager[Contestant]]


@dataclass(frozen=True, slots=True)
class Pace:
    worst_window: int
    throttled: int
    utilisation: float
    late_p50_s: float
    late_p99_s: float


@dataclass(frozen=True, slots=True)
class Damage:
    """lost: never arrived, however long one waits. duplicated: arrived more often than once."""

    lost: int
    duplicated: int

    def __str__(self) -> str:
        return f"{self.lost} / {self.duplicated}"


HEADINGS = (
    "", f"worst window (of {COUNT})", "429s", "utilisation", "late p50", "late p99", "kill -9: lost / twice",
    "Redis emptied: lost / twice", "CPU per 1,000", "CPU waiting",
)  # fmt: skip


def contestants(stage: Stage) -> dict[str, Start]:
    found: dict[str, Start] = {"Paceline": partial(ours_on_trial, stage)}
    names = {CELERY_RATE: "Celery rate_limit", CELERY_LIMITS: "Celery + limits", DRAMATIQ: "dramatiq window"}
    return found | {name: partial(rival_on_trial, kind, stage) for kind, name in names.items()}


def compare(name: str, start: Start, say: Callable[[str], None]) -> list[str]:
    """A line of the table."""
    with Sandbox(f"{COUNT}/{PERIOD_S}s", idempotent=False, latency_ms=LATENCY_MS) as upstream:
        with start(upstream, ACCOUNTS, COUNT, PERIOD_S) as contestant:
            pace = paced(contestant, upstream)
            say(f"{name} · {pace}")
            killed = damaged(contestant, upstream, [contestant.kill] * 3, RECOVERY_S)
            say(f"{name} · killed: {killed}")
            emptied = damaged(contestant, upstream, [contestant.empty_redis], EMPTY_S)
            say(f"{name} · emptied: {emptied}")
        upstream.ledger.enforce = False
        upstream.latency_ms = 0
        with start(upstream, ACCOUNTS, int(NO_LIMIT.partition("/")[0]), 1) as contestant:
            per_1000_s = cost(contestant, upstream)
        with start(upstream, ACCOUNTS, COUNT, 60) as contestant:
            waiting_ms = waiting(contestant, upstream)
    say(f"{name} · {per_1000_s:.2f} s per 1,000, {waiting_ms:.0f} ms/s waiting")
    return [
        name, str(pace.worst_window), str(pace.throttled), f"{pace.utilisation:.0%}",
        f"{number(pace.late_p50_s * 1000)} ms", f"{number(pace.late_p99_s * 1000)} ms", str(killed), str(emptied),
        f"{per_1000_s:.2f} s", f"{waiting_ms:.0f} ms/s",
    ]  # fmt: skip


def paced(contestant: Contestant, upstream: Sandbox) -> Pace:
    _begin(contestant, upstream)
    await_accepted(upstream, MESSAGES, within_s=60)
    return pace_of(upstream.ledger.entries[:])


def pace_of(entries: Sequence[Entry]) -> Pace:
    """What the ledger says of how the limit was used and held. The worst window counts what arrived, refused or not."""
    arrived, accepted = _times(entries, counted=False), _times(entries, counted=True)
    took_s = max(times[-1] for times in accepted) - min(times[0] for times in accepted)
    late_s = lateness_s(accepted, COUNT, PERIOD_S)
    return Pace(
        max(fullest_window([round(at * 1e9) for at in times], PERIOD_S * 10**9) for times in arrived),
        sum(entry.verdict == "throttled" for entry in entries),
        IDEAL_S / took_s,
        percentile(late_s, 0.5),
        percentile(late_s, 0.99),
    )


def _times(entries: Sequence[Entry], *, counted: bool) -> list[list[float]]:
    """When messages arrived, account by account (s)."""
    times: dict[str, list[float]] = {}
    for entry in entries:
        if entry.verdict in COUNTED or not counted:
            times.setdefault(entry.arrival.message.key, []).append(entry.arrival.at_ns / 1e9)
    return list(times.values())


def damaged(
    contestant: Contestant, upstream: Sandbox, blows: Sequence[Callable[[], None]], patience_s: float
) -> Damage:
    """What is lost and what arrives twice, if these befall it, two seconds apart: in the middle of sending."""
    contestant.clear()
    _begin(contestant, upstream)
    await_accepted(upstream, COUNT, within_s=30)
    for blow in blows:
        time.sleep(PERIOD_S + LATENCY_MS / 2000)
        blow()
    await_accepted(upstream, MESSAGES, within_s=patience_s)
    return damage_of(upstream.ledger.entries[:], MESSAGES)


def damage_of(entries: Sequence[Entry], messages: int) -> Damage:
    """By the messages' own idempotency keys, which all contestants send. More of them than messages: one of the trial
    before came once more in this one."""
    keys = [entry.arrival.message.idempotency_key for entry in entries if entry.verdict in COUNTED]
    distinct = min(messages, len(set(keys)))
    return Damage(messages - distinct, len(keys) - distinct)


def cost(contestant: Contestant, upstream: Sandbox) -> float:
    """CPU seconds per 1,000 messages, its own and the servers', from the queue to the last answer."""
    _begin(contestant, upstream, MESSAGES)  # until everything has connected
    await_accepted(upstream, MESSAGES, within_s=60)
    before = contestant.cpu_s()
    _begin(contestant, upstream, MANY)
    await_accepted(upstream, MANY, within_s=60)
    return (contestant.cpu_s() - before) / MANY * 1000


def waiting(contestant: Contestant, upstream: Sandbox, for_s: float = 10) -> float:
    """CPU time in milliseconds per second while nothing can be sent."""
    _begin(contestant, upstream)
    await_accepted(upstream, ACCOUNTS * COUNT, within_s=60)
    time.sleep(3)
    before, began_s = contestant.cpu_s(), time.monotonic()
    time.sleep(for_s)
    return (contestant.cpu_s() - before) / (time.monotonic() - began_s) * 1000


def _begin(contestant: Contestant, upstream: Sandbox, messages: int = MESSAGES) -> None:
    upstream.reset()
    contestant.start(messages)


def await_accepted(upstream: Sandbox, messages: int, within_s: float) -> None:
    """Until so many different messages have been accepted, or that is not to be expected any more."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        entries = upstream.ledger.entries[:]
        if damage_of(entries, messages).lost <= 0:
            return
        time.sleep(0.1)


@click.command()
@click.option("--only", default="", metavar="NAMES", help="Of contestants, separated by commas.")
@click.option("--markdown", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the table there too.")
def main(only: str, file: Path | None) -> None:
    """Paceline beside what a user would pick instead."""
    clean_up_on_sigterm()
    configure_logging("console", level=logging.WARNING)
    progress = Console(stderr=True)

    def say(words: str) -> None:
        progress.print(words, highlight=False, markup=False)

    wanted = {name.strip().lower() for name in only.split(",") if name.strip()}
    with throwaway_directory("pace-") as directory, Stage(directory, say=say) as stage:
        lines = [
            compare(name, start, say)
            for name, start in contestants(stage).items()
            if name.lower() in wanted or not wanted
        ]
    table = Table(*HEADINGS, title=f"{ACCOUNTS} accounts at {COUNT} per {PERIOD_S} s")
    for line in lines:
        table.add_row(*line)
    Console(width=180).print(table)
    if file is not None:
        write(file, "comparison", markdown_table(HEADINGS, lines), target="compare")


if __name__ == "__main__":
    main()
