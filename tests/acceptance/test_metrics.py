"""A running stack under load: every metric is told, and agrees with the database and with the upstream's ledger."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.request import Request, urlopen

import psycopg
import psycopg.rows
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from deploy.stack import Stack
from tests.acceptance.conftest import Api, upstream
from tests.acceptance.test_processes import kill
from tests.architecture.test_metrics_documented import defined

pytestmark = pytest.mark.acceptance

TOKEN = "let me see"
SEND = "/api/<channel>/messaging/send"
SENDERS = 4
"""Workers and pacers."""

Series = dict[tuple[str, ...], float]
"""(name without prefix, its label values): value."""


@pytest.fixture(params=["a port each", "one directory"])
def stack(request: pytest.FixtureRequest, make_stack: Callable[..., Stack]) -> Stack:
    """Two processes of everything, which tell their counts on ports of their own, or leave them to the API."""
    ports = {"METRICS_PORT": str(free_ports(SENDERS))} if request.param == "a port each" else {}
    return make_stack(
        api_workers=2, workers=2, pacers=2, RATE_LIMIT="20/2s", sandbox=["--latency-ms", "20"],
        METRICS_TOKEN=TOKEN, **ports,
    )  # fmt: skip


def free_ports(number: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20_000, 30_000, number):
        with ExitStack() as taken:
            try:
                for port in range(first, first + number):
                    taken.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no ports are free")


def test_every_metric_agrees_with_the_database_and_the_ledger(stack: Stack) -> None:
    api = Counting(stack)
    load(stack, api)
    with psycopg.connect(stack.settings.database_url, autocommit=True, row_factory=psycopg.rows.tuple_row) as db:
        db.execute("UPDATE messages SET expires_at = now() WHERE recipient_id = 'fan-too-late'")
        await_agreement(lambda: waiting(db), lambda: {("default",): 0, ("refused",): 3, ("resting",): 5})
        await_agreement(lambda: counted(stack), lambda: booked(db, stack, api))
        await_agreement(lambda: standing(stack), lambda: in_the_books(db))

        told = scrape(stack)
        assert {name for name, _, _ in told} >= {*map(series_of, defined().items())} - NOT_HERE
        (age_s,) = sums([one for one in told if "refused" in one[1]], "oldest_message_age_seconds").values()
        oldest = "SELECT extract(epoch FROM now() - min(due_at)) FROM messages WHERE account_id = 'refused'"
        assert 0 < age_s <= number(db, oldest)
        assert {value for name, _, value in told if name == "tokens_available"} <= set(range(21))
        assert sum(sums(told, "http_request_seconds_count").values()) == sum(sums(told, "http_requests_total").values())

        if stack.settings.metrics_port is None:
            kill(stack, "worker1")
            kill(stack, "pacer1")
            await_agreement(lambda: standing(stack), lambda: in_the_books(db))
            assert counted(stack) == booked(db, stack, api), "what they had counted is still told"


class Counting(Api):
    """Remembers what was answered to what."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.answered: Counter[tuple[str, str]] = Counter()

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        status, answer = super().__call__(method, path, body)
        if path == "/send":
            self.answered[SEND, str(status)] += 1
        return status, answer


NOT_HERE = {"upstream_resting_seconds"}
"""Told only of accounts that rest; `test_api_metrics.py` has one that does."""


def load(stack: Stack, api: Api) -> None:
    """Some of everything that can happen to a message."""
    upstream(stack, "/faults", "POST", {"kind": "status", "status": 401, "chat_id": "fan-of-refused"})
    for account_id in ("refused", "resting"):
        assert api("PUT", f"/accounts/{account_id}", {"credentials": {"apiKey": account_id}})[0] == 200
    assert api("POST", "/accounts/resting/pause", {"reason": "August"})[0] == 200
    for n in range(40):
        api.send(f"fan-{n % 30}")
    assert api("POST", "/send/bulk", {"messages": [{"recipientId": "fan-7", "content": "Hello"}] * 3})[0] == 202
    for n in range(3):
        for name in ("bounce", "flaky", "cut", "throttle"):
            api.send(f"{name}-{n}")
    for _ in range(3):
        api.send("fan-of-refused", accountId="refused")
    for n in range(4):
        api.send(f"fan-{n}", accountId="resting")
    api.send("fan-too-late", accountId="resting", expiresAt="2035-01-01T09:00:00Z")
    api.send("fan-later", accountId="resting", sendAt="2035-01-01T09:00:00Z")
    never = api.send("fan-never", sendAt="2035-01-01T09:00:00Z")
    assert api("DELETE", f"/messages/{never['messageId']}")[0] == 200
    assert api("POST", "/send", {"recipientId": ""})[0] == 400


# --- what is told


def scrape(stack: Stack) -> list[tuple[str, tuple[str, ...], float]]:
    """Everything that is told anywhere: (name, label values, value), once for each endpoint that tells it."""
    port = stack.settings.metrics_port
    urls = [stack.url, *(f"http://127.0.0.1:{port + n}" for n in range(SENDERS) if port)]
    return [sample for url in urls for sample in _samples(f"{url}/metrics")]


def _samples(url: str) -> Iterator[tuple[str, tuple[str, ...], float]]:
    with urlopen(Request(url, headers={"Authorization": f"Bearer {TOKEN}"}), timeout=15) as answer:
        for family in parse(answer.read().decode()):
            for sample in family.samples:
                if sample.name.startswith("paceline_"):
                    labels = tuple(value for _, value in sorted(sample.labels.items()))
                    yield sample.name.removeprefix("paceline_"), labels, sample.value


def series_of(metric: tuple[str, tuple[str, tuple[str, ...]]]) -> str:
    name, (kind, _) = metric
    return f"{name}_count" if kind == "histogram" else name


def sums(told: list[tuple[str, tuple[str, ...], float]], *names: str) -> Series:
    """Over all who tell it; what is 0 is left out."""
    found: Series = Counter()
    for name, labels, value in told:
        if name in names and value:
            found[(name, *labels)] = found.get((name, *labels), 0) + value
    return found


def counted(stack: Stack) -> Series:
    told = scrape(stack)
    answers = sums(told, "http_requests_total")
    requests = {series: value for series, value in answers.items() if series[1] == SEND}
    return requests | sums(
        told, "messages_accepted_total", "messages_processed_total", "attempts_total", "deferrals_total",
        "upstream_throttled_total", "outcome_unknown_total", "limit_overshoot_total", "rescued_total",
        "send_latency_seconds_count", "dispatch_delay_seconds_count", "queue_wait_seconds_count",
        "estimate_error_seconds_count", "caller_limit_open_total",
    )  # fmt: skip


def standing(stack: Stack) -> Series:
    """Gauges are told by the API alone, so a sum over everybody must change nothing."""
    told = scrape(stack)
    names = ("queue_depth", "in_flight", "dead_letters", "account_state", "alive", "store_up", "redis_up")
    return sums(told, *names)


# --- what is right


def booked(db: psycopg.Connection[Any], stack: Stack, api: Counting) -> Series:
    """The same numbers from the database, the ledger and the caller's own memory."""
    ledger = upstream(stack, "/summary")
    found = {
        ("messages_accepted_total", "onlyfans"): number(db, "SELECT count(*) FROM messages"),
        ("upstream_throttled_total", "onlyfans"): ledger["by_verdict"]["throttled"],
        ("send_latency_seconds_count", "onlyfans"): ledger["arrivals"],
        ("dispatch_delay_seconds_count",): number(db, "SELECT count(*) FROM attempts"),
        ("outcome_unknown_total",): number(db, "SELECT count(*) FROM attempts WHERE counted AND outcome = 'unknown'"),
        ("queue_wait_seconds_count",): number(db, "SELECT count(*) FROM messages WHERE state = 'sent'"),
        ("estimate_error_seconds_count",): number(
            db, "SELECT count(*) FROM messages WHERE state = 'sent' AND estimated_at IS NOT NULL"
        ),
        ("limit_overshoot_total",): ledger["overshoot"],
        **groups(
            db, "messages_processed_total", "SELECT state, count(*) FROM messages WHERE ended_at IS NOT NULL GROUP BY 1"
        ),
        **groups(db, "attempts_total", "SELECT outcome, count(*) FROM attempts WHERE counted GROUP BY 1"),
        **groups(db, "deferrals_total", "SELECT deferral, count(*) FROM attempts WHERE NOT counted GROUP BY 1"),
        **{("http_requests_total", *answer): times for answer, times in api.answered.items()},
    }
    return {series: value for series, value in found.items() if value}


def in_the_books(db: psycopg.Connection[Any]) -> Series:
    waiting = "SELECT account_id, count(*) FROM messages WHERE state IN ('scheduled', 'held', 'queued') GROUP BY 1"
    return {
        **groups(db, "queue_depth", waiting),
        **groups(
            db, "dead_letters", "SELECT account_id, count(*) FROM dead_letters WHERE closed_at IS NULL GROUP BY 1"
        ),
        ("account_state", "refused", "upstream", "paused"): 1,
        ("account_state", "resting", "admin", "paused"): 1,
        ("alive", "worker"): 2,
        ("alive", "pacer"): 2,
        ("store_up",): 1,
        ("redis_up",): 1,
    }


def waiting(db: psycopg.Connection[Any]) -> Series:
    not_over = "SELECT a.id, count(m.id) FROM accounts a LEFT JOIN messages m ON m.account_id = a.id"
    return {(account_id,): n for account_id, n in db.execute(f"{not_over} AND m.ended_at IS NULL GROUP BY 1")}


def number(db: psycopg.Connection[Any], sql: str) -> float:
    row = db.execute(sql).fetchone()
    assert row is not None
    return float(row[0])


def groups(db: psycopg.Connection[Any], name: str, sql: str) -> Series:
    return {(name, group): n for group, n in db.execute(sql)}


def await_agreement(told: Callable[[], Series], right: Callable[[], Series], within_s: float = 60) -> None:
    """Counts follow a COMMIT; give them time to."""
    deadline = time.monotonic() + within_s
    while (found := told()) != (wanted := right()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == wanted
