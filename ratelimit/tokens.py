"""Borrowing, returning and refunding tokens.

What it promises: between borrow and one period after return, a token is nobody else's; all limits are checked before
any is spent; the server's clock is the only one; one round trip. What it leaves to others: to keep books of the uses,
from which a lost Redis is rebuilt (`begin_rebuild`, `finish_rebuild`), and to note a use in those books within
`START_WITHIN_S` of borrowing, before using it.

Redis cannot know by itself whether it was the only server all the while: an address may lead to A, to B and back to A.
So the keeper of the books also keeps an *epoch*: an opaque name for the time during which one server is the only one.
`enter_epoch` tells the server, every grant names its `Origin`, and the keeper of the books takes no use on record whose
origin is not the present epoch's.
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

from ratelimit.connection import NAMESPACE, answered, script
from ratelimit.limits import MAX_PERIOD_S, MICROSECONDS, Limits, to_us

START_WITHIN_S = 2.0
"""A borrowed token must be on the books this soon, or be given up.

A rebuild waits this long between closing the gate and reading the books, so that a token borrowed just before the loss
is either on them by then or void. Without the wait, its use would be missing from the rebuilt window.
"""

CLOCK_RATE_ERROR = 0.001
"""Two machines' monotonic clocks run at the same rate up to this: a quartz is off by less, and one that NTP disciplines
is corrected by 0.0005 at most (`adjtimex(2)`), unless it is told to slew faster."""

_FILLED, _KNOWN = f"{NAMESPACE}:filled", f"{NAMESPACE}:known"

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Origin:
    """Where tokens come from.

    server: no other server has this name, nor the same one after a restart or after it was a replica meanwhile; empty
        for a replica.
    epoch: the one that the server's data was filled under; empty if it was not filled here.
    given: how many grants there have been on this server, which goes back only if data was lost.
    known: nothing is known to be lost.
    void: tokens of this epoch were refused (`distrust`): only another epoch's will do.
    """

    server: str
    epoch: str
    given: int
    known: bool = True
    void: bool = False


NOWHERE = Origin("", "", 0, known=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a wish for tokens.

    tokens: what was borrowed, at most as many as wanted, possibly none.
    wait_s: seconds until the next token; 0 if one is free now. Exact, unless it hangs on a loan still out: then it is
        the latest it can be.
    free_s: for how long the last of them had been free; infinite if for longer than a period.
    left: how many more are free now.
    lost: Redis has lost this key's past; nothing is given out until it has been rebuilt.
    overshoot: so many uses went beyond a limit, as far as anybody can tell: what is returned here ended after its
        loan, and its token was another's by the time that this is told.
    origin: where the tokens come from. A use may go on the books only while that is the present epoch.
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
    """What is known of a key's tokens at a moment: times in seconds, relative to now, negative in the past.

    uses: when each use of the longest period ended (in the past) or its loan ends at the latest (in the future).
    recent: token -> the same, of those that are on loan or have ended just now.
    """

    uses: tuple[float, ...]
    cooldown_s: float
    known: bool
    recent: Mapping[str, float] = field(default_factory=dict)

    def available(self, limits: Limits) -> int:
        """How many tokens are free now, a cooldown aside."""
        return max(0, min(limit.count - sum(end > -limit.period_s for end in self.uses) for limit in limits))


@dataclass(frozen=True, slots=True)
class Use:
    """A use as the books have it: `ended_s` seconds from now, negative in the past; for an open loan its end."""

    token: str
    ended_s: float


class Tokens:
    """The tokens of many keys (accounts, callers) in one Redis. Thread-safe. Raises `TokensUnavailable`."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
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
        """Give tokens back and borrow up to `want` others for `lease_s` seconds, in one step.

        returned: token -> for how many seconds its use has been over, by the caller's monotonic clock. Each is usable
        again one whole period after that end, not after this call. The server's clock stays the only one that times are
        told by: it counts back from when the call arrives, which is later than the end in truth by whatever the call
        took, so a delay anywhere makes a token late, never early. No use ends before it was lent, `lease_s` before the
        end of its loan: that bounds what a machine that stood still with its clock could make of it.
        """
        grant = self._new_grant()
        args: list[Any] = [to_us(lease_s), want, grant, *_flat(limits), len(refunded), *refunded, len(returned)]
        for token, ago_s in returned.items():
            args += (token, to_us(ago_s * (1 - CLOCK_RATE_ERROR)))
        return _grant(grant, answered(lambda: self._exchange(keys=[*_keys(key), _FILLED], args=args)))

    def borrow(self, key: str, limits: Limits, *, want: int = 1, lease_s: float) -> Grant:
        return self.exchange(key, limits, want=want, lease_s=lease_s)

    def give_back(self, key: str, limits: Limits, tokens: Sequence[str]) -> None:
        """The uses are over now: each token is usable again one whole period from here."""
        self.exchange(key, limits, want=0, lease_s=0, returned=dict.fromkeys(tokens, 0.0))

    def refund(self, key: str, limits: Limits, tokens: Sequence[str]) -> None:
        """Certainly not used: usable again at once."""
        self.exchange(key, limits, want=0, lease_s=0, refunded=tokens)

    def spend(self, key: str, limits: Limits) -> Grant:
        """Use one on the spot: for limits that no books are kept of, such as a caller's. A loss of data forgets its
        past, which is then taken for empty."""
        grant = self._new_grant()
        uses, gate = _keys(key)

        def use() -> Any:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(gate, "known", to_us(limits.longest_period_s))
                pipe.expire(gate, round(limits.longest_period_s) + 60)
                self._exchange(keys=[uses, gate], args=[0, 1, grant, *_flat(limits), 0, 0], client=pipe)
                return pipe.execute()[-1]

        return _grant(grant, answered(use))

    def cool_down(self, key: str, for_s: float) -> float:
        """Give out none for `for_s` seconds, or longer if it was closed for longer. Returns the seconds in force."""
        keys, args = _keys(key)[1:], [to_us(for_s)]
        return int(answered(lambda: self._cool_down(keys=keys, args=args))) / MICROSECONDS

    def lift_cooldown(self, key: str) -> None:
        """Give out tokens again before the cooldown is over."""
        answered(lambda: self._lift_cooldown(keys=_keys(key)[1:], args=[]))

    def view(self, key: str, limits: Limits) -> View:
        return self.views([(key, limits)])[0]

    def views(self, wanted: Sequence[tuple[str, Limits]]) -> list[View]:
        """Look at many keys in one round trip."""

        def look() -> list[Any]:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, limits in wanted:
                    self._view(keys=[*_keys(key), _FILLED], args=[to_us(limits.longest_period_s)], client=pipe)
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
        """A name that nobody else gives, a fork of this process included."""
        return f"{self._series}{os.getpid():x}.{next(self._numbers):x}"

    def open_new(self, key: str) -> None:
        """Vouch that a key has no past (it has just been created), so that it need not be rebuilt."""
        keys, args = [_keys(key)[1], _FILLED], [2 * to_us(MAX_PERIOD_S)]
        answered(lambda: self._open_new(keys=keys, args=args))

    def origin(self) -> Origin:
        """Where tokens would come from now."""
        server, epoch, given, *rest = answered(lambda: self._origin(keys=[_FILLED, _KNOWN], args=[]))
        return Origin(server, epoch, int(given), *map(bool, rest))

    def lost(self) -> bool:
        """Whether Redis has lost its data since `declare_known`, or another server did that, as far as is known."""
        return not self.origin().known

    def enter_epoch(self, epoch: str, server: str, given: int = 0) -> bool:
        """Fill the data of this server under another epoch from now on: every key is lost by that, and must be rebuilt.
        given: how many grants there have been, at least. False if the address leads to another server by now."""
        args = [epoch, server, given]
        return bool(answered(lambda: self._enter_epoch(keys=[_FILLED, _KNOWN], args=args)))

    def report_loss(self) -> None:
        """A grant said `lost`: have everything looked through."""
        answered(lambda: self._redis.delete(_KNOWN))

    def distrust(self, origin: Origin) -> None:
        """The keeper of the books refused tokens of this origin: give out no others until another epoch is entered."""
        answered(lambda: self._redis.hset(_FILLED, "void", origin.epoch))

    def declare_known(self, epoch: str) -> None:
        """Every key has been filled under this epoch."""
        answered(lambda: self._redis.set(_KNOWN, epoch))

    def begin_rebuild(self, keys: Mapping[str, Limits], epoch: str) -> dict[str, str]:
        """Mark those keys whose past is not known under this epoch, as far back as their limits go. Returns of them
        {key: nonce}.

        Wait `START_WITHIN_S`, read the books, then `finish_rebuild`.
        """

        def begin() -> list[str]:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, limits in keys.items():
                    args = [epoch, secrets.token_hex(8), to_us(limits.longest_period_s)]
                    self._begin_rebuild(keys=[*_keys(key), _FILLED], args=args, client=pipe)
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
                    self._finish_rebuild(keys=_keys(key), args=args, client=pipe)
                return pipe.execute()

        return sum(answered(finish))


@functools.lru_cache(maxsize=10_000)
def _keys(key: str) -> list[str]:
    """Both keys of one account share a hash tag, so that Redis Cluster keeps them on one node."""
    return [f"{NAMESPACE}:{{{key}}}:uses", f"{NAMESPACE}:{{{key}}}:gate"]


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
    if not answer:  # nothing was asked for
        return NOWHERE
    server, epoch, given = answer
    return Origin(server, epoch, int(given))
