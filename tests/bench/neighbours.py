"""Whether another account's backlog makes one's own message late: from the 202 to the request on the wire."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import urllib3

from api.auth import Role, issue_token
from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark, percentile
from tests.bench.judge import Judge
from tests.bench.ours import Ours
from tests.bench.stage import SECRET, Stage

BUSY_LIMIT = "20/s"
"""Of the account with the backlog: it sends all the time, as fast as it may."""
QUIET = "default"
PAUSE_S = 0.01


@benchmark(
    "neighbour",
    Row(
        f"a single message, 202 → on the wire, while another account ({BUSY_LIMIT}) has 100,000 queued",
        "the same with an empty queue",
        "ms",
        figure="p99",
        at_most=1.5,
    ),
)
@contextmanager
def neighbour(stage: Stage) -> Iterator[Sides]:
    """Two stacks on the same servers of the machine, one with the backlog; each is sent single messages when it is its
    turn."""
    with (
        stage.judge() as upstream,
        stage.paceline(upstream.url, own_servers=True, RATE_LIMIT="1000/s") as busy,
        stage.paceline(upstream.url, own_servers=True, RATE_LIMIT="1000/s") as idle,
    ):
        busy.open_accounts(1, BUSY_LIMIT)
        busy.fill(stage.size(100_000, 3000))
        busy.tidy()
        busy.release()
        upstream.await_arrivals(20, within_s=30)
        singles = stage.size(150, 30)
        for stack in (busy, idle):
            _singles(stack, upstream, 20)
        yield {
            SUBJECT: lambda: _singles(busy, upstream, singles),
            "empty queue": lambda: _singles(idle, upstream, singles),
        }


def _singles(stack: Ours, upstream: Judge, messages: int) -> Figures:
    """One message after the other, each once the one before has arrived."""
    accepted_s: dict[str, float] = {}
    upstream.forget()
    with urllib3.PoolManager(1) as http:
        for n in range(messages):
            accepted_s[_send(http, stack, n)] = time.monotonic()
            time.sleep(PAUSE_S)
    deadline = time.monotonic() + 10
    arrived_s: dict[str, float] = {}
    while not accepted_s.keys() <= arrived_s.keys() and time.monotonic() < deadline:
        arrived_s = {arrival.idempotency_key: arrival.at_s for arrival in upstream.arrivals()}
        time.sleep(PAUSE_S)
    # A message may be on the wire before its 202 has been read here; that is no wait at all.
    waits_s = [max(0.0, arrived_s[id_] - at) for id_, at in accepted_s.items()]
    return {"p99": percentile(waits_s, 0.99) * 1000, "p50": percentile(waits_s, 0.5) * 1000}


def _send(http: urllib3.PoolManager, stack: Ours, n: int) -> str:
    body = json.dumps({"recipientId": f"single-{time.time_ns()}-{n}", "content": "Hello", "accountId": QUIET})
    token = issue_token(SECRET, subject="bench", role=Role.OPERATOR, accounts=["*"], ttl=timedelta(minutes=5))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = http.request("POST", f"{stack.stack.url}/api/onlyfans/messaging/send", body=body, headers=headers)
    assert answer.status == 202, answer.data
    return str(answer.json()["messageId"])
