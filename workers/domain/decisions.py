"""Decides what follows from an outcome, and how long to wait: the contract's table of answers. Pure.

decide          after an attempt, or after a worker that died during one
decide_lookup   after a lookup in the upstream's history
may_send        before a request leaves: whether it could be a blind repeat
"""

import random
from dataclasses import dataclass
from enum import StrEnum

from workers.domain.lookup import Evidence, Finding
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Capabilities, Outcome, OutcomeKind


class DeadLetterReason(StrEnum):
    REJECTED = "rejected"
    RECIPIENT_REFUSED = "recipient_refused"
    RETRIES_EXHAUSTED = "retries_exhausted"
    OUTCOME_UNKNOWN = "outcome_unknown"


class DeferralReason(StrEnum):
    THROTTLED = "throttled"
    PAUSED = "paused"
    UPSTREAM = "upstream"
    """The upstream is unavailable, so its identity rests."""
    CREDIT = "credit"
    """The credential is out of credit, so its identity rests."""
    IN_PROGRESS = "in_progress"
    """The upstream still processes an earlier attempt under the same key."""
    WITHHELD = "withheld"
    """Not sent, because an earlier attempt may have arrived and its key is too old to prevent a second delivery."""
    INTERRUPTED = "interrupted"
    """Claimed, but its loan ended or the worker stopped before the request started. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """max_attempts: attempts before a dead letter. base_s, max_s: see `backoff_s`."""

    max_attempts: int = 5
    base_s: float = 5.0
    max_s: float = 900.0


# --- what may follow ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MarkSent:
    upstream_id: str | None


@dataclass(frozen=True, slots=True)
class ScheduleRetry:
    delay_s: float


@dataclass(frozen=True, slots=True)
class Defer:
    """Back to its place; not counted as an attempt. delay_s: how long its own line rests. cooldown_s: how long the
    whole identity is closed; 0 for not at all."""

    reason: DeferralReason
    delay_s: float = 0.0
    cooldown_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AwaitVerification:
    """Look it up in the upstream's history, not before `delay_s` from now."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Bury:
    """A dead letter. suspicious: the refusal may be the account's fault after all: several in a row pause it."""

    reason: DeadLetterReason
    suspicious: bool = False


Decision = MarkSent | ScheduleRetry | Defer | AwaitVerification | Bury


@dataclass(frozen=True, slots=True)
class ConfirmSent:
    upstream_id: str | None


@dataclass(frozen=True, slots=True)
class SendAgain:
    """The history proves that it did not arrive."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """counted: whether it counts as one of the `LOOKUPS`."""

    delay_s: float
    counted: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A dead letter after a lookup, with words for the person who decides."""

    reason: DeadLetterReason
    error: str


LookupDecision = ConfirmSent | SendAgain | LookAgain | GiveUp

DEFAULT_COOLDOWN_S = 5.0
"""How long an identity cools down after a 429 that does not say."""
LONGEST_COOLDOWN_S = 86_400.0
"""A Retry-After beyond this is taken for a mistake of the upstream's."""
LINE_REST_S, LONGEST_LINE_REST_S = 0.25, 300.0
"""How long a line rests beyond the cooldown that its first 429 caused, so that another line goes first; doubled with
each 429 that follows."""
TOKENS_LEFT_TO_OTHERS = 1.5
"""So many tokens a line lets pass after its second 429 in a row, if no other has got through."""
FIRST_REST_S, LONGEST_REST_S = 5.0, 300.0
"""Seconds for which an identity rests if its upstream is unavailable: the first time, and at most."""
IN_PROGRESS_S, LONGEST_IN_PROGRESS_S = 1.0, 300.0
VERIFY_AFTER_S = 2.0
"""How long after the last moment a request can have left its arrival must show in the history."""
KEY_MARGIN_S = 300.0
"""An idempotency key is not relied on in the last minutes of its life: clocks and queues upstream are not ours."""
REFUSALS_IN_A_ROW = 3
"""So many different recipients in a row that may not be to blame, and the account is paused."""
LOOKUPS = 5
"""Lookups of one unknown outcome before a person must decide."""
LONGEST_DOUBT_S = 86_400.0
"""After so long a person must decide, also if the history could not be asked once."""
LOOKUP_RETRY = RetryPolicy(max_attempts=LOOKUPS, base_s=2.0, max_s=30.0)


# --- decisions ------------------------------------------------------------------------------------------------------


def may_send(claim: Claim, upstream: Capabilities) -> bool:
    """Whether the claimed message may leave: not if an earlier attempt may have arrived, unless a key that the upstream
    still honours keeps it from being delivered twice (guarantee 4)."""
    return claim.doubt_s is None or _key_protects(claim, upstream)


def decide(
    outcome: Outcome,
    claim: Claim,
    policy: RetryPolicy,
    upstream: Capabilities,
    *,
    time_left_s: float = 0.0,
    turn_s: float = 0.0,
) -> Decision:
    """What to do after the attempt `claim` ended in `outcome`.

    time_left_s: until the attempt's deadline; the upstream may work on the request until then. turn_s: how far apart
    the account's tokens come in the long run.
    """
    if outcome.interrupted:
        return Defer(DeferralReason.INTERRUPTED)
    if outcome.withheld:
        return _clear_up(upstream, 0.0)
    more = claim.tries < policy.max_attempts
    doubtful = claim.doubt_s is not None
    match outcome.kind:
        case OutcomeKind.ACCEPTED:
            return MarkSent(outcome.upstream_id)
        case OutcomeKind.THROTTLED:
            return _throttled(outcome, claim, turn_s)
        case OutcomeKind.UNAVAILABLE:
            return Defer(DeferralReason.UPSTREAM)
        case OutcomeKind.REJECTED if outcome.blame is Blame.CREDENTIAL and outcome.probe_after_s is not None:
            return Defer(DeferralReason.CREDIT)
        case OutcomeKind.REJECTED if outcome.blame in (Blame.CREDENTIAL, Blame.ACCOUNT):
            return Defer(DeferralReason.PAUSED)
        case OutcomeKind.IN_PROGRESS if doubtful and may_send(claim, upstream):
            wait_s = IN_PROGRESS_S if outcome.retry_after_s is None else outcome.retry_after_s
            return Defer(DeferralReason.IN_PROGRESS, min(max(wait_s, IN_PROGRESS_S), LONGEST_IN_PROGRESS_S))
        case OutcomeKind.UNKNOWN:
            if more and _key_protects(claim, upstream):
                return ScheduleRetry(backoff_s(claim.tries, policy) if outcome.blame is Blame.UPSTREAM else 0.0)
            return _clear_up(upstream, time_left_s)
        case OutcomeKind.FAILED if more:
            return ScheduleRetry(backoff_s(claim.tries, policy))
        case _ if doubtful:  # this attempt did not arrive; an earlier one may have
            return _clear_up(upstream, 0.0)
        case OutcomeKind.FAILED:
            return Bury(DeadLetterReason.RETRIES_EXHAUSTED)
        case OutcomeKind.REJECTED if outcome.blame is Blame.RECIPIENT:
            return Bury(DeadLetterReason.RECIPIENT_REFUSED)
        case OutcomeKind.REJECTED if outcome.blame is None:
            return Bury(DeadLetterReason.RECIPIENT_REFUSED, suspicious=True)
        case _:
            return Bury(DeadLetterReason.REJECTED)


def decide_lookup(
    finding: Finding, claim: Claim, lookups: int, policy: RetryPolicy, *, is_anothers: bool
) -> LookupDecision:
    """What to do after lookup number `lookups` of an unknown outcome.

    is_anothers: what was found is, or may yet turn out to be, another message of the same text.
    """
    match finding.evidence:
        case Evidence.FOUND if not is_anothers:
            return ConfirmSent(finding.upstream_id)
        case Evidence.ABSENT if claim.rekeyed:
            words = "it may have arrived: its account has another credential since, whose history proves nothing"
            return GiveUp(DeadLetterReason.OUTCOME_UNKNOWN, words)
        case Evidence.ABSENT if claim.tries < policy.max_attempts:
            return SendAgain()
        case Evidence.ABSENT:
            return GiveUp(DeadLetterReason.RETRIES_EXHAUSTED, "the upstream's history shows that no attempt arrived")
        case Evidence.AWAY if (claim.doubt_s or 0.0) < LONGEST_DOUBT_S:
            # Waiting burns nothing; the longer the doubt has lasted, the more rarely it asks.
            wait_s = (claim.doubt_s or 0.0) / 4
            return LookAgain(min(max(wait_s, FIRST_REST_S), LONGEST_REST_S), counted=False)
        case Evidence.AWAY:
            words = f"it may have arrived; for a day the history could not be asked: {finding.error}"
            return GiveUp(DeadLetterReason.OUTCOME_UNKNOWN, words)
    if lookups < LOOKUPS:
        return LookAgain(backoff_s(lookups, LOOKUP_RETRY))
    why = "it may be another message of the same text" if is_anothers else finding.error
    return GiveUp(DeadLetterReason.OUTCOME_UNKNOWN, f"it may have arrived; the lookup says: {why}")


def _clear_up(upstream: Capabilities, time_left_s: float) -> Decision:
    """An attempt may have arrived, and it cannot be repeated: the upstream's records must tell, or a person."""
    if upstream.history:
        return AwaitVerification(max(time_left_s, 0.0) + VERIFY_AFTER_S)
    return Bury(DeadLetterReason.OUTCOME_UNKNOWN)


def _key_protects(claim: Claim, upstream: Capabilities) -> bool:
    """Whether the upstream delivers the message once, however often it is sent. It knows a key only together with the
    credential that it came with."""
    young = (claim.doubt_s or 0.0) < upstream.key_lifetime_s - KEY_MARGIN_S
    return upstream.idempotent and young and not claim.rekeyed


def _throttled(outcome: Outcome, claim: Claim, turn_s: float) -> Defer:
    """The identity cools down, and the line a little longer, so that another line goes first. A line that is throttled
    again although others got through meanwhile rests alone. One that is throttled again before they did lets a token
    pass: where tokens come rarely, its rest could be over at each of them."""
    asked_s = DEFAULT_COOLDOWN_S if outcome.retry_after_s is None else outcome.retry_after_s
    asked_s = min(max(asked_s, 0.0), LONGEST_COOLDOWN_S)
    line_s = line_rest_s(claim.throttles + 1)
    if outcome.blame is Blame.RECIPIENT or (claim.throttles and claim.others_passed):
        return Defer(DeferralReason.THROTTLED, max(asked_s, line_s))
    if claim.throttles:
        line_s = max(line_s, TOKENS_LEFT_TO_OTHERS * turn_s)
    return Defer(DeferralReason.THROTTLED, asked_s + line_s, asked_s)


# --- waits ----------------------------------------------------------------------------------------------------------


def line_rest_s(throttles: int) -> float:
    """How long a line rests after so many 429s in a row."""
    return min(LONGEST_LINE_REST_S, LINE_REST_S * 2.0 ** min(throttles - 1, 60))


def rest_s(rests: int, asked_s: float | None = None, draw: float | None = None) -> float:
    """How long an identity rests for the `rests`-th time in a row: doubling, up to a ceiling, with jitter down to half
    of it, so that identities do not come back all at once. asked_s: what the upstream asks for, at least.
    draw: a number in [0, 1) to use instead of chance."""
    ceiling = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(rests - 1, 60))
    jittered = ceiling * (0.5 + (random.random() if draw is None else draw) / 2)  # noqa: S311 (jitter, not a secret)
    return max(jittered, min(asked_s or 0.0, LONGEST_COOLDOWN_S))


def backoff_s(tries: int, policy: RetryPolicy, draw: float | None = None) -> float:
    """Exponential backoff with full jitter: uniform between 0 and min(max, base × 2^(tries-1)) seconds.

    Full jitter spreads retries best at the same load: Brooker, "Exponential Backoff and Jitter", AWS 2015.
    draw: a number in [0, 1) to use instead of chance.
    """
    ceiling = min(policy.max_s, policy.base_s * 2.0 ** min(tries - 1, 60))
    return ceiling * (random.random() if draw is None else draw)  # noqa: S311 (jitter, not a secret)
