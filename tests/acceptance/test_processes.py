"""Whole processes, killed and stopped: nothing lost, nothing twice, nothing beyond the limit, as the upstream saw."""

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.servers import Servers
from deploy.stack import Stack
from tests.acceptance.conftest import Api, await_arrivals, judge, upstream
from tests.servers.debian import DebianServers
from workers.engine.reconciler import PERIOD_S

pytestmark = pytest.mark.acceptance

MakeStack = Callable[..., Stack]
ServersOf = Callable[[Stack], Servers | DebianServers]


def kill(stack: Stack, name: str) -> None:
    process = stack.services[name].process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_kill_9_of_the_worker_in_the_middle(make_stack: MakeStack) -> None:
    stack = make_stack(RATE_LIMIT="10/3s", sandbox=["--latency-ms", "300"])
    api = Api(stack)
    for n in range(25):
        api.send(f"fan-{n}")
    await_arrivals(stack, 5)  # ten are on their way, none is answered yet
    kill(stack, "worker1")
    assert api.await_over(45) == ["sent"] * 25
    assert stack.services["worker1"].restarts == 1
    judge(stack, 25)


CLOCK_AHEAD = """
import datetime, sys, time

if "worker" in sys.orig_argv:
    wall, wall_ns, real = time.time, time.time_ns, datetime.datetime

    class Kind(type):
        def __instancecheck__(cls, value):
            return isinstance(value, real)

    class Ahead(real, metaclass=Kind):
        @classmethod
        def now(cls, tz=None):
            return real.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls):
            return cls.now(datetime.timezone.utc).replace(tzinfo=None)

    time.time = lambda: wall() + 31
    time.time_ns = lambda: wall_ns() + 31_000_000_000
    datetime.datetime = Ahead
"""
"""A sitecustomize module. It shifts the wall clock of a worker process, before anything is imported there."""


def test_a_worker_whose_clock_is_ahead_sends_all_the_same(make_stack: MakeStack, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK_AHEAD)
    stack = make_stack(RATE_LIMIT="10/3s", PYTHONPATH=str(tmp_path))
    api = Api(stack)
    sent = [api.send(f"fan-{n}") for n in range(15)]
    assert api.await_over(30) == ["sent"] * 15
    judge(stack, 15)
    log = (stack.data_dir / "logs" / "worker1.log").read_text()
    stamps = [json.loads(line)["timestamp"] for line in log.splitlines() if '"message_sent"' in line]
    queued = datetime.fromisoformat(sent[0]["queuedAt"])
    assert all((datetime.fromisoformat(at) - queued).total_seconds() > 30 for at in stamps), "the clock was not ahead"


def test_redis_killed_and_back_empty(make_stack: MakeStack, servers_of: ServersOf) -> None:
    stack = make_stack(RATE_LIMIT="5/6s")
    redis = servers_of(stack).valkey
    api = Api(stack)
    for n in range(15):
        api.send(f"fan-{n}")
    await_arrivals(stack, 5)
    redis.stop()
    assert api.send("fan-meanwhile")["estimatedSendTime"] is None
    time.sleep(1)
    redis.start()
    assert api.await_over(60) == ["sent"] * 16
    judge(stack, 16)


def test_a_failover_of_redis_undone(make_stack: MakeStack, servers_of: ServersOf) -> None:
    """The address leads to A, to B for a while, and back to A, which never restarted. Everything goes by it: tokens,
    wake-ups and Celery's queue."""
    stack = make_stack(RATE_LIMIT="5/8s", workers=2, pacers=2)
    redis = servers_of(stack).valkey
    api = Api(stack)
    for n in range(25):
        api.send(f"fan-{n}")
    await_arrivals(stack, 5)
    redis.fail_over()
    await_arrivals(stack, 10)
    redis.fail_back()
    assert api.await_over(90) == ["sent"] * 25
    judge(stack, 25)


def test_postgres_restarted(make_stack: MakeStack, servers_of: ServersOf) -> None:
    stack = make_stack(RATE_LIMIT="5/2s", sandbox=["--latency-ms", "200"])
    postgres = servers_of(stack).postgres
    api = Api(stack)
    for n in range(20):
        api.send(f"fan-{n}")
    await_arrivals(stack, 3)
    postgres.stop()
    status, refused = api("POST", "/send", {"recipientId": "fan-x", "content": "x"})
    assert (status, refused["code"]) == (503, "unavailable")
    postgres.start()
    assert api.await_over(60) == ["sent"] * 20
    judge(stack, 20)


def test_stopping_finishes_and_records_what_is_in_flight(make_stack: MakeStack, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    data_dir: Path = tmp_path_factory.mktemp("stack")
    before = set(psutil.Process().children(recursive=True))
    stack = make_stack(RATE_LIMIT="10/minute", data_dir=data_dir, sandbox=["--latency-ms", "1000"])
    api = Api(stack)
    for n in range(12):
        api.send(f"fan-{n}")
    await_arrivals(stack, 10)
    children = set(psutil.Process().children(recursive=True)) - before
    postgres = stack.servers.postgres.pid if stack.servers else None
    stack.stop()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    if postgres is not None:  # its own goes with it; other people's stay
        assert not psutil.pid_exists(postgres) or psutil.Process(postgres).status() == psutil.STATUS_ZOMBIE
    assert (data_dir / "logs" / "worker1.log").read_text().count('"event": "message_sent"') == 10
    again = make_stack(RATE_LIMIT="10/minute", data_dir=data_dir)
    assert sorted(Api(again).statuses()) == ["queued"] * 2 + ["sent"] * 10


def test_several_workers_and_pacers_share_the_work(make_stack: MakeStack) -> None:
    stack = make_stack(
        RATE_LIMIT="20/2s", workers=2, pacers=2, sandbox=["--latency-ms", "200"]
    )  # so drains are always on
    api = Api(stack)
    for n in range(60):
        api.send(f"fan-{n}")
    kill(stack, "pacer1")
    assert api.await_over(45) == ["sent"] * 60
    judge(stack, 60)
    assert upstream(stack, "/summary")["throttled"] == 0


def test_a_killed_stack_takes_its_processes_along(tmp_path_factory, addresses) -> None:  # type: ignore[no-untyped-def]
    import subprocess
    import sys

    data_dir = tmp_path_factory.mktemp("stack")
    command = [sys.executable, "-m", "deploy.cli", "up", "--port", "0", "--data-dir", str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **addresses}) as up:
        assert up.stdout is not None
        assert up.stdout.readline().startswith("ready http://127.0.0.1:")
        services = [
            child for child in psutil.Process(up.pid).children(recursive=True) if "deploy.cli" in child.cmdline()
        ]
        assert len(services) >= 3
        os.kill(up.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(services, timeout=20)
    assert not alive
    with Stack(
        data_dir, port=0, environ={"PATH": "/usr/bin:/bin", **addresses}
    ) as again:  # finds its servers, and stops them
        assert Api(again).statuses() == []


def lateness_s(stack: Stack, api: Api, receipts: list[dict[str, Any]]) -> float:
    """How long the worst of these, each of which could have gone at once, waited from its 202 to its first arrival."""
    arrived: dict[str, float] = {}
    for entry in upstream(stack, "/ledger")["entries"]:
        arrived.setdefault(entry["idempotency_key"], datetime.fromisoformat(entry["wall"]).timestamp())
    asked = {receipt["messageId"]: datetime.fromisoformat(receipt["queuedAt"]).timestamp() for receipt in receipts}
    return max(arrived[message_id] - at for message_id, at in asked.items())


@pytest.mark.parametrize("victim", ["worker1", "pacer1"])
def test_one_of_two_killed_delays_nothing_for_longer_than_the_reconcilers_period(
    make_stack: MakeStack, victim: str
) -> None:
    """Measured against the same stack left alone, in turns. A slow machine may spoil a round, but not all of them.

    Every account has a drain running somewhere all the time (200 ms a request), and place for no other beside it.
    """
    stack = make_stack(RATE_LIMIT="30/second", workers=2, pacers=2, sandbox=["--latency-ms", "200"])
    api = Api(stack)
    accounts = [f"account-{n}" for n in range(6)]
    for account in accounts:
        # With a key, and so a window upstream, of its own: under one key, all together may go beyond what each may.
        api("PUT", f"/accounts/{account}", {"credentials": {"apiKey": f"key-of-{account}"}})

    def stream(n: int, strike: bool) -> float:
        receipts = []
        for k in range(60):
            if strike and k == 20:
                kill(stack, victim)
            recipient = f"fan-{n}-{k}"
            receipts.append(api.send(recipient, accountId=accounts[k % len(accounts)]))
            time.sleep(0.02)
        api.await_over(30)
        return lateness_s(stack, api, receipts)

    raised_s = []
    for n in range(5):
        raised_s.append(-stream(2 * n, strike=False) + stream(2 * n + 1, strike=True))
        if raised_s[-1] <= PERIOD_S:
            break
    assert min(raised_s) <= PERIOD_S, raised_s
    judge(stack, 120 * len(raised_s))
