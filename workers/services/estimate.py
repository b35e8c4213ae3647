"""When will a waiting message go, and what holds it back? From the tokens' real return times and its real place."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

from ratelimit import Limits, View, forecast_many
from ratelimit.tokens import START_WITHIN_S
from workers.clock import moment_in
from workers.domain.state import State
from workers.store.accounts import Account, Standing

PROMPT_S = 0.5
"""What goes within this is not held back by anything worth naming."""
_ROUNDS = 20
"""Who is overtaken waits longer, and may be overtaken again meanwhile: so often is that looked at, at most."""


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


def estimate(
    standing: Standing,
    limits: Limits,
    view: View | None,
    places: Sequence[Place],
    *,
    latency_s: float,
    lease_s: float,
    now: datetime,
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

    def leave(places: Sequence[int], later: Sequence[tuple[int, float]] = ()) -> list[float]:
        """Those that go under a token in hand go now."""
        told = [place - in_hand if place > in_hand else 1 for place in places]
        steps = [(max(1, place - in_hand), at_s) for place, at_s in later]
        turns_s = forecast_many(limits, uses, told, latency_s=latency_s, not_before_s=held_s, later=steps)
        return [turn_s if place > in_hand else held_s for place, turn_s in zip(places, turns_s, strict=True)]

    [next_s] = forecast_many(limits, uses, [1], latency_s=latency_s, not_before_s=held_s)
    arrivals = [Arrival(max(0.0, (at - now).total_seconds()), rank, n) for at, rank, n in standing.later]
    turns_s = _turns_s(places, standing, arrivals, leave)

    @cache  # many go together
    def promise(what: tuple[Any, ...], turn_s: float) -> Estimate:
        place = Place(0, *what)
        line_s = max(held_s, place.line_due_s) + place.in_its_line * latency_s if place.in_its_line else 0.0
        return Estimate(moment_in(max(turn_s, place.due_s, line_s), now), _blocked_by(closed_by, place, turn_s), next_s)

    return [promise(place[1:], turn_s) for place, turn_s in zip(places, turns_s, strict=True)]


class Arrival(NamedTuple):
    """So many messages of one rank that may go from some moment on."""

    due_s: float
    rank: int
    n: int


Leave = Callable[..., list[float]]
"""When the messages at these places leave: `leave(places, later)`, as for `forecast_many`."""


def _turns_s(places: Sequence[Place], standing: Standing, arrivals: Sequence[Arrival], leave: Leave) -> list[float]:
    """When tokens and those before it let each of these go."""
    turns_s = [0.0] * len(places)
    now = [n for n, place in enumerate(places) if not place.due_s]
    for n, turn_s in zip(now, _overtaken([places[n] for n in now], standing.neighbours, arrivals, leave), strict=True):
        turns_s[n] = turn_s
    for rank in {place.rank for place in places if place.due_s}:
        later = [n for n, place in enumerate(places) if place.due_s and place.rank == rank]
        steps = _steps(rank, standing, arrivals)
        for n, turn_s in zip(later, leave([places[n].position for n in later], steps), strict=True):
            turns_s[n] = turn_s
    return turns_s


def _overtaken(
    places: Sequence[Place], neighbours: Sequence[int], arrivals: Sequence[Arrival], leave: Leave
) -> list[float]:
    """For messages that may go now. Until they do, more urgent ones may arrive, and go first. Accounts that draw on the
    same budget take turns."""
    turns = [place.position + sum(min(n, place.position) for n in neighbours) for place in places]
    taken, turns_s = turns, leave(turns)
    if not arrivals:
        return turns_s
    more_urgent = {rank: _arriving(arrivals, rank + 1) for rank in {place.rank for place in places}}
    for _ in range(_ROUNDS):
        overtaken = [
            turn + more_urgent[place.rank](turn_s) for place, turn, turn_s in zip(places, turns, turns_s, strict=True)
        ]
        if overtaken == taken:
            break
        taken, turns_s = overtaken, leave(overtaken)
    return turns_s


def _arriving(arrivals: Sequence[Arrival], rank: int) -> Callable[[float], int]:
    """How many of at least this rank arrive within so many seconds."""
    counted = [arrival for arrival in arrivals if arrival.rank >= rank]
    at_s, totals = [arrival.due_s for arrival in counted], [0, *accumulate(arrival.n for arrival in counted)]
    return lambda within_s: totals[bisect_right(at_s, within_s)]


def _steps(rank: int, standing: Standing, arrivals: Sequence[Arrival]) -> list[tuple[int, float]]:
    """In a queue of all messages of at least this rank: from which place on they go no earlier than when."""
    place, steps = 1 + standing.ahead(rank), []
    for arrival in arrivals:
        if arrival.rank >= rank:
            steps.append((place, arrival.due_s))
            place += arrival.n
    return steps


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
