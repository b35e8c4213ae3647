"""Which fault happens when, and to whom: a pure function of the options, so that a seed names a schedule."""

import random
from dataclasses import dataclass
from enum import StrEnum

FEW, MANY = 5, 24
"""Of each account's two limits, FEW in a short period and MANY in a long one, long enough to be still remembered after
Redis was lost. The periods follow from how long a run may take."""
PACE = 0.55
"""The part of a run that its messages would take at the limits, did nothing go wrong."""
FAULTS_FROM_S = 1.0
FAULTS_UNTIL = 0.85
"""Of the run. What is left over is for the last ones to recover."""
LONGEST_LEASE_S = 5.0
"""Of a token's loan at SEND_TIMEOUT_S, and of a drain's place: what is stopped is stopped for longer."""
SEND_TIMEOUT_S = 2


class Kind(StrEnum):
    KILL = "SIGKILL"
    TERMINATE = "SIGTERM"
    HANG = "SIGSTOP … SIGCONT"
    REDIS_EMPTIED = "Redis emptied"
    REDIS_KILLED = "Redis killed, back empty"
    REDIS_STOPPED = "Redis stopped for a while"
    REDIS_FAILED_OVER = "Redis failed over, and back"
    POSTGRES_RESTARTED = "PostgreSQL restarted"
    POSTGRES_CRASHED = "PostgreSQL crashed, restarted"
    POSTGRES_STOPPED = "PostgreSQL stopped for a while"
    POSTGRES_LOCKED = "PostgreSQL keeps claims waiting"
    UPSTREAM_REFUSES = "upstream away: connections refused"
    UPSTREAM_UNAVAILABLE = "upstream away: 503 with Retry-After"
    UPSTREAM_SILENT = "upstream away: no answer"
    UPSTREAM_BURST = "upstream burst of errors"


PROCESSES = (Kind.KILL, Kind.TERMINATE, Kind.HANG)
POSTGRES = (Kind.POSTGRES_RESTARTED, Kind.POSTGRES_CRASHED, Kind.POSTGRES_STOPPED)
REDIS_LOSSES = (Kind.REDIS_EMPTIED, Kind.REDIS_KILLED)
OUTAGES = (Kind.UPSTREAM_REFUSES, Kind.UPSTREAM_UNAVAILABLE, Kind.UPSTREAM_SILENT)
LASTS_S = {
    Kind.REDIS_KILLED: (0.5, 2.0),
    Kind.REDIS_STOPPED: (2.5, 4.0),
    # Long enough for a rebuild, and for the second server to lend tokens of which the first one never hears.
    Kind.REDIS_FAILED_OVER: (5.0, 7.0),
    Kind.POSTGRES_RESTARTED: (0.5, 2.0),
    Kind.POSTGRES_CRASHED: (0.2, 1.0),
    Kind.POSTGRES_STOPPED: (2.0, 4.0),
    # For longer than a loan, and until its token is somebody else's: a claim that waited for its COMMIT that long must
    # not be sent when it comes.
    Kind.POSTGRES_LOCKED: (LONGEST_LEASE_S + 3.5, LONGEST_LEASE_S + 5),
    Kind.UPSTREAM_REFUSES: (4.0, 10.0),
    Kind.UPSTREAM_UNAVAILABLE: (4.0, 10.0),
    Kind.UPSTREAM_SILENT: (2.0, 4.0),
    Kind.UPSTREAM_BURST: (2.0, 5.0),
}
"""From, to. Shorter in a run that has no room for them."""


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """A fault. at_s: seconds from the start of the run. targets: services by name. for_s: its length, if any."""

    at_s: float
    kind: Kind
    targets: tuple[str, ...] = ()
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` in any rolling `period_ms`."""

    count: int
    period_ms: int

    @property
    def ours(self) -> str:
        """As Paceline writes it."""
        return f"{self.count}/{self.period_ms}ms"

    @property
    def theirs(self) -> str:
        """As the sandbox writes it."""
        return f"{self.count}/{self.period_ms / 1000:g}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is made of. kills, hangs, redis_losses, redis_failbacks, postgres_restarts and outages count single
    processes and servers.

    keeps, authors: what the upstream's history makes of a text, and whether it says who wrote it (see the sandbox).
    """

    messages: int
    minutes: float
    seed: int
    accounts: int
    workers: int = 3
    pacers: int = 2
    idempotent: bool = True
    history: bool = True
    keeps: str = "trimmed,nfc,lf,html"
    authors: bool = True
    kills: int
    hangs: int
    redis_losses: int
    redis_failbacks: int
    postgres_restarts: int
    outages: int

    @classmethod
    def scaled(cls, messages: int, minutes: float, seed: int, **given: int | bool | str | None) -> "Options":
        """Those not given (or None) follow from the size of the run: per minute 10 kills, 2 hangs, 1.5 losses of
        Redis, half a failover of Redis and back, half a restart of PostgreSQL, an outage of the upstream; an account
        per 200 messages."""
        scaled = {
            "accounts": max(4, min(1000, round(messages / 200))),
            "kills": max(6, round(10 * minutes)),
            "hangs": max(2, round(2 * minutes)),
            "redis_losses": max(2, round(1.5 * minutes)),
            "redis_failbacks": max(1, round(minutes / 2)),
            "postgres_restarts": max(2, round(minutes / 2)),
            "outages": max(3, round(minutes)),
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(messages=messages, minutes=minutes, seed=seed, **(scaled | chosen))  # type: ignore[arg-type]

    @property
    def duration_s(self) -> float:
        return 60 * self.minutes

    @property
    def limits(self) -> tuple[Limit, Limit]:
        """Of every account: tight enough that its messages take most of the run, and every mistake shows. Two accounts
        share what one has."""
        per_key = max(1, -(-self.messages // max(1, self.accounts - 1)))
        one_ms = max(100, min(10_000, round(1000 * PACE * self.duration_s / per_key)))
        return Limit(FEW, round(0.8 * FEW * one_ms)), Limit(MANY, MANY * one_ms)


def plan(options: Options) -> tuple[Event, ...]:
    """The schedule, in the order of time.

    Faults of processes come at any moment, also in the middle of another one. Those of a server or of the upstream take
    turns, with pauses between them, so that as many happen as were asked for.
    """
    chance = random.Random(options.seed)  # noqa: S311 - reproducible is the point
    until_s = FAULTS_UNTIL * options.duration_s
    events = [*_of_processes(options, chance, until_s), *_of_servers(options, chance, until_s)]
    return tuple(sorted(events))


def _of_processes(options: Options, chance: random.Random, until_s: float) -> list[Event]:
    workers = [f"worker{n}" for n in range(1, options.workers + 1)]
    pacers = [f"pacer{n}" for n in range(1, options.pacers + 1)]
    all_of_them = [*workers, *pacers, "api"]
    events = []
    killed = 0
    while killed < options.kills:
        at_once = min(chance.choices((1, 2, 3, len(all_of_them)), (70, 18, 9, 3))[0], options.kills - killed)
        targets = tuple(sorted(chance.sample(all_of_them, min(at_once, len(all_of_them)))))
        events.append(Event(_moment(chance, until_s), Kind.KILL, targets))
        killed += len(targets)
    for number in range(options.hangs):
        target = chance.choice(workers if number % 3 < 2 else pacers)
        for_s = round(LONGEST_LEASE_S + chance.uniform(1, 5), 2)
        events.append(Event(_moment(chance, max(until_s - for_s, FAULTS_FROM_S)), Kind.HANG, (target,), for_s))
    for _ in range(max(1, options.kills // 10)):
        events.append(Event(_moment(chance, until_s), Kind.TERMINATE, (chance.choice(workers),)))
    return events


def _of_servers(options: Options, chance: random.Random, until_s: float) -> list[Event]:
    kinds = [Kind.REDIS_EMPTIED if n % 2 == 0 else Kind.REDIS_KILLED for n in range(options.redis_losses)]
    kinds += [
        Kind.POSTGRES_RESTARTED if n % 2 == 0 else Kind.POSTGRES_CRASHED for n in range(options.postgres_restarts)
    ]
    kinds += max(1, options.postgres_restarts // 2) * [Kind.POSTGRES_STOPPED, Kind.POSTGRES_LOCKED]
    kinds += max(1, options.redis_losses // 3) * [Kind.REDIS_STOPPED, Kind.UPSTREAM_BURST]
    kinds += options.redis_failbacks * [Kind.REDIS_FAILED_OVER]
    kinds += [OUTAGES[n % len(OUTAGES)] for n in range(options.outages)]
    chance.shuffle(kinds)
    lasts_s = [chance.uniform(*LASTS_S.get(kind, (0.0, 0.0))) for kind in kinds]
    room_s = until_s - FAULTS_FROM_S
    shorter = min(1.0, 0.9 * room_s / max(1.0, sum(lasts_s)))
    pause_s = (room_s - shorter * sum(lasts_s)) / len(kinds)
    events, from_s = [], FAULTS_FROM_S
    for kind, for_s in zip(kinds, lasts_s, strict=True):
        # After a calm, when the windows are full again: to forget an empty one would do no harm.
        calm = (0.7, 0.9) if kind in REDIS_LOSSES else (0.0, 0.3)
        at_s = from_s + pause_s * chance.uniform(*calm)
        events.append(Event(round(at_s, 2), kind, (), round(shorter * for_s, 2)))
        from_s += shorter * for_s + pause_s
    return events


def _moment(chance: random.Random, until_s: float) -> float:
    return round(chance.uniform(FAULTS_FROM_S, until_s), 2)
