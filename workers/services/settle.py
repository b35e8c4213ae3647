"""Write down what an attempt came to: the one place where a decision becomes a transition."""

from dataclasses import dataclass

from workers import telemetry
from workers.domain.actor import PACELINE, Action
from workers.domain.errors import StaleClaim
from workers.domain.message import Claim
from workers.domain.outcome import Outcome, OutcomeKind
from workers.domain.retry import (
    AwaitVerification,
    Bury,
    Decision,
    Defer,
    DeferralReason,
    MarkSent,
    ScheduleRetry,
)
from workers.store import accounts, audit, messages
from workers.store.session import Connection
from workers.telemetry import logger

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Settlement:
    """An attempt that has ended, and what is to follow."""

    claim: Claim
    outcome: Outcome
    decision: Decision


@dataclass(frozen=True, slots=True)
class Settled:
    """What the transaction changed: events to count and log once it has committed."""

    settlements: tuple[Settlement, ...] = ()
    sent: tuple[messages.Sent, ...] = ()
    stale: tuple[StaleClaim, ...] = ()
    elected: int = 0
    """Messages that stand first in their lines now that others are sent."""
    taken_back: int = 0
    """Claims undone with it, of which nothing left."""


def settle(c: Connection, settlements: list[Settlement]) -> Settled:
    """Make the transitions, within the caller's transaction. A claim that is not ours any more is reported, and the
    others go on: their outcomes must not be lost with it."""
    stale: list[StaleClaim] = []
    accepted = [(s.claim, s.outcome) for s in settlements if isinstance(s.decision, MarkSent)]
    sent = messages.mark_sent(c, accepted)
    elected = messages.elect_heads(c, [claim.line for claim, _ in accepted])
    in_time = {one.message_id for one in sent}
    for claim, outcome in accepted:
        if claim.message_id not in in_time:
            try:
                messages.accept_late_answer(c, claim, outcome)
            except StaleClaim as error:
                stale.append(error)
    for settlement in settlements:
        try:
            _settle_one(c, settlement)
        except StaleClaim as error:
            stale.append(error)
    return Settled(tuple(settlements), tuple(sent), tuple(stale), elected)


def _settle_one(c: Connection, settlement: Settlement) -> None:
    claim, outcome = settlement.claim, settlement.outcome
    match settlement.decision:
        case ScheduleRetry(delay_s):
            messages.schedule_retry(c, claim, outcome, delay_s)
        case Defer(reason, cooldown_s):
            messages.defer(c, claim, outcome, reason)
            if cooldown_s:
                accounts.cool_down(c, claim.account_id, cooldown_s)
            if reason is DeferralReason.PAUSED:
                words = f"upstream answered {outcome.http_status}: {outcome.error}"
                if accounts.close(c, claim.account_id, words):
                    audit.note(c, PACELINE, Action.PAUSE, claim.account_id, reason=words)
        case AwaitVerification(delay_s):
            messages.await_verification(c, claim, outcome, delay_s)
        case Bury(reason):
            messages.bury(c, claim, outcome, reason)


def announce(settled: Settled) -> None:
    """Count and log what has been committed."""
    if settled.taken_back:
        telemetry.deferrals.labels(str(DeferralReason.INTERRUPTED)).inc(settled.taken_back)
    for one in settled.sent:
        telemetry.queue_wait.observe(one.waited_s)
        if one.estimate_error_s is not None:
            telemetry.estimate_error.observe(one.estimate_error_s)
    lost = {error.message_id for error in settled.stale}
    for error in settled.stale:
        log.warning("stale_claim", message_id=error.message_id, attempt=error.attempt)
    for settlement in settled.settlements:
        claim, outcome, decision = settlement.claim, settlement.outcome, settlement.decision
        if claim.message_id in lost:
            continue
        facts = claim.ids | {
            "outcome": str(outcome.kind),
            "http_status": outcome.http_status,
            "latency_ms": round(outcome.latency_s * 1000),
        }
        if isinstance(decision, Defer):
            telemetry.deferrals.labels(str(decision.reason)).inc()
            log.info("message_deferred", reason=str(decision.reason), cooldown_s=decision.cooldown_s, **facts)
            if decision.reason is DeferralReason.PAUSED:
                log.warning("account_paused", by=PACELINE.subject, **facts)
            continue
        telemetry.attempts.labels(str(outcome.kind)).inc()
        if outcome.kind is OutcomeKind.UNKNOWN:
            telemetry.outcome_unknown.inc()
        match decision:
            case MarkSent():
                telemetry.messages_processed.labels("sent").inc()
                log.info("message_sent", **facts)
            case ScheduleRetry(delay_s):
                log.info("message_retry_scheduled", delay_s=round(delay_s, 3), **facts)
            case AwaitVerification(delay_s):
                log.info("message_verifying", delay_s=round(delay_s, 3), **facts)
            case Bury(reason):
                telemetry.messages_processed.labels("failed").inc()
                log.warning("message_failed", reason=str(reason), **facts)
