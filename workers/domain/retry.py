"""What follows from an outcome, and how long to wait. Pure: the decision for every row of the contract's table."""

import random
from dataclasses import dataclass
from enum import StrEnum

from workers.domain.outcome import Outcome, OutcomeKind


class DeadLetterReason(StrEnum):
    REJECTED = "rejected"
    RETRIES_EXHAUSTED = "retries_exhausted"
    OUTCOME_UNKNOWN = "outcome_unknown"


class DeferralReason(StrEnum):
    THROTTLED = "throttled"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    """Claimed, but not started before its loan ran out or the worker stopped: nothing left."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """max_attempts: attempts before a dead letter. base_s, max_s: see `backoff_s`."""

    max_attempts: int = 5
    base_s: float = 5.0
    max_s: float = 900.0


@dataclass(frozen=True, slots=True)
class MarkSent:
    upstream_id: str | None


@dataclass(frozen=True, slots=True)
class ScheduleRetry:
    delay_s: float


@dataclass(frozen=True, slots=True)
class Defer:
    """Back to its place; not counted as an attempt. cooldown_s: how long the account rests, 0 for not at all."""

    reason: DeferralReason
    cooldown_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AwaitVerification:
    """Look it up in the upstream's history, not before `delay_s` from now."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Bury:
    reason: DeadLetterReason


Decision = MarkSent | ScheduleRetry | Defer | AwaitVerification | Bury

DEFAULT_COOLDOWN_S = 5.0
"""How long an account rests after a 429 that does not say."""
LONGEST_COOLDOWN_S = 86_400.0
"""A Retry-After beyond this is taken for a mistake of the upstream's."""
VERIFY_AFTER_S = 2.0
"""How long after the last moment a request can have left its arrival must show in the history."""


def decide(
    outcome: Outcome,
    tries: int,
    policy: RetryPolicy,
    *,
    idempotent: bool,
    has_history: bool,
    time_left_s: float = 0.0,
) -> Decision:
    """What to do after attempt number `tries` (1: the first one since the message was queued) ended in `outcome`.

    idempotent: the upstream honours idempotency keys. has_history: it can be asked what arrived.
    time_left_s: until the attempt's deadline; the upstream may work on the request until then.
    """
    if outcome.interrupted:
        return Defer(DeferralReason.INTERRUPTED)
    match outcome.kind:
        case OutcomeKind.ACCEPTED:
            return MarkSent(outcome.upstream_id)
        case OutcomeKind.THROTTLED:
            asked = DEFAULT_COOLDOWN_S if outcome.retry_after_s is None else outcome.retry_after_s
            return Defer(DeferralReason.THROTTLED, min(max(asked, 0.0), LONGEST_COOLDOWN_S))
        case OutcomeKind.REJECTED if outcome.account_fault:
            return Defer(DeferralReason.PAUSED)
        case OutcomeKind.REJECTED:
            return Bury(DeadLetterReason.REJECTED)
        case OutcomeKind.FAILED:
            if tries >= policy.max_attempts:
                return Bury(DeadLetterReason.RETRIES_EXHAUSTED)
            return ScheduleRetry(backoff_s(tries, policy))
        case OutcomeKind.UNKNOWN:
            if idempotent and tries < policy.max_attempts:
                return ScheduleRetry(backoff_s(tries, policy))
            if has_history:
                return AwaitVerification(max(time_left_s, 0.0) + VERIFY_AFTER_S)
            return Bury(DeadLetterReason.OUTCOME_UNKNOWN)


def backoff_s(tries: int, policy: RetryPolicy, draw: float | None = None) -> float:
    """Exponential backoff with full jitter: uniform between 0 and min(max, base × 2^(tries-1)) seconds.

    Full jitter spreads retries best at the same load: Brooker, "Exponential Backoff and Jitter", AWS 2015.
    draw: a number in [0, 1) to use instead of chance.
    """
    ceiling = min(policy.max_s, policy.base_s * 2.0 ** min(tries - 1, 60))
    return ceiling * (random.random() if draw is None else draw)  # noqa: S311 (jitter, not a secret)
