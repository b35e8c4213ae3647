"""What tokens cost, in relation to what any script costs: redis-py sending EVALSHA, Valkey running nothing.

One client, one connection, one call after the other, as a drain makes them; so what is compared is a round trip with
all that belongs to it on both ends. Each call has as many keys and arguments on both sides.

Of a call that grants, some 15 us go into its origin: which server this is (`INFO`), its epoch, and the count of grants.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import redis

from ratelimit import Limits
from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark
from tests.bench.stage import Stage
from tests.bench.timing import Call, alternately, together

EMPTY = "redis-py calling an empty script"
KEY = "account-0"
LEASE_S = 12.0
FREE, TAKEN = Limits.parse("100000/s"), Limits.parse("10/day")


@benchmark("borrow-granted", Row("borrow a token, granted", EMPTY, "calls/s", at_least=0.65))
@contextmanager
def borrow_granted(stage: Stage) -> Iterator[Sides]:
    """Never more than ten or so stand in the books, as for an account of 10/minute."""
    with stage.adapters() as adapters:
        tokens = adapters.tokens
        tokens.open_new(KEY)

        def granted() -> None:
            assert tokens.borrow(KEY, FREE, lease_s=LEASE_S).tokens

        yield _against_empty(adapters.redis, granted, stage)


@benchmark("borrow-denied", Row("borrow a token, denied", EMPTY, "calls/s", at_least=0.80))
@contextmanager
def borrow_denied(stage: Stage) -> Iterator[Sides]:
    with stage.adapters() as adapters:
        tokens = adapters.tokens
        tokens.open_new(KEY)
        tokens.borrow(KEY, TAKEN, want=10, lease_s=LEASE_S)

        def denied() -> None:
            assert not tokens.borrow(KEY, TAKEN, lease_s=LEASE_S).tokens

        yield _against_empty(adapters.redis, denied, stage, clear=False)


@benchmark(
    "exchange",
    Row("return a token and borrow another (a drain's step)", EMPTY, "calls/s", at_least=0.60),
    Row("the same, in round trips", "one", "commands", figure="commands", at_most=1, constant=1),
)
@contextmanager
def exchange(stage: Stage) -> Iterator[Sides]:
    with stage.adapters() as adapters:
        tokens = adapters.tokens
        tokens.open_new(KEY)
        held: tuple[str, ...] = ()

        def step() -> None:
            nonlocal held
            held = tokens.exchange(KEY, FREE, want=1, lease_s=LEASE_S, returned=dict.fromkeys(held, 0.0)).tokens
            assert held

        sides = _against_empty(adapters.redis, step, stage, returned=["0123456789.1", 0])

        def measure() -> Figures:
            return {**sides[SUBJECT](), "commands": _commands(adapters.redis, step)}

        yield {**sides, SUBJECT: measure}


def _against_empty(
    client: redis.Redis, call: Call, stage: Stage, *, clear: bool = True, returned: Sequence[str | int] = ()
) -> Sides:
    """A call and the empty script, ten of one and ten of the other in turn. clear: forget the uses in between, so that
    there are never many; outside the time that counts."""
    empty = _empty(client, returned)
    stretches = stage.size(200, 30)

    def watch() -> dict[str, Figures]:
        took: dict[str, list[float]] = {SUBJECT: [], EMPTY: []}
        for _ in range(stretches):
            if clear:
                client.delete(f"paceline:{{{KEY}}}:uses")
            for name, took_s in alternately({SUBJECT: call, EMPTY: empty}, 2, each=10).items():
                took[name] += took_s
        return {name: {"rate": 1 / statistics.median(took_s)} for name, took_s in took.items()}

    return together([SUBJECT, EMPTY], watch)


def _empty(client: redis.Redis, returned: Sequence[str | int]) -> Call:
    script = client.register_script("return {0, 0, 0, 0}")
    keys = [f"paceline:{{{KEY}}}:uses", f"paceline:{{{KEY}}}:gate", "paceline:filled"]
    args: list[str | int] = [12_000_000, 1, "0123456789", 1, 10, 60_000_000, len(returned), *returned, 0]

    def call() -> None:
        script(keys=keys, args=args)

    return call


def _commands(client: redis.Redis, step: Call, steps: int = 100) -> float:
    """Commands that the server was sent per step: what scripts call inside it does not count as sent."""
    with redis.Redis(connection_pool=client.connection_pool) as asking:
        step()
        before = _sent(asking)
        for _ in range(steps):
            step()
        return (_sent(asking) - before) / steps


def _sent(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    return sum(stat["calls"] for name, stat in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval"))
