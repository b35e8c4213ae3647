"""Borrowing, returning and refunding tokens.

Promises: from borrow until one period after return, no other caller gets the token. All limits are checked before any
is spent. Only the clock of the Redis server counts. A call is one round trip.

Duties of the caller: keep books (a durable record) of all uses, from which a lost Redis is rebuilt (`begin_rebuild`,
`finish_rebuild`). Record a use in the books within `START_WITHIN_S` of borrowing, before the use.

Redis cannot know whether it was the only server all the time: an address may lead to A, to B and back to A. So the
books also contain an *epoch*: an opaque name for the time during which one server is the only one. `enter_epoch` tells
the server its epoch, and every grant names its `Origin`. The books must reject a use whose origin is not the current
epoch.
"""

import functools
import itertools
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis

from ratelimit.connection import answered, script
from ratelimit.limits import MAX_PERIOD_S, MICROSECONDS, Limits, to_us

START_WITHIN_S = 2.0
"""Seconds from borrowing a token until its use must be in the books. After that, the token must not be used.

A rebuild waits this long between closing the gate and reading the books. A token borrowed just before the loss is then
either in the books or void. Without the wait, its use would be missing from the rebuilt window.
"""

CLOCK_RATE_ERROR = 0.001
"""The most by which the rates of two machines' monotonic clocks differ. The error of a quartz is smaller. NTP corrects
a clock's rate by 0.0005 at most (`adjtimex(2)`), unless it is configured to slew faster."""

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Origin:
    """Where tokens come from.

    server: a unique name of the server. It changes after a restart and after a time as replica; empty for a replica.
    epoch: the epoch under which the server's data was filled; empty if another server filled it.
    given: the number of grants on this server. It decreases only if data was lost.
    known: whether no loss of data is known.
    void: whether tokens of this epoch were refused (`distrust`), so that only another epoch can give out tokens.
    """

    server: str
    epoch: str
    given: int
    known: bool = True
    void: bool = False


NOWHERE = Origin("", "", 0, known=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a request for tokens.

    tokens: the borrowed tokens, at most as many as wanted, possibly none.
    wait_s: seconds until the next token; 0 if one is free now. Exact, unless it depends on an open loan: then it is an
        upper bound.
    free_s: seconds for which the last of the tokens had been free; infinite if longer than a period.
    left: how many more tokens are free now.
    lost: whether Redis has lost the past of this key. No token is given out until it has been rebuilt.
    overshoot: how many uses may have exceeded a limit. A use counts if it ended after its loan and was returned when
        its token had already been borrowed again.
    origin: where the tokens come from. A use may go into the books only while this is the current epoch.
    """

    tokens: tuple[str, ...]
    wait_s: float
    free_s: float = math.inf
    left: int = 0
    lost: bool = False
    overshoot: int = 0
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class View:
    """The known state of a key's tokens at one moment. Times are seconds relative to now, negative in the past.

    uses: when each use of the longest period ended (in the past) or its loan ends at the latest (in the future).
    recent: token -> the same time, for tokens that are on loan or whose use ended within the last 250 ms.
    """

    uses: tuple[float, ...]
    cooldown_s: float
    known: bool
    recent: Mapping[str, float] = field(default_factory=dict)

    def available(self, limits: Limits) -> int:
        """Return how many tokens are free now, ignoring a cooldown."""
        return max(0, min(limit.count - sum(end > -limit.period_s for end in self.uses) for limit in limits))


@dataclass(frozen=True, slots=True)
class Use:
    """A use from the books. `ended_s`: its end (or the end of its open loan) in seconds from now, negative if past."""

    token: str
    ended_s: float


class Tokens:
    """The tokens of many keys (accounts, callers) in one Redis. Thread-safe. Raises `TokensUnavailable`.

    namespace: the prefix of every key in Redis, before a colon. Data under another namespace is not seen.
    """

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._redis = client
        self._keys = functools.lru_cache(maxsize=10_000)(functools.partial(_keys, namespace))
        self._filled, self._known = f"{namespace}:filled", f"{namespace}:known"
        self._series, self._numbers = secrets.token_hex(4), itertools.count()
        here = _HERE / "this_server.lua"
        self._exchange = script(client, here, _HERE / "exchange.lua")
        self._cool_down = script(client, _HERE / "cool_down.lua")
        self._lift_cooldown = script(client, _HERE / "lift_cooldown.lua")
        self._view = script(client, here, _HERE / "view.lua")
        self._open_new = script(client, here, _HERE / "open_new.lua")
        self._origin = script(client, here, _HERE / "origin.lua")
        self._enter_epoch = script(client, here, _HERE / "enter_epoch.lua")
        self._begin_rebuild = script(client, _HERE / "begin_rebuild.lua")
        self._finish_rebuild = script(client, _HERE / "finish_rebuild.lua")

    def exchange(
        self,
        key: str,
        limits: Limits,
        *,
        want: int,
        lease_s: float,
        returned: Mapping[str, float] = MappingProxyType({}),
        refunded: Sequence[str] = (),
    ) -> Grant:
        """Return and refund tokens, and borrow up to `want` new ones for `lease_s` seconds, in one step.

        returned: token -> seconds since the end of its use, by the caller's monotonic clock. The token is usable again
        one whole period after that end, not after this call. The server subtracts these seconds from its own clock when
        the call arrives. So any delay of the call makes a token late, never early. The server takes no end before the
        start of the loan (`lease_s` before the loan's end). This limits the error if the server's clock stopped.
        """
        grant = self._new_grant()
        args: list[Any] = [to_us(lease_s), want, grant, *_flat(limits), len(refunded), *refunded, len(returned)]
        for token, ago_s in returned.items():
            args += (token, to_us(ago_s * (1 - CLOCK_RATE_ERROR)))
        return _grant(grant, answered(lambda: self._exchange(keys=[*self._keys(key), self._filled], args=args)))

    def borrow(self, key: str, limits: Limits, *, want: int = 1, lease_s: float) -> Grant:
        return self.exchange(key, limits, want=want, lease_s=lease_s)

    def give_back(self, key: str, limits: Limits, tokens: Sequence[str]) -> None:
        """Return tokens whose uses end now. Each token is usable again one whole period from now."""
        self.exchange(key, limits, want=0, lease_s=0, returned=dict.fromkeys(tokens, 0.0))

    def refund(self, key: str, limits: Limits, tokens: Sequence[str]) -> None:
        """Refund tokens that were certainly not used. They are usable again at once."""
        self.exchange(key, limits, want=0, lease_s=0, refunded=tokens)

    def spend(self, key: str, limits: Limits) -> Grant:
        """Borrow and return one token at once, for limits without books, such as a caller's. After a loss of data, the
        past of the key counts as empty."""
        grant = self._new_grant()
        uses, gate = self._keys(key)

        def use() -> Any:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(gate, "known", to_us(limits.longest_period_s))
                pipe.expire(gate, round(limits.longest_period_s) + 60)
                self._exchange(keys=[uses, gate], args=[0, 1, grant, *_flat(limits), 0, 0], client=pipe)
                return pipe.execute()[-1]

        return _grant(grant, answered(use))

    def cool_down(self, key: str, for_s: float) -> float:
        """Give out no tokens for `for_s` seconds. An earlier, longer cooldown stays. Returns the effective seconds."""
        keys, args = self._keys(key)[1:], [to_us(for_s)]
        return int(answered(lambda: self._cool_down(keys=keys, args=args))) / MICROSECONDS

    def lift_cooldown(self, key: str) -> None:
        """End a cooldown early."""
        answered(lambda: self._lift_cooldown(keys=self._keys(key)[1:], args=[]))

    def view(self, key: str, limits: Limits) -> View:
        return self.views([(key, limits)])[0]

    def views(self, wanted: Sequence[tuple[str, Limits]]) -> list[View]:
        """Look at many keys in one round trip."""

        def look() -> list[Any]:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, limits in wanted:
                    self._view(
                        keys=[*self._keys(key), self._filled], args=[to_us(limits.longest_period_s)], client=pipe
                    )
                return pipe.execute()

        views = []
        for (_, limits), (now, known, cooldown, n, *rest) in zip(wanted, answered(look) if wanted else (), strict=True):
            tokens, uses = rest[: int(n)], rest[int(n) :]
            ends = tuple((int(end) - int(now)) / MICROSECONDS for end in uses)
            cooldown_s = max(0.0, (int(cooldown) - int(now)) / MICROSECONDS)
            is_known = known.isdigit() and int(known) >= to_us(limits.longest_period_s)
            recent = dict(zip(tokens, ends[len(ends) - len(tokens) :], strict=True))
            views.append(View(ends, cooldown_s, is_known, recent))
        return views

    def _new_grant(self) -> str:
        """Return a unique name for a grant, also across forks of this process."""
        return f"{self._series}{os.getpid():x}.{next(self._numbers):x}"

    def open_new(self, key: str) -> None:
        """Declare that a key has no past (it was just created), so that it needs no rebuild."""
        keys, args = [self._keys(key)[1], self._filled], [2 * to_us(MAX_PERIOD_S)]
        answered(lambda: self._open_new(keys=keys, args=args))

    def origin(self) -> Origin:
        """Return where tokens would come from now."""
        server, epoch, given, *rest = answered(lambda: self._origin(keys=[self._filled, self._known], args=[]))
        return Origin(server, epoch, int(given), *map(bool, rest))

    def lost(self) -> bool:
        """Return whether Redis is known to have lost data since `declare_known`, or is another server."""
        return not self.origin().known

    def enter_epoch(self, epoch: str, server: str, given: int = 0) -> bool:
        """Begin another epoch on this server. This closes every key until it is rebuilt.

        given: the least number of grants so far. Returns False if the address leads to another server by now.
        """
        args = [epoch, server, given]
        return bool(answered(lambda: self._enter_epoch(keys=[self._filled, self._known], args=args)))

    def report_loss(self) -> None:
        """Report that a grant was `lost`, so that all keys are checked."""
        answered(lambda: self._redis.delete(self._known))

    def distrust(self, origin: Origin) -> None:
        """Report that the books refused tokens of this origin. No tokens are given out until another epoch begins."""
        answered(lambda: self._redis.hset(self._filled, "void", origin.epoch))

    def declare_known(self, epoch: str) -> None:
        """Declare that every key has been filled under this epoch."""
        answered(lambda: self._redis.set(self._known, epoch))

    def begin_rebuild(self, keys: Mapping[str, Limits], epoch: str) -> dict[str, str]:
        """Mark the keys whose past is not fully known under this epoch. Returns {key: nonce} of the marked keys.

        Wait `START_WITHIN_S`, read the books, then `finish_rebuild`.
        """

        def begin() -> list[str]:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, limits in keys.items():
                    args = [epoch, secrets.token_hex(8), to_us(limits.longest_period_s)]
                    self._begin_rebuild(keys=[*self._keys(key), self._filled], args=args, client=pipe)
                return pipe.execute()

        return {key: nonce for key, nonce in zip(keys, answered(begin), strict=True) if nonce}

    def finish_rebuild(self, lost: Iterable[tuple[str, str, Limits, float, Sequence[Use]]]) -> int:
        """Bring back (key, nonce, limits, cooldown in s, uses) and open the gates. Returns how many it opened."""

        def finish() -> list[int]:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, nonce, limits, cooldown_s, uses in lost:
                    keep_s = limits.longest_period_s + max((use.ended_s for use in uses), default=0) + 1
                    args: list[Any] = [nonce, to_us(cooldown_s), to_us(keep_s), to_us(limits.longest_period_s)]
                    for use in uses:
                        args += (use.token, to_us(use.ended_s))
                    self._finish_rebuild(keys=self._keys(key), args=args, client=pipe)
                return pipe.execute()

        return sum(answered(finish))


def _keys(namespace: str, key: str) -> list[str]:
    """Return both Redis keys of a key. They share a hash tag, so that Redis Cluster keeps them on one node."""
    return [f"{namespace}:{{{key}}}:uses", f"{namespace}:{{{key}}}:gate"]


@functools.lru_cache(maxsize=1000)
def _flat(limits: Limits) -> list[int]:
    flat = [len(limits.all)]
    for limit in limits:
        flat += (limit.count, limit.period_us)
    return flat


def _grant(grant: str, answer: Any) -> Grant:
    granted, wait_us, free_us, left, overshoot, *origin = answer
    if granted < 0:
        return Grant((), 0.0, lost=True, overshoot=overshoot)
    free_s = free_us / MICROSECONDS if free_us >= 0 else math.inf
    tokens = tuple(f"{grant}.{i}" for i in range(1, granted + 1))
    return Grant(tokens, wait_us / MICROSECONDS, free_s, left, overshoot=overshoot, origin=_origin(origin))


def _origin(answer: Sequence[Any]) -> Origin:
    if not answer:  # no token was requested
        return NOWHERE
    server, epoch, given = answer
    return Origin(server, epoch, int(given))
