"""When will a waiting message go, and what holds it back? From the tokens' real return times and its real place."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ratelimit import Limits, View, forecast
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


@dataclass(frozen=True, slots=True)
class Estimate:
    """at: None if nobody can say (paused without an end, or Redis away). next_token_s: seconds until the account may
    send its next message."""

    at: datetime | None
    blocked_by: BlockedBy | None
    next_token_s: float


def estimate(
    account: Account,
    limits: Limits,
    view: View | None,
    *,
    position: int,
    claimed: frozenset[str],
    state: State,
    due_s: float,
    latency_s: float,
    lease_s: float,
    now: datetime,
) -> Estimate:
    """
    position: its place in line, 1 for next to go. claimed: the tokens that messages have been put to of late, read
    together with the position and before the view.
    due_s: seconds until it may go at all (sendAt, or a retry), 0 if now.
    view: the account's tokens; None while Redis is away. lease_s: how long a token is borrowed for.
    """
    held_s = max(account.paused_s, account.cooldown_s, view.cooldown_s if view else 0.0)
    blocked_by = _blocked_by(account, view, state, due_s)
    if view is None or not view.known or held_s == float("inf"):
        return Estimate(None, blocked_by, 0.0 if held_s == float("inf") else held_s)
    next_s = forecast(limits, view.uses, 1, latency_s=latency_s, not_before_s=held_s)
    place = position - _in_hand(view, claimed, lease_s)
    goes_s = forecast(limits, view.uses, place, latency_s=latency_s, not_before_s=held_s) if place > 0 else held_s
    if blocked_by is None and goes_s > PROMPT_S:
        blocked_by = BlockedBy.RATE
    return Estimate(now + timedelta(seconds=max(goes_s, due_s)), blocked_by, next_s)


def _in_hand(view: View, claimed: frozenset[str], lease_s: float) -> int:
    """Tokens that a drain had borrowed, and put no message to yet when the position was read: the next in line go under
    them, now. Counted as plain uses they would be in the way of the very messages they are for."""
    just = (token for token, end in view.recent.items() if end > lease_s - START_WITHIN_S or end <= 0)
    return sum(token not in claimed for token in just)


def _blocked_by(account: Account, view: View | None, state: State, due_s: float) -> BlockedBy | None:
    """The first thing that would have to change. A lack of tokens comes last, where the forecast is known."""
    if account.paused_s:
        return BlockedBy.PAUSED
    if due_s > PROMPT_S:
        return BlockedBy.SCHEDULE
    if account.cooldown_s or (view and view.cooldown_s):
        return BlockedBy.COOLDOWN
    if state is State.HELD:
        return BlockedBy.ORDERING
    return None
