"""What is counted, and what /metrics says of how things stand: the cases that load alone would not show.
`tests/acceptance/test_metrics.py` holds the whole of it to the database and the upstream's ledger."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families as parse

from api.app import create_app
from deploy.sandbox import Fault, Sandbox
from deploy.servers import Servers
from ratelimit import Limits
from workers.bootstrap import Adapters, build
from workers.domain.decisions import MarkSent
from workers.domain.errors import StoreUnavailable
from workers.domain.message import Claim
from workers.domain.outcome import Capabilities, Outcome, OutcomeKind
from workers.services.dispatch import Dispatcher
from workers.services.settle import Settlement, settle
from workers.services.submit import Receipt
from workers.settings import Settings
from workers.store import closures, queries
from workers.store.claims import claim_next
from workers.store.session import Database

ROOT = "/api/onlyfans/messaging"

Bearer = Callable[..., dict[str, str]]
Submit = Callable[..., Receipt]


class Counts:
    """By how much each has grown since: `counts("attempts_total", outcome="failed")`."""

    def __init__(self) -> None:
        self._before = dict(self._now())

    def __call__(self, name: str, **labels: str) -> float:
        key = (f"paceline_{name}", frozenset(labels.items()))
        return dict(self._now()).get(key, 0.0) - self._before.get(key, 0.0)

    def _now(self) -> Iterator[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
        for family in REGISTRY.collect():
            for sample in family.samples:
                yield (sample.name, frozenset(sample.labels.items())), sample.value


@pytest.fixture
def counts(adapters: Adapters) -> Counts:
    return Counts()


@pytest.fixture
def told(client: FlaskClient) -> Callable[..., float | None]:
    """What the API tells: `told("queue_depth", account="default")`; None if nothing."""
    return lambda name, **labels: scrape(client).get((f"paceline_{name}", frozenset(labels.items())))


def scrape(client: FlaskClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    samples = [sample for family in parse(answer.text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


# --- how things stand


def test_every_counter_is_there_before_anything_happens(told: Callable[..., float | None]) -> None:
    for outcome in ("sent", "failed", "cancelled", "expired"):
        assert told("messages_processed_total", outcome=outcome) is not None
    for outcome in ("accepted", "rejected", "failed", "unknown"):
        assert told("attempts_total", outcome=outcome) is not None
    for reason in ("throttled", "paused", "interrupted"):
        assert told("deferrals_total", reason=reason) is not None
    assert told("upstream_throttled_total", channel="onlyfans") is not None
    assert told("messages_accepted_total", channel="onlyfans") is not None


def test_an_account_that_sends_nothing_says_why_and_who_closed_it(
    told: Callable[..., float | None], adapters: Adapters, dispatcher: Dispatcher, submit: Submit,
    upstream: Sandbox, make_account: Callable[..., str], client: FlaskClient, bearer: Bearer,
) -> None:  # fmt: skip
    for account_id in ("refused", "resting", "on-holiday", "active"):
        make_account(account_id, api_key=None)
    upstream.faults.add(Fault("status", status=401, error="Who are you?"))
    submit(account_id="refused")
    dispatcher.drain("refused")
    adapters.tokens.cool_down("resting", 3600)
    path = f"{ROOT}/accounts/on-holiday/pause"
    assert client.post(path, json={"reason": "August"}, headers=bearer("admin")).status_code == 200

    found = {tuple(sorted(labels)) for name, labels in scrape(client) if name == "paceline_account_state"}
    assert found == {
        (("account", "refused"), ("reason", "upstream"), ("state", "paused")),
        (("account", "resting"), ("reason", "upstream"), ("state", "cooldown")),
        (("account", "on-holiday"), ("reason", "admin"), ("state", "paused")),
    }


def test_it_says_for_how_long_an_upstream_has_rested(told: Callable[..., float | None], adapters: Adapters) -> None:
    adapters.db.transaction(lambda c: closures.rest(c, "default", "away", "refused", 60.0, probed=False))
    adapters.db.all("UPDATE accounts SET rest_since = now() - interval '90 seconds'")
    assert 90 <= (told("upstream_resting_seconds", account="default", reason="away") or 0) < 120
    adapters.db.transaction(lambda c: closures.open_again(c, "default"))
    assert told("upstream_resting_seconds", account="default", reason="away") is None


def test_it_says_who_lives(told: Callable[..., float | None], adapters: Adapters) -> None:
    adapters.wakeups.beat("worker", "1", 600)
    adapters.wakeups.beat("worker", "2", 600)
    assert (told("alive", kind="worker"), told("alive", kind="pacer")) == (2, 0)
    assert (told("store_up"), told("redis_up")) == (1, 1)
    assert told("queue_depth_limit") == adapters.settings.max_queue_depth


def test_without_postgres_it_says_so_and_tells_the_rest(settings: Settings, adapters: Adapters) -> None:
    adapters.wakeups.beat("worker", "1", 600)
    away = build(replace(settings, database_url="postgresql://127.0.0.1:1/nowhere"))
    found = scrape(create_app(away).test_client())
    assert found[("paceline_store_up", frozenset())] == 0
    assert found[("paceline_alive", frozenset({("kind", "worker")}))] == 1
    assert "paceline_queue_depth" not in {name for name, _ in found}
    assert "paceline_messages_accepted_total" in {name for name, _ in found}


def test_without_redis_it_says_so_and_tells_the_rest(settings: Settings, submit: Submit) -> None:
    submit()
    found = scrape(create_app(build(replace(settings, redis_url="redis://127.0.0.1:1"))).test_client())
    assert (found[("paceline_redis_up", frozenset())], found[("paceline_store_up", frozenset())]) == (0, 1)
    assert found[("paceline_queue_depth", frozenset({("account", "default")}))] == 1
    assert not {"paceline_alive", "paceline_tokens_available"} & {name for name, _ in found}


@pytest.mark.parametrize("sql", [queries._OLDEST, queries._COUNTS])
def test_a_scrape_of_a_long_queue_reads_no_more_than_of_a_short_one(
    servers: Servers, adapters: Adapters, sql: str
) -> None:
    def pages_read(waiting: int) -> int:
        with psycopg.connect(servers.database_url, autocommit=True) as c:
            c.execute(
                "INSERT INTO messages (id, account_id, recipient_id, priority, state, content, due_at)"
                " SELECT id, 'default', id, 5, 'queued', '', now()"
                " FROM (SELECT 'msg_' || %(waiting)s || '-' || n AS id FROM generate_series(1, %(waiting)s) n) new",
                {"waiting": waiting},
            )
            c.execute("VACUUM ANALYZE messages, tallies")
            plan = c.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", {"scope": None}).fetchone()
        top = plan[0][0]["Plan"]
        return top["Shared Hit Blocks"] + top["Shared Read Blocks"]

    assert pages_read(20_000) <= pages_read(10) + 10


# --- what is counted


def test_a_late_answer_ends_its_message_in_the_counts_too(adapters: Adapters, submit: Submit, counts: Counts) -> None:
    submit()
    grant = adapters.tokens.borrow("default", adapters.settings.rate_limit, lease_s=13)
    (claim,) = claim_next(adapters.db, "default", grant.tokens, 4711, 13, origin=grant.origin)
    adapters.db.all("UPDATE attempts SET deadline_at = now() - interval '1 minute'")
    assert adapters.rescuer().rescue() == 1
    outcome = Outcome(OutcomeKind.ACCEPTED, upstream_id="up_1")
    answer = Settlement(claim=claim, outcome=outcome, decision=MarkSent("up_1"), channel="onlyfans")
    adapters.publisher.publish(adapters.db.transaction(lambda c: settle(c, [answer])).events)
    assert counts("rescued_total") == 1
    assert counts("messages_processed_total", outcome="sent") == 1


class Forgetful:
    """A database that takes the claim of one recipient's message and does not tell, once."""

    def __init__(self, db: Database, recipient_id: str) -> None:
        self._db, self._recipient_id, self.happened = db, recipient_id, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def single(self, work: Callable[[Any], Any]) -> Any:
        done = self._db.single(work)
        claims = done[1] if isinstance(done, tuple) else []
        if self._recipient_id in {claim.recipient_id for claim in claims} and not self.happened.is_set():
            self.happened.set()
            raise StoreUnavailable("committed, but who knows")
        return done


def test_a_claim_taken_back_is_a_deferral(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, counts: Counts
) -> None:
    forgetful = Forgetful(adapters.db, "fan-2")

    async def send(claim: Claim, *_: Any, **__: Any) -> Outcome:
        if claim.recipient_id == "fan-1":
            submit("fan-2")
            await asyncio.to_thread(forgetful.happened.wait, 60)
        return Outcome(OutcomeKind.ACCEPTED, upstream_id=claim.message_id)

    submit("fan-1")
    channel = SimpleNamespace(name="onlyfans", capabilities=Capabilities(idempotent=True), send=send)
    replace(dispatcher, db=forgetful, channels={"onlyfans": channel}).drain("default")  # type: ignore[arg-type]
    (not_counted,) = adapters.db.all("SELECT deferral FROM attempts WHERE NOT counted")
    assert not_counted["deferral"] == "interrupted"
    assert counts("deferrals_total", reason="interrupted") == 1


def test_what_never_left_is_no_call_upstream(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, counts: Counts
) -> None:
    async def too_late(*_: Any, **__: Any) -> Outcome:
        return Outcome(OutcomeKind.FAILED, left=False, interrupted=True)

    submit()
    channel = SimpleNamespace(name="onlyfans", capabilities=Capabilities(idempotent=True), send=too_late)
    stopping = threading.Event()
    drain = replace(dispatcher, channels={"onlyfans": channel}, stopping=stopping)
    channel.send = lambda *_, **__: stopping.set() or too_late()
    drain.drain("default")
    assert counts("deferrals_total", reason="interrupted") == 1
    assert counts("send_latency_seconds_count", channel="onlyfans") == 0


def test_a_request_answered_after_its_token_was_lent_again_is_an_overshoot(
    adapters: Adapters, submit: Submit, make_account: Callable[..., str], dispatcher: Dispatcher, counts: Counts
) -> None:
    """The first request is answered only once the second is out, which has the first one's token: its loan of 200 ms
    ended long before."""
    account_id = make_account(limits="1/200ms")
    second_is_out = threading.Event()

    async def send(claim: Claim, *_: Any, **__: Any) -> Outcome:
        if claim.recipient_id == "fan-2":
            second_is_out.set()
        else:
            await asyncio.to_thread(second_is_out.wait, 60)
        return Outcome(OutcomeKind.ACCEPTED, upstream_id=claim.message_id)

    channel = SimpleNamespace(name="onlyfans", capabilities=Capabilities(idempotent=True), send=send)
    slow = replace(dispatcher, channels={"onlyfans": channel}, lease_s=0.2)
    submit("fan-1", account_id=account_id)
    submit("fan-2", account_id=account_id)
    first = threading.Thread(target=slow.drain, args=[account_id])
    first.start()
    while not second_is_out.is_set():  # the first drain makes way for another after a while
        slow.drain(account_id)
        second_is_out.wait(0.05)
    first.join()
    assert counts("limit_overshoot_total") == 1


def test_requests_in_time_are_no_overshoot(
    submit: Submit, make_account: Callable[..., str], dispatcher: Dispatcher, counts: Counts
) -> None:
    account_id = make_account(limits="5/s")
    for n in range(20):
        submit(f"fan-{n}", account_id=account_id)
    while queries.counts(dispatcher.db, [account_id]):
        dispatcher.drain(account_id)
    assert counts("limit_overshoot_total") == 0
    assert counts("messages_processed_total", outcome="sent") == 20


# --- the caller's limit


def test_the_callers_limit_holds_however_many_ask_at_once(
    with_settings: Callable[..., Adapters], bearer: Bearer
) -> None:
    app = create_app(with_settings(api_read_limit=Limits.parse("20/minute")))

    def ask(_: int) -> int:
        return app.test_client().get(f"{ROOT}/messages", headers=bearer()).status_code

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(60)))
    assert (answers.count(200), answers.count(429)) == (20, 40)


def test_the_callers_limit_is_told_with_every_answer(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    client = create_app(with_settings(api_rate_limit=Limits.parse("2/second,3/minute"))).test_client()
    body = {"recipientId": "fan-1", "content": "Hello"}
    first, second, third = (client.post(f"{ROOT}/send", json=body, headers=bearer()) for _ in range(3))
    assert [answer.status_code for answer in (first, second, third)] == [202, 202, 429]
    policy = '"caller1";q=2;w=1, "caller2";q=3;w=60'
    assert {answer.headers["RateLimit-Policy"] for answer in (first, second, third)} == {policy}
    assert first.headers["RateLimit"] == '"caller1";r=1;t=0'
    assert (second.headers["RateLimit"], third.headers["RateLimit"]) == ('"caller1";r=0;t=1',) * 2
    assert third.headers["Retry-After"] == "1"


def test_a_full_queue_tells_its_own_limit_beside_the_callers(
    with_settings: Callable[..., Adapters], bearer: Bearer
) -> None:
    full = with_settings(max_queue_depth=1, api_rate_limit=Limits.parse("60/minute"))
    client, body = create_app(full).test_client(), {"recipientId": "fan-1", "content": "Hello"}
    _, refused = (client.post(f"{ROOT}/send", json=body, headers=bearer()) for _ in range(2))
    assert (refused.status_code, refused.json["code"]) == (429, "queue_full")
    assert refused.headers["RateLimit-Policy"] == '"queue";q=1, "caller1";q=60;w=60'
    assert refused.headers["RateLimit"] == f'"queue";r=0;t={refused.headers["Retry-After"]}'


def test_without_redis_the_callers_limit_is_open_and_says_so(
    settings: Settings, adapters: Adapters, bearer: Bearer, counts: Counts
) -> None:
    limit = Limits.parse("1/minute")
    away = create_app(build(replace(settings, redis_url="redis://127.0.0.1:1", api_rate_limit=limit))).test_client()
    body = {"recipientId": "fan-1", "content": "Hello"}
    answers = [away.post(f"{ROOT}/send", json=body, headers=bearer()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert not any("RateLimit" in answer.headers for answer in answers)
    assert counts("caller_limit_open_total") == 2
    assert queries.counts(adapters.db, None) == {"default": {"queued": 1, "held": 1}}
