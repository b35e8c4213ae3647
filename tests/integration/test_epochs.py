"""One Redis server at a time gives out tokens: fallen over and back, restored, restarted, or two in use at once.

Two real servers, and an address that leads to one of them at a time. What counts is the upstream's ledger.
"""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy.check import epoch as check
from deploy.sandbox import Sandbox
from deploy.servers import Servers, Valkey
from ratelimit import Limits
from tests.conftest import ALICE
from tests.servers.address import Address
from workers.bootstrap import Adapters, build
from workers.domain.filters import MessageFilter
from workers.engine.reconciler import Reconciler
from workers.services.epochs import NOTE_EVERY_S, Keeper
from workers.services.recovery import rebuild_tokens
from workers.settings import Settings
from workers.store import epochs, queries
from workers.store.claims import claim_next

LIMIT = Limits.parse("10/minute")


@pytest.fixture
def a(servers: Servers) -> str:
    return servers.redis_url


@pytest.fixture
def b(tmp_path: Path) -> Iterator[str]:
    valkey = Valkey(tmp_path / "b")
    yield valkey.start()
    valkey.stop()


@pytest.fixture
def address(tmp_path: Path, a: str) -> Iterator[Address]:
    address = Address(tmp_path / "redis.sock", a)
    yield address
    address.close()


@dataclass
class Side:
    """A worker and a reconciler that go by one address. `reconcile` is a round of what concerns the tokens."""

    adapters: Adapters
    keeper: Keeper = field(init=False)
    pauses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.adapters.db, self.adapters.tokens)

    def hold(self, pause: Callable[[float], Any] | None = None) -> epochs.Epoch | None:
        return self.keeper.hold(epochs.current(self.adapters.db), pause or self.pauses.append)

    def reconcile(self, pause: Callable[[float], Any] | None = None) -> int:
        held, s = self.hold(pause), self.adapters
        return rebuild_tokens(s.db, s.tokens, held, s.settings.rate_limit, self.pauses.append) if held else 0

    def drain(self) -> int:
        return self.adapters.dispatcher(worker=1).drain("default").settled


@pytest.fixture
def side(adapters: Adapters, settings: Settings) -> Iterator[Callable[[str], Side]]:
    """On emptied servers, whose default account is known."""
    built: list[Adapters] = []

    def make(url: str) -> Side:
        built.append(build(replace(settings, redis_url=url), name="paceline tests"))
        return Side(built[-1])

    yield make
    for each in built:
        each.close()


@pytest.fixture
def queue(adapters: Adapters) -> Callable[[int], None]:
    def do(n: int) -> None:
        for _ in range(n):
            wanted = {"recipient_id": f"fan-{next(numbers)}", "content": "Hello"}
            adapters.submitter().submit(wanted, "default", by=ALICE)

    numbers = iter(range(1000))
    return do


@pytest.fixture
def strict(upstream: Sandbox) -> Sandbox:
    """It counts the account's own limit, and lets everything through."""
    upstream.reset()
    upstream.ledger.enforce = False
    return upstream


def most_in_a_window(upstream: Sandbox) -> int:
    """All of these tests take less than a period, so that is how many there were."""
    return upstream.summary()["arrivals"]


def states(adapters: Adapters) -> dict[str, int]:
    return queries.counts(adapters.db, None).get("default", {})


# --- the address leads elsewhere and back


def test_a_failover_undone_sends_no_more_than_the_limit(
    address: Address, a: str, b: str, side: Callable[[str], Side], queue: Callable[[int], None], strict: Sandbox
) -> None:
    """The address leads to A, to B for a while, and back to A, which never restarted."""
    queue(30)
    there = side(address.url)
    assert there.reconcile() == 0  # the epoch is A's already
    address.lead_to(b)
    there.drain()
    assert most_in_a_window(strict) == 0
    assert there.reconcile() == 1
    assert there.drain() == 10
    address.lead_to(a)
    there.drain()
    assert most_in_a_window(strict) == 10
    assert there.reconcile() == 1
    there.drain()
    assert most_in_a_window(strict) == 10
    assert states(there.adapters) == {"queued": 20, "sent": 10} or states(there.adapters) == {"queued": 20}


def test_what_a_server_of_the_past_lends_is_void_and_costs_nothing(
    address: Address, a: str, b: str, side: Callable[[str], Side], queue: Callable[[int], None], strict: Sandbox
) -> None:
    """Nobody has noticed yet that the address leads back to A, which gives out tokens as if nothing had happened."""
    queue(3)
    there = side(address.url)
    address.lead_to(b)
    there.reconcile()
    address.lead_to(a)
    tokens = there.adapters.tokens
    assert len(tokens.borrow("default", LIMIT, want=1, lease_s=13).tokens) == 1
    before = len(tokens.view("default", LIMIT).uses)
    report = there.adapters.dispatcher(worker=1).drain("default")
    assert (report.claimed, most_in_a_window(strict)) == (0, 0)
    assert report.next_s is not None
    assert 0.5 < report.next_s <= 1
    assert states(there.adapters) == {"queued": 3}
    assert there.adapters.db.all("SELECT 1 FROM attempts") == []
    assert len(tokens.view("default", LIMIT).uses) == before, "the void ones went back"
    assert tokens.lost(), "the reconciler is told"


def test_a_claim_in_between_is_void(
    address: Address, b: str, side: Callable[[str], Side], queue: Callable[[int], None]
) -> None:
    """Borrowed from A; by the time of the COMMIT the tokens are B's to give."""
    queue(1)
    there = side(address.url)
    grant = there.adapters.tokens.borrow("default", LIMIT, lease_s=13)
    address.lead_to(b)
    there.reconcile()
    assert claim_next(there.adapters.db, "default", grant.tokens, 1, 13, origin=grant.origin) is None
    assert states(there.adapters) == {"queued": 1}


def test_what_was_out_is_recorded_across_a_failover(
    address: Address, b: str, side: Callable[[str], Side], queue: Callable[[int], None], strict: Sandbox
) -> None:
    """Requests are out while the address changes: their outcomes are recorded, and their uses count on B."""
    strict.latency_ms = 500
    queue(12)
    there = side(address.url)
    worker = threading.Thread(target=there.drain)
    worker.start()
    while most_in_a_window(strict) < 10:
        pass
    address.lead_to(b)
    there.reconcile()
    worker.join()
    there.drain()
    assert most_in_a_window(strict) == 10
    assert queries.messages(there.adapters.db, MessageFilter(), None, 20)
    assert states(there.adapters).get("queued") == 2


@pytest.mark.parametrize("seed", range(4))
def test_whatever_becomes_of_the_address_and_of_what_it_leads_to(
    address: Address,
    a: str,
    b: str,
    side: Callable[[str], Side],
    queue: Callable[[int], None],
    strict: Sandbox,
    seed: int,
) -> None:
    """Switched, emptied and copied over each other in any order, with two workers and two reconcilers that notice it
    sooner or later: of ten in a minute there are never more."""
    chance = random.Random(seed)
    sides = [side(address.url), side(address.url)]
    with redis.Redis.from_url(a) as at_a, redis.Redis.from_url(b) as at_b:
        steps: list[Callable[[], object]] = [
            lambda: address.lead_to(chance.choice([a, b])),
            lambda: chance.choice([at_a, at_b]).flushall(),
            lambda: _replicate(at_b, a),
            lambda: _replicate(at_a, b),
            *[lambda: chance.choice(sides).reconcile()] * 4,
            *[lambda: (queue(1), chance.choice(sides).drain())] * 4,
        ]
        for _ in range(60):
            chance.choice(steps)()
            assert most_in_a_window(strict) <= 10
    queue(10)
    for each in sides:
        each.reconcile()
        each.drain()
    assert most_in_a_window(strict) == 10, "and what may go, goes"


# --- a replica


def test_a_replica_promoted_and_the_old_master_taken_back(
    address: Address, a: str, b: str, side: Callable[[str], Side], queue: Callable[[int], None], strict: Sandbox
) -> None:
    """B copies A, and A's latest uses do not reach it any more when it is promoted; then A copies B, and is promoted
    over the same connections."""
    queue(40)
    there = side(address.url)
    with redis.Redis.from_url(a) as master, redis.Redis.from_url(b) as replica:
        _replicate(replica, a)
        replica.replicaof("no", "one")  # cut off, a moment before the uses
        there.drain()
        assert most_in_a_window(strict) == 10
        address.lead_to(b)
        there.drain()
        assert most_in_a_window(strict) == 10, "its copy says that all ten are free"
        there.reconcile()
        there.drain()
        assert most_in_a_window(strict) == 10
        old = side(a)
        old.adapters.tokens.origin()  # a connection that stays
        _replicate(master, b)
        master.replicaof("no", "one")
        old.drain()
        there.drain()
    assert most_in_a_window(strict) == 10


def _replicate(replica: redis.Redis, url: str) -> None:
    """As a replica would: everything that there is, the name of who filled it included."""
    replica.flushall()
    with redis.Redis.from_url(url) as master:
        for key in master.scan_iter():
            replica.restore(key, max(0, master.pttl(key)), master.dump(key))


# --- a snapshot


def snapshot(client: redis.Redis) -> dict[bytes, tuple[int, bytes]]:
    return {key: (max(0, client.pttl(key)), client.dump(key)) for key in client.scan_iter()}


def restore(client: redis.Redis, data: dict[bytes, tuple[int, bytes]]) -> None:
    """Under the same run id and replication id, as of a virtual machine that is set back."""
    client.flushall()
    for key, (ttl_ms, value) in data.items():
        client.restore(key, ttl_ms, value)


@pytest.fixture
def raw(a: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(a) as client:
        yield client


def test_a_snapshot_restored_is_noticed_by_the_reconciler(
    a: str, side: Callable[[str], Side], queue: Callable[[int], None], strict: Sandbox, raw: redis.Redis
) -> None:
    queue(30)
    there = side(a)
    there.reconcile()
    before = snapshot(raw)
    assert there.drain() == 10
    there.reconcile()
    restore(raw, before)
    assert there.reconcile() == 1
    there.drain()
    assert most_in_a_window(strict) == 10


def test_a_snapshot_restored_is_void_at_once_for_everybody(
    a: str,
    side: Callable[[str], Side],
    queue: Callable[[int], None],
    strict: Sandbox,
    raw: redis.Redis,
) -> None:
    """How many grants there have been is on the books by then, so even a worker that has just started sends nothing."""
    queue(30)
    there = side(a)
    clock_s = 1000.0
    there.keeper = replace(there.keeper, clock=lambda: clock_s)
    there.reconcile()
    before = snapshot(raw)
    assert there.drain() == 10
    for _ in range(3):
        clock_s += NOTE_EVERY_S + 0.1
        there.reconcile()
    restore(raw, before)
    for _ in range(3):  # it was one grant of ten that was lost
        side(a).drain()
    assert most_in_a_window(strict) == 10
    assert states(there.adapters)["queued"] == 20
    assert there.reconcile() == 1
    there.drain()
    assert most_in_a_window(strict) == 10


def test_a_restart_from_a_snapshot_is_another_server(
    tmp_path: Path, side: Callable[[str], Side], queue: Callable[[int], None], strict: Sandbox
) -> None:
    valkey = Valkey(tmp_path / "c")
    url = valkey.start()
    try:
        queue(30)
        there = side(url)
        there.reconcile()
        with redis.Redis.from_url(url) as client:
            before = snapshot(client)
        assert there.drain() == 10
        valkey.kill()
        valkey.start()
        with redis.Redis.from_url(url) as client:
            restore(client, before)
        there.drain()
        assert most_in_a_window(strict) == 10
        assert there.reconcile() == 1
        there.drain()
        assert most_in_a_window(strict) == 10
    finally:
        valkey.stop()


def test_emptied_it_opens_another_epoch_and_others_join_it(
    a: str, side: Callable[[str], Side], raw: redis.Redis
) -> None:
    one, other = side(a), side(a)
    one.reconcile()
    other.reconcile()
    number = epochs.current(one.adapters.db).number
    raw.flushall()
    assert one.reconcile() == 1
    assert other.reconcile() == 0
    assert epochs.current(one.adapters.db).number == number + 1
    raw.flushall()
    seen = epochs.current(one.adapters.db)
    held = [reconciler.keeper.hold(seen, lambda _: None) for reconciler in (one, other)]
    assert [epoch and epoch.number for epoch in held] == [number + 2, None], "opened once"
    assert epochs.current(one.adapters.db).number == number + 2


# --- two addresses


def test_of_two_servers_in_use_one_has_its_messages_sent(
    a: str,
    b: str,
    side: Callable[[str], Side],
    queue: Callable[[int], None],
    strict: Sandbox,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Worker 1 goes by A, worker 2 by B, each with a reconciler beside it."""
    queue(40)
    first, second = side(a), side(b)
    objecting = lambda _: first.reconcile() and None  # noqa: E731 - what goes on in the meantime
    for _ in range(3):
        first.reconcile()
        second.keeper.asked_s = float("-inf")
        assert second.reconcile(objecting) == 0
        second.drain()
    assert most_in_a_window(strict) == 0
    assert first.drain() == 10
    second.drain()
    assert most_in_a_window(strict) == 10
    said = capsys.readouterr().out
    assert "redis_not_the_epochs" in said
    assert "REDIS_URL" in said
    assert epochs.current(first.adapters.db).server == first.adapters.tokens.origin().server


def test_a_server_takes_over_when_nobody_objects_and_the_other_stops(
    a: str, b: str, side: Callable[[str], Side], queue: Callable[[int], None], strict: Sandbox
) -> None:
    queue(40)
    first, second = side(a), side(b)
    first.reconcile()
    assert first.drain() == 10
    assert second.reconcile() == 1
    second.drain()
    first.drain()
    assert most_in_a_window(strict) == 10


def test_a_worker_alone_on_another_server_says_what_is_wrong(
    b: str,
    side: Callable[[str], Side],
    queue: Callable[[int], None],
    strict: Sandbox,
    capsys: pytest.CaptureFixture[str],
) -> None:
    queue(1)
    side(b).drain()
    assert most_in_a_window(strict) == 0
    said = capsys.readouterr().out
    assert "redis_not_the_epochs" in said
    assert "REDIS_URL" in said


def test_an_api_on_another_server_is_not_ready(
    adapters: Adapters, address: Address, a: str, b: str, side: Callable[[str], Side]
) -> None:
    assert "redis: another server gives out the tokens" in side(b).adapters.reader().ready()
    there = side(address.url)
    address.lead_to(b)
    there.reconcile()
    assert "redis: another server gives out the tokens" in adapters.reader().ready()
    assert not [what for what in there.adapters.reader().ready() if "alive" not in what]


def test_a_check_names_the_server_that_gives_out_the_tokens(adapters: Adapters, b: str) -> None:
    (well,) = check.findings(adapters.settings)
    (wrong,) = check.findings(replace(adapters.settings, redis_url=b))
    assert (well.level, wrong.level) == ("ok", "warn")
    assert adapters.tokens.origin().server in wrong.words
    assert "REDIS_URL" in wrong.words


# --- cost


def test_a_quiet_round_of_a_reconciler_writes_nothing(adapters: Adapters) -> None:
    rounds = Reconciler(adapters, verify=lambda: None)
    for _ in range(3):
        rounds.tick()
    written = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS at"
    before = adapters.db.one(written)
    for _ in range(3):
        rounds.tick()
    assert adapters.db.one(written) == before
