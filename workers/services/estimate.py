"""When will a waiting message go, and what holds it back? From the tokens' real return times and its real place."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from ratelimit import Limits, View, forecast_many
from ratelimit.tokens import START_WITHIN_S
from workers.domain.state import State
from workers.store.accounts import Account

PROMPT_S = 0.5
"""What goes within this is not held back by anything worth naming."""


class BlockedBy(StrEnum):
    RATE = "rate"
    COOLDOWN = "cooldown"
    PAUSED = "paused"
    SCHEDULE = "schedule"
    ORDERING = "ordering"


# Tuples, here and in `Receipt`: there are ten thousand of each in a list of messages.
class Estimate(NamedTuple):
    """at: None if nobody can say (paused without an end, or Redis away). next_token_s: seconds until the account may
    send its next message."""

    at: datetime | None
    blocked_by: BlockedBy | None
    next_token_s: float


class Place(NamedTuple):
    """Where a message stands. position: its place in line, 1 for next to go. due_s: seconds until it may go at all
    (sendAt, or a retry), 0 if now."""

    position: int
    state: State
    due_s: float


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
    held_s = max(account.paused_s, account.cooldown_s, view.cooldown_s if view else 0.0)
    if view is None or not view.known or held_s == float("inf"):
        wait_s = 0.0 if held_s == float("inf") else held_s
        return [Estimate(None, _blocked_by(account, view, place), wait_s) for place in places]
    in_hand = _in_hand(view, claimed, lease_s)
    turns = [1, *(max(1, place.position - in_hand) for place in places)]
    next_s, *turns_s = forecast_many(limits, view.uses, turns, latency_s=latency_s, not_before_s=held_s)
    estimates = []
    for place, turn_s in zip(places, turns_s, strict=True):
        goes_s = turn_s if place.position > in_hand else held_s
        blocked_by = _blocked_by(account, view, place)
        if blocked_by is None and goes_s > PROMPT_S:
            blocked_by = BlockedBy.RATE
        estimates.append(Estimate(now + timedelta(seconds=max(goes_s, place.due_s)), blocked_by, next_s))
    return estimates


def _in_hand(view: View, claimed: frozenset[str], lease_s: float) -> int:
    """Tokens that a drain had borrowed, and put no message to yet when the position was read: the next in line go under
    them, now. Counted as plain uses they would be in the way of the very messages they are for."""
    just = (token for token, end in view.recent.items() if end > lease_s - START_WITHIN_S or end <= 0)
    return sum(token not in claimed for token in just)


def _blocked_by(account: Account, view: View | None, place: Place) -> BlockedBy | None:
    """The first thing that would have to change. A lack of tokens comes last, where the forecast is known."""
    if account.paused_s:
        return BlockedBy.PAUSED
    if place.due_s > PROMPT_S:
        return BlockedBy.SCHEDULE
    if account.cooldown_s or (view and view.cooldown_s):
        return BlockedBy.COOLDOWN
    if place.state is State.HELD:
        return BlockedBy.ORDERING
    return None
