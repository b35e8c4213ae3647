"""When will a waiting message go, and what holds it back? From the tokens' real return times and its real place."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from ratelimit import Limits, View, forecast_many
from ratelimit.tokens import START_WITHIN_S
from workers.clock import moment_in
from workers.domain.state import State
from workers.store.accounts import Account

PROMPT_S = 0.5
"""What goes within this is not held back by anything worth naming."""


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
    """Where a message stands. position: its place in line, 1 for next to go. due_s: seconds until it may go at all, 0
    if now. put_off_by: what it waits for until then."""

    position: int
    state: State = State.QUEUED
    due_s: float = 0.0
    put_off_by: BlockedBy = BlockedBy.SCHEDULE


def estimate(
    account: Account,
    limits: Limits,
    view: View | None,
    places: Sequence[Place],
    *,
    claimed: frozenset[str],
    latency_s: float,
    lease_s: float,
    now: datetime,
) -> list[Estimate]:
    """For messages at these places, in their order.

    view: the account's tokens; None while Redis is away. claimed: the tokens that messages have been put to of late,
    read together with the positions and before the view. lease_s: how long a token is borrowed for.
    """
    cooldown_s = max(account.cooldown_s, view.cooldown_s if view else 0.0)
    held_s = max(account.paused_s, cooldown_s)
    closed_by = _closed_by(account, cooldown_s)
    rest_s = account.rest.left_s if account.rest else 0.0
    if view is None or not view.known or held_s == float("inf") or account.rest:
        wait_s = rest_s if held_s == float("inf") else max(held_s, rest_s)
        return [Estimate(None, _blocked_by(closed_by, place, 0.0), wait_s) for place in places]
    in_hand = _in_hand(view, claimed, lease_s)
    turns = [1, *(place.position - in_hand if place.position > in_hand else 1 for place in places)]
    next_s, *turns_s = forecast_many(limits, view.uses, turns, latency_s=latency_s, not_before_s=held_s)

    @cache  # many go together
    def promise(place: Place, turn_s: float) -> Estimate:
        return Estimate(moment_in(max(turn_s, place.due_s), now), _blocked_by(closed_by, place, turn_s), next_s)

    return [
        promise(place._replace(position=0), turn_s if place.position > in_hand else held_s)
        for place, turn_s in zip(places, turns_s, strict=True)
    ]


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
