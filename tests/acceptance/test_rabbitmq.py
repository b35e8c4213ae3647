"""RabbitMQ as Celery's broker, so that the broker goes while Redis stays. (Redis goes in `test_processes`.)"""

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from deploy.stack import Stack
from tests.acceptance.conftest import Api, await_arrivals, judge
from tests.servers.debian import EPMD, RABBITMQ, DebianServers, RabbitMQ, missing

pytestmark = pytest.mark.acceptance

MakeStack = Callable[..., Stack]


@pytest.fixture(scope="module")
def node(debian: DebianServers | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """The one of `make test-servers`; otherwise one for this module, if RabbitMQ is installed."""
    if debian is not None:
        yield debian.rabbitmq
        return
    if missing({"rabbitmq-server": RABBITMQ, "erlang-base": EPMD}):
        pytest.skip("RabbitMQ is not installed here: apt-get install --no-install-recommends rabbitmq-server")
    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq") / "node")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def rabbitmq(node: RabbitMQ) -> RabbitMQ:
    """RabbitMQ without Paceline's queue."""
    node.empty()
    return node


def await_health(api: Api, words: str) -> None:
    deadline = time.monotonic() + 30
    while words not in (health := api("GET", "/status")[1]["health"]["message"]):
        assert time.monotonic() < deadline, health
        time.sleep(0.1)


def test_rabbitmq_killed_and_back(make_stack: MakeStack, rabbitmq: RabbitMQ) -> None:
    stack = make_stack(CELERY_BROKER_URL=rabbitmq.url, RATE_LIMIT="5/2s", sandbox=["--latency-ms", "200"])
    api = Api(stack)
    for n in range(20):
        api.send(f"fan-{n}")
    await_arrivals(stack, 3)
    rabbitmq.kill()
    api.send("fan-meanwhile")
    await_health(api, "Celery's broker is away")
    rabbitmq.start()
    assert api.await_over(60) == ["sent"] * 21
    judge(stack, 21)
    await_health(api, "All systems operational")
    assert {name: service.restarts for name, service in stack.services.items() if service.restarts} == {}


def test_rabbitmq_neither_answers_nor_hangs_up(make_stack: MakeStack, rabbitmq: RabbitMQ) -> None:
    """For longer than a published drain is waited for: it is published again, and then comes more than once."""
    stack = make_stack(CELERY_BROKER_URL=rabbitmq.url, RATE_LIMIT="5/2s", workers=2, pacers=2)
    api = Api(stack)
    rabbitmq.send_signal(signal.SIGSTOP)
    try:
        for n in range(20):
            api.send(f"fan-{n}")
        time.sleep(8)
    finally:
        rabbitmq.send_signal(signal.SIGCONT)
    assert api.await_over(60) == ["sent"] * 20
    judge(stack, 20)


def test_a_stack_whose_rabbitmq_is_away_stops_by_itself(make_stack: MakeStack, rabbitmq: RabbitMQ) -> None:
    stack = make_stack(CELERY_BROKER_URL=rabbitmq.url, RATE_LIMIT="1/minute")
    api = Api(stack)
    rabbitmq.kill()
    try:
        api.send("fan-1")
        await_health(api, "Celery's broker is away")
        stack.stop()
    finally:
        rabbitmq.start()
    ended = {name: stack.services[name].process for name in ("worker1", "pacer1")}
    assert {name: process.returncode for name, process in ended.items() if process} == {"worker1": 0, "pacer1": 0}
