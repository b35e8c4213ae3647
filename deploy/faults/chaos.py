"""Does the faults: signals, servers taken away and brought back, an upstream that goes wrong."""

import heapq
import itertools
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import psycopg

from deploy.client import NoAnswer
from deploy.faults.caller import Caller
from deploy.faults.evidence import UNAVAILABLE
from deploy.faults.schedule import POSTGRES, Event, Kind
from deploy.servers import Breakable
from deploy.stack import Stack

RATES: Mapping[str, float] = {
    "delay:0.7": 0.08,
    "late:1.2": 0.02,
    "cut": 0.015,
    "cut_before": 0.01,
    "cut_midway": 0.005,
    "hang:3": 0.01,
    "swallow:3": 0.005,
    "in_use:1.2": 0.01,
    "in_use_cut:1": 0.015,
    "drip:1": 0.005,
    "garbage": 0.01,
    "no_id": 0.005,
    "status:503": 0.02,
    "status:500": 0.01,
    "status:429": 0.01,
}
"""How the upstream misbehaves throughout. Everything that it accepts at all, it accepts and shows within the send
timeout."""
BURST: Mapping[str, float] = {
    "status:503": 0.3,
    "cut": 0.15,
    "late:1.5": 0.1,
    "hang:4": 0.1,
    "garbage": 0.05,
    "status:429": 0.05,
}
GROWN_UP_S = 2.0
"""A process is killed or stopped once it is this old: one that is only importing modules has nothing to lose."""
AWAY: Mapping[Kind, Mapping[str, object]] = {
    Kind.UPSTREAM_REFUSES: {},
    Kind.UPSTREAM_UNAVAILABLE: {"kind": "status", "status": 503, "retry_after_s": 1, "error": UNAVAILABLE},
    Kind.UPSTREAM_SILENT: {"kind": "swallow"},
}
"""What its outages look like, in the words of its control API."""
TRY_AGAIN_S = 0.3
GIVE_UP_S = 30.0


class Chaos:
    """Runs a schedule against a stack, from a thread of its own. `done` counts what has been done, by kind.

    servers: those that the stack runs on.
    hurry: makes callers busy, just before those are struck who accept from them; what happens to an idle one shows
    little."""

    def __init__(
        self, stack: Stack, servers: Breakable, events: Iterable[Event], seed: int, hurry: Callable[[], None]
    ) -> None:
        self.done: Counter[Kind] = Counter()
        self._stack = stack
        self._servers = servers
        self._events = tuple(events)
        self._seed = seed
        self._hurry = hurry
        self._chance = random.Random(seed)  # noqa: S311 - reproducible is the point
        self._upstream = Caller(stack.sandbox_url)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._now_s = self._late_s = 0.0  # by the agenda, in which every action takes no time
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def start(self) -> None:
        self._misbehave(RATES)
        began_s = time.monotonic()
        for event in self._events:
            self._at(began_s + event.at_s, partial(self._do, event))
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the schedule has been done to its end. Raises what went wrong with that."""
        if self._error is not None:
            raise RuntimeError("a fault could not be done") from self._error
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._agenda:
                self._now_s, _, action = heapq.heappop(self._agenda)
                time.sleep(max(0.0, self._now_s + self._late_s - time.monotonic()))
                began_s = time.monotonic()
                action()
                # What had to wait for a slow server keeps its distances: faults must not come all at once then.
                self._late_s += time.monotonic() - began_s
        except BaseException as error:
            self._error = error

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._numbers), action))

    def _after(self, for_s: float, action: Callable[[], object]) -> None:
        def act() -> None:
            action()

        self._at(self._now_s + for_s, act)

    def _do(self, event: Event) -> None:
        servers = self._servers
        if event.kind in POSTGRES or "api" in event.targets:
            self._hurry()
            time.sleep(self._chance.uniform(0.005, 0.1))
        match event.kind:
            case Kind.KILL | Kind.TERMINATE | Kind.HANG:
                for target in event.targets:
                    self._strike(event, target, time.monotonic() + GIVE_UP_S)
                return
            case Kind.REDIS_EMPTIED:
                servers.valkey.empty()
            case Kind.REDIS_KILLED:
                servers.valkey.kill()
                self._after(event.for_s, servers.valkey.start)
            case Kind.REDIS_STOPPED:
                servers.valkey.send_signal(signal.SIGSTOP)
                self._after(event.for_s, partial(servers.valkey.send_signal, signal.SIGCONT))
            case Kind.REDIS_FAILED_OVER:
                servers.valkey.fail_over()
                self._after(event.for_s, servers.valkey.fail_back)
            case Kind.POSTGRES_RESTARTED:
                servers.postgres.stop()
                self._after(event.for_s, partial(_insist, servers.postgres.start))
            case Kind.POSTGRES_CRASHED:
                servers.postgres.crash()
                self._after(event.for_s, partial(_insist, servers.postgres.start))
            case Kind.POSTGRES_STOPPED:
                servers.postgres.send_signal(signal.SIGSTOP)
                self._after(event.for_s, partial(servers.postgres.send_signal, signal.SIGCONT))
            case Kind.POSTGRES_LOCKED:
                # All drains come as far as their claims, tokens in hand, and no further.
                session = psycopg.connect(self._stack.settings.database_url, connect_timeout=10)
                session.execute("LOCK TABLE attempts IN SHARE ROW EXCLUSIVE MODE")
                self._after(event.for_s, session.close)
            case Kind.UPSTREAM_REFUSES | Kind.UPSTREAM_UNAVAILABLE | Kind.UPSTREAM_SILENT:
                outage = {"for_s": event.for_s, **AWAY[event.kind]}
                self._upstream.until_answered("POST", "/_sandbox/outage", outage)
            case Kind.UPSTREAM_BURST:
                self._misbehave(BURST)
                self._after(event.for_s, partial(self._misbehave, RATES))
        self.done[event.kind] += 1

    def _strike(self, event: Event, target: str, until_s: float) -> None:
        """Signal a process; one that is not there, or has just been started, a little later."""
        service = self._stack.services[target]
        number = {Kind.KILL: signal.SIGKILL, Kind.TERMINATE: signal.SIGTERM, Kind.HANG: signal.SIGSTOP}[event.kind]
        old_enough = time.monotonic() - service.since_s > GROWN_UP_S
        victim = service.process
        if not old_enough or not self._stack.send_signal(target, number):
            if time.monotonic() < until_s:
                self._after(TRY_AGAIN_S, partial(self._strike, event, target, until_s))
            return
        self.done[event.kind] += 1
        if event.kind is Kind.HANG:

            def wake() -> None:
                if self._stack.services[target].process is victim:  # not killed meanwhile
                    self._stack.send_signal(target, signal.SIGCONT)

            self._after(event.for_s, wake)

    def _misbehave(self, rates: Mapping[str, float]) -> None:
        try:
            self._upstream.until_answered("PUT", "/_sandbox/rates", {"rates": dict(rates), "seed": self._seed})
        except NoAnswer:
            raise RuntimeError("the upstream's controls do not answer") from None
        self._seed += 1


def _insist(start: Callable[[], object]) -> None:
    """On a busy machine a recovery may take longer than the wheel waits for it; asked again, it finds it running."""
    for _ in range(5):
        try:
            start()
            return
        except subprocess.SubprocessError:
            time.sleep(1.0)
    start()
