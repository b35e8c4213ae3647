"""Paceline and what a user would pick instead, behind one face: filled, released, killed, robbed of its Redis."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from deploy.sandbox import Sandbox
from ratelimit import Limits
from tests.bench.ours import Ours
from tests.bench.processes import cpu_s
from tests.bench.rivals import Kind, Rival
from tests.bench.stage import Stage
from workers.domain.actor import Actor

ADMIN = Actor(subject="bench", role="admin")


class Contestant(Protocol):
    def start(self, messages: int) -> None:
        """Put so many messages into the queue, and let it go."""

    def kill(self) -> None:
        """SIGKILL to every worker process, and new ones in their place."""

    def empty_redis(self) -> None:
        """All that it had there is gone."""

    def cpu_s(self) -> float:
        """Of all its processes and of the servers, so far."""

    def clear(self) -> None:
        """Forget what is left of an earlier trial."""


class OursOnTrial:
    """Each account has its own key upstream, by which the sandbox limits."""

    def __init__(self, ours: Ours, accounts: int, limits: str) -> None:
        self._ours, self._accounts, self._limits = ours, accounts, limits
        for n in range(accounts):
            ours.adapters.accounts().put(
                f"account-{n}", channel="onlyfans", limits=Limits.parse(limits), display_name=None,
                credentials={"apiKey": f"account-{n}"}, by=ADMIN,
            )  # fmt: skip
        ours.open_accounts(accounts, limits)

    def start(self, messages: int) -> None:
        self._ours.fill(messages)
        self._ours.release()

    def kill(self) -> None:
        for name in self._ours.stack.services:
            if name.startswith("worker"):
                self._ours.stack.send_signal(name, signal.SIGKILL)  # the stack starts it again

    def empty_redis(self) -> None:
        self._ours.adapters.redis.flushall()

    def cpu_s(self) -> float:
        return self._ours.cpu_s()

    def clear(self) -> None:
        """Nothing is left of a trial that came to its end."""
        self._ours.await_left(0, within_s=10)


class RivalOnTrial:
    def __init__(self, rival: Rival, stage: Stage, accounts: int) -> None:
        self._rival, self._accounts = rival, accounts
        servers = stage.servers
        self._servers = [servers.postgres.pid, servers.valkey.pid]

    def start(self, messages: int) -> None:
        self._rival.hold()
        self._rival.fill(messages, self._accounts)
        self._rival.release()

    def kill(self) -> None:
        self._rival.send_signal(signal.SIGKILL)
        assert self._rival.process is not None
        self._rival.process.wait()
        self._rival.start()

    def empty_redis(self) -> None:
        self._rival.forget()

    def cpu_s(self) -> float:
        assert self._rival.process is not None
        return cpu_s([self._rival.process.pid, *self._servers])

    def clear(self) -> None:
        self._rival.forget()


@contextmanager
def ours_on_trial(stage: Stage, upstream: Sandbox, accounts: int, count: int, period_s: int) -> Iterator[Contestant]:
    limits = f"{count}/{period_s}s"
    with stage.paceline(upstream.url, own_servers=True, RATE_LIMIT=limits, ONLYFANS_IDEMPOTENT="0") as ours:
        yield OursOnTrial(ours, accounts, limits)


@contextmanager
def rival_on_trial(
    kind: Kind, stage: Stage, upstream: Sandbox, accounts: int, count: int, period_s: int
) -> Iterator[Contestant]:
    with stage.rival(kind, upstream.url, count=count, period_s=period_s) as rival:
        yield RivalOnTrial(rival, stage, accounts)
