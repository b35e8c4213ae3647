"""When will a waiting message go, and what holds it back? From the tokens' real return times and its real place."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

from ratelimit import Limits, View, forecast_many, gone_before
from ratelimit.tokens import START_WITHIN_S
from workers.clock import moment_in
from workers.domain.state import State
from workers.store.accounts import Account
from workers.store.backlog import Standing

PROMPT_S = 0.5
"""What goes within this is not held back by anything worth naming."""
_ROUNDS = 20
"""Who is overtaken waits longer, and may be overtaken again meanwhile: so often is that looked at, at most."""


_LOOK_BACK = 1000
"""How many arrivals before a message's time are looked at one by one."""


class BlockedBy(StrEnum):
    """What would have to change for a waiting message to go."""

    RATE = "rate"
    """The account has no token to spare."""
    GROUP = "group"
    """Nor has the group that it shares a budget with."""
    RECIPIENT = "recipient"
    """The recipient's own budget is used up."""
    COOLDOWN = "cooldown"
    """The upstream throttles the account."""
    UPSTREAM = "upstream"
    """The upstream is unavailable."""
    PAUSED = "paused"
    SCHEDULE = "schedule"
    """Its sendAt is still to come."""
    RETRY = "retry"
    """It failed, and its next try is still to come."""
    ORDERING = "ordering"
    """Another message to the same recipient goes first."""


# Tuples, here and in `Receipt`: there are ten thousand of each in a list of messages.
class Estimate(NamedTuple):
    """at: None if nobody can say (paused without an end, or Redis unavailable), or if no calendar can. next_token_s:
    seconds until the account may send its next message."""

    at: datetime | None
    blocked_by: BlockedBy | None
    next_token_s: float


class Place(NamedTuple):
    """Where a message stands. position: its place among those that go before it, 1 for next to go. rank: its own
    (`workers.domain.message.rank`). due_s: seconds until it may go at all, 0 if now. put_off_by: what it waits for
    until then. in_its_line: how many messages to the same recipient go before it, one at a time, the first of them in
    line_due_s seconds."""

    position: int
    rank: int
    state: State = State.QUEUED
    due_s: float = 0.0
    put_off_by: BlockedBy = BlockedBy.SCHEDULE
    in_its_line: int = 0
    line_due_s: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether it waits for a time of its own."""
        return self.due_s > 0 or self.state is State.SCHEDULED


def estimate(
    standing: Standing,
    limits: Limits,
    view: View | None,
    places: Sequence[Place],
    *,
    latency_s: float,
    lease_s: float,
) -> list[Estimate]:
    """For messages at these places on one account, in their order.

    standing: the account, read together with the positions and before the view. view: its tokens; None while Redis is
    unavailable. lease_s: how long a token is borrowed for.
    """
    account = standing.account
    cooldown_s = max(account.cooldown_s, view.cooldown_s if view else 0.0)
    held_s = max(account.paused_s, cooldown_s)
    closed_by = _closed_by(account, cooldown_s)
    rest_s = account.rest.left_s if account.rest else 0.0
    if view is None or not view.known or held_s == float("inf") or account.rest:
        wait_s = rest_s if held_s == float("inf") else max(held_s, rest_s)
        return [Estimate(None, _blocked_by(closed_by, place, 0.0), wait_s) for place in places]
    in_hand, uses = _in_hand(view, standing.tokens, lease_s), view.uses

    queue = _Queue(limits, uses, latency_s, held_s, in_hand)
    [next_s] = forecast_many(limits, uses, [1], latency_s=latency_s, not_before_s=held_s)
    arrivals = [Arrival(max(0.0, (at - standing.at).total_seconds()), rank, n) for at, rank, n in standing.later]
    turns_s = _turns_s(places, standing, arrivals, queue)

    @cache  # many go together
    def promise(what: tuple[Any, ...], turn_s: float) -> Estimate:
        place = Place(0, *what)
        line_s = max(held_s, place.line_due_s) + place.in_its_line * latency_s if place.in_its_line else 0.0
        return Estimate(
            moment_in(max(turn_s, place.due_s, line_s), standing.at), _blocked_by(closed_by, place, turn_s), next_s
        )

    return [promise(place[1:], turn_s) for place, turn_s in zip(places, turns_s, strict=True)]


class Arrival(NamedTuple):
    """So many messages of one rank that may go from some moment on."""

    due_s: float
    rank: int
    n: int


@dataclass(frozen=True, slots=True)
class _Queue:
    """Messages that leave one by one under the account's tokens. The first go under those in hand, now."""

    limits: Limits
    uses: Sequence[float]
    latency_s: float
    not_before_s: float
    in_hand: int

    def leave(self, places: Sequence[int], later: Sequence[tuple[int, float]] = ()) -> list[float]:
        """When those at these places leave. later: from a place on none leaves before so many seconds."""
        told = [max(1, place - self.in_hand) for place in places]
        turns_s = forecast_many(
            self.limits,
            self.uses,
            told,
            latency_s=self.latency_s,
            not_before_s=self.not_before_s,
            later=self._behind_those_in_hand(later),
        )
        return [
            turn_s if place > self.in_hand else self.not_before_s for place, turn_s in zip(places, turns_s, strict=True)
        ]

    def gone_before(
        self, moments: Sequence[float], later: Sequence[tuple[int, float]], length: int
    ) -> dict[float, int]:
        """How many of a queue of this length have left before each of these moments."""
        in_order = sorted(set(moments))
        found = gone_before(
            self.limits,
            self.uses,
            in_order,
            latency_s=self.latency_s,
            not_before_s=self.not_before_s,
            later=self._behind_those_in_hand(later),
            length=max(0, length - self.in_hand),
        )
        return {at_s: self.in_hand + n if at_s else 0 for at_s, n in zip(in_order, found, strict=True)}

    def _behind_those_in_hand(self, later: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        return [(max(1, place - self.in_hand), at_s) for place, at_s in later]


def _turns_s(places: Sequence[Place], standing: Standing, arrivals: Sequence[Arrival], queue: _Queue) -> list[float]:
    """When tokens and those before it let each of these go."""
    turns_s = [0.0] * len(places)
    for wait in (False, True):
        numbers = [n for n, place in enumerate(places) if place.waits is wait]
        chosen = [places[n] for n in numbers]
        turns, steps = _turns_later(chosen, standing, arrivals, queue) if wait else (_turns_now(chosen, standing), [])
        for n, turn_s in zip(numbers, _overtaken(chosen, turns, steps, arrivals, queue), strict=True):
            turns_s[n] = turn_s
    return turns_s


def _turns_now(places: Sequence[Place], standing: Standing) -> list[int]:
    """The turns of messages that may go now. Accounts that draw on the same budget take turns."""
    return [place.position + sum(min(n, place.position) for n in standing.neighbours) for place in places]


def _turns_later(
    places: Sequence[Place], standing: Standing, arrivals: Sequence[Arrival], queue: _Queue
) -> tuple[list[int], list[tuple[int, float]]]:
    """The turns of messages that wait for a time, in a queue of all, and from which turn on nothing leaves before when.

    Until a message may go, those of every rank take tokens. Then only those before it do that could not go yet.
    """
    if not places:
        return [], []
    arrivals = _recent(arrivals, min(place.due_s for place in places))
    steps, length = [], standing.ahead(0)
    for arrival in arrivals:
        steps.append((length + 1, arrival.due_s))
        length += arrival.n
    moments = [0.0, *(arrival.due_s for arrival in arrivals), *(place.due_s for place in places)]
    gone = queue.gone_before(moments, steps, length)
    backlog = {rank: _backlog(rank, arrivals, standing, gone) for rank in {place.rank for place in places}}
    return [gone[place.due_s] + backlog[place.rank](place) + 1 for place in places], steps


def _recent(arrivals: Sequence[Arrival], before_s: float) -> Sequence[Arrival]:
    """The same, but arrivals before the last thousand of this moment are taken for here already: each that is looked at
    by itself costs time. If a token was left unused since then, that makes no difference; if not, the estimate is too
    early."""
    old = bisect_right(arrivals, before_s, key=lambda arrival: arrival.due_s) - _LOOK_BACK
    if old <= 0:
        return arrivals
    together: Counter[int] = Counter()
    for arrival in arrivals[:old]:
        together[arrival.rank] += arrival.n
    return [*(Arrival(0.0, rank, n) for rank, n in together.items()), *arrivals[old:]]


def _backlog(
    rank: int, arrivals: Sequence[Arrival], standing: Standing, gone: Mapping[float, int]
) -> Callable[[Place], int]:
    """How many of those that go before a message of this rank are left when it may go.

    They are those that have come since they last were none, less all that have gone since. The moment of that is not
    known, but any other gives a lower number.
    """
    came = standing.ahead(rank)
    at_s, spare = [0.0], [0]
    for arrival in arrivals:
        if arrival.rank >= rank:
            at_s.append(arrival.due_s)
            spare.append(max(spare[-1], gone[arrival.due_s] - came))
            came += arrival.n

    def left(place: Place) -> int:
        most_spare = spare[bisect_right(at_s, place.due_s) - 1]
        return max(0, place.position - 1 - gone[place.due_s] + most_spare)

    return left


def _overtaken(
    places: Sequence[Place],
    turns: Sequence[int],
    steps: Sequence[tuple[int, float]],
    arrivals: Sequence[Arrival],
    queue: _Queue,
) -> list[float]:
    """When these messages go, whose turns these are but for more urgent ones that arrive until then, and go first."""
    taken, turns_s = turns, queue.leave(turns, steps)
    if not arrivals:
        return turns_s
    more_urgent = {rank: _arriving(arrivals, rank + 1) for rank in {place.rank for place in places}}
    known = [more_urgent[place.rank](place.due_s) if place.waits else 0 for place in places]
    for _ in range(_ROUNDS):
        overtaken = [
            turn + more_urgent[place.rank](max(turn_s, place.due_s)) - n
            for place, turn, turn_s, n in zip(places, turns, turns_s, known, strict=True)
        ]
        if overtaken == taken:
            break
        taken, turns_s = overtaken, queue.leave(overtaken, steps)
    return turns_s


def _arriving(arrivals: Sequence[Arrival], rank: int) -> Callable[[float], int]:
    """How many of at least this rank arrive within so many seconds."""
    counted = [arrival for arrival in arrivals if arrival.rank >= rank]
    at_s, totals = [arrival.due_s for arrival in counted], [0, *accumulate(arrival.n for arrival in counted)]
    return lambda within_s: totals[bisect_right(at_s, within_s)]


def _in_hand(view: View, claimed: frozenset[str], lease_s: float) -> int:
    """Tokens that a drain had borrowed, and put no message to yet when the position was read: the next in line go under
    them, now. Counted as plain uses they would be in the way of the very messages they are for."""
    just = (token for token, end in view.recent.items() if end > lease_s - START_WITHIN_S or end <= 0)
    return sum(token not in claimed for token in just)


def _closed_by(account: Account, cooldown_s: float) -> BlockedBy | None:
    """What closes the whole account, if anything does. While its upstream rests, nobody can say for how long."""
    if account.paused_s:
        return BlockedBy.PAUSED
    if account.rest is not None:
        return BlockedBy.UPSTREAM
    return BlockedBy.COOLDOWN if cooldown_s else None


def _blocked_by(closed_by: BlockedBy | None, place: Place, turn_s: float) -> BlockedBy | None:
    """The first thing that would have to change. A lack of tokens comes last, where the forecast is known.

    closed_by: what closes the account, if anything does.
    """
    if place.due_s > PROMPT_S and closed_by is not BlockedBy.PAUSED:
        return place.put_off_by
    if closed_by:
        return closed_by
    if place.state is State.HELD:
        return BlockedBy.ORDERING
    return BlockedBy.RATE if turn_s > PROMPT_S else None
