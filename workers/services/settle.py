"""Write down what an attempt came to: the one place where a decision becomes a transition, with its consequences for
the account and for all that share its credential."""

from dataclasses import dataclass, field

from workers import telemetry
from workers.domain.actor import PACELINE, Action
from workers.domain.errors import StaleClaim
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Outcome, OutcomeKind
from workers.domain.retry import (
    REFUSALS_IN_A_ROW,
    AwaitVerification,
    Bury,
    Decision,
    Defer,
    DeferralReason,
    MarkSent,
    ScheduleRetry,
    rest_s,
)
from workers.store import accounts, audit, messages
from workers.store.session import Connection
from workers.telemetry import logger

log = logger(__name__)

RESTS = {DeferralReason.UPSTREAM: "away", DeferralReason.CREDIT: "credit"}
"""Deferrals after which the identity rests, and what kind of rest that is."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """An attempt that has ended, and what is to follow. probed: it was the one message that probes a resting identity;
    rests: how often in a row that has rested so far."""

    claim: Claim
    outcome: Outcome
    decision: Decision
    probed: bool = False
    rests: int = 0


@dataclass(slots=True)
class Settled:
    """What the transaction changed: events to count and log once it has committed."""

    settlements: tuple[Settlement, ...] = ()
    sent: tuple[messages.Sent, ...] = ()
    stale: list[StaleClaim] = field(default_factory=list)
    elected: int = 0
    """Messages that stand first in their lines now that others are sent."""
    taken_back: int = 0
    """Claims undone with it, of which nothing left."""
    proved: set[str] = field(default_factory=set)
    """Messages that are sent because an earlier attempt turned out to have arrived."""
    still_out: set[str] = field(default_factory=set)
    """Messages that have arrived, as a late answer shows, while another attempt of them is out."""
    paused: dict[str, str] = field(default_factory=dict)
    """Accounts that are paused now, and why."""
    resting: dict[str, str] = field(default_factory=dict)
    """Accounts that rest now, and why."""
    opened: list[str] = field(default_factory=list)
    """Accounts that rested, and whose upstream serves them again."""


def settle(c: Connection, settlements: list[Settlement]) -> Settled:
    """Make the transitions, within the caller's transaction. A claim that is not ours any more is reported, and the
    others go on: their outcomes must not be lost with it."""
    settled = Settled(tuple(settlements))
    accepted = [(s.claim, s.outcome) for s in settlements if isinstance(s.decision, MarkSent)]
    settled.sent = tuple(messages.mark_sent(c, accepted))
    settled.elected = messages.elect_heads(c, [claim.line for claim, _ in accepted])
    in_time = {one.message_id for one in settled.sent}
    for settlement in settlements:
        try:
            if settlement.claim.message_id not in in_time:
                _settle_one(c, settlement, settled)
            _settle_account(c, settlement, settled)
        except StaleClaim as error:
            settled.stale.append(error)
    return settled


def _settle_one(c: Connection, settlement: Settlement, settled: Settled) -> None:
    claim, outcome = settlement.claim, settlement.outcome
    match settlement.decision:
        case MarkSent():
            if not messages.accept_late_answer(c, claim, outcome):
                settled.still_out.add(claim.message_id)
            return
        case ScheduleRetry(delay_s):
            messages.schedule_retry(c, claim, outcome, delay_s)
        case Defer(reason, delay_s):
            messages.defer(c, claim, outcome, reason, delay_s)
        case AwaitVerification(delay_s):
            messages.await_verification(c, claim, outcome, delay_s)
        case Bury(reason):
            messages.bury(c, claim, outcome, reason)
    if messages.mark_proved(c, claim):
        settled.proved.add(claim.message_id)


def _settle_account(c: Connection, settlement: Settlement, settled: Settled) -> None:
    """What the outcome means for the account and for those that share its credential: no more than `blame` allows."""
    claim, outcome, decision = settlement.claim, settlement.outcome, settlement.decision
    account_id, words = claim.account_id, _words(outcome)
    match decision:
        case Defer(reason) if reason in RESTS:
            _rest(c, settlement, RESTS[reason], settled)
            return
        case Defer(cooldown_s=for_s) if for_s:
            accounts.cool_down(c, account_id, for_s)
        case Defer(DeferralReason.PAUSED) if outcome.blame is Blame.CREDENTIAL:
            _pause(c, accounts.close_credential(c, account_id, words), words, settled)
        case Defer(DeferralReason.PAUSED):
            _pause(c, accounts.close(c, account_id, words), words, settled)
        case Bury(suspicious=True):
            refused = accounts.note_refusal(c, account_id, claim.recipient_id)
            if refused >= REFUSALS_IN_A_ROW:
                why = f"{refused} recipients in a row were refused; the last time the {words}"
                _pause(c, accounts.close(c, account_id, why), why, settled)
    if settlement.probed:
        if outcome.serves:
            settled.opened += accounts.open_again(c, account_id)
        elif outcome.interrupted or outcome.withheld:
            accounts.end_probe(c, account_id)
        else:
            _rest(c, settlement, "away", settled)


def _rest(c: Connection, settlement: Settlement, kind: str, settled: Settled) -> None:
    claim, outcome = settlement.claim, settlement.outcome
    for_s = outcome.probe_after_s or rest_s(settlement.rests + 1, outcome.retry_after_s)
    words = _words(outcome)
    resting = accounts.rest(c, claim.account_id, kind, words, for_s, probed=settlement.probed)
    settled.resting |= dict.fromkeys(resting, words)


def _pause(c: Connection, account_ids: list[str], reason: str, settled: Settled) -> None:
    for account_id in account_ids:
        audit.note(c, PACELINE, Action.PAUSE, account_id, reason=reason)
        settled.paused[account_id] = reason


def _words(outcome: Outcome) -> str:
    """The upstream's words, or the network's, for people."""
    if outcome.http_status is None:
        return f"upstream cannot be reached: {outcome.error}"
    return f"upstream answered {outcome.http_status}: {outcome.error}"


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
        if settlement.claim.message_id not in lost:
            _announce_one(settlement, settled)
    for account_id, reason in settled.paused.items():
        log.warning("account_paused", account_id=account_id, by=PACELINE.subject, reason=reason)
    for account_id, reason in settled.resting.items():
        log.warning("account_resting", account_id=account_id, reason=reason)
    for account_id in settled.opened:
        log.info("account_rested", account_id=account_id)


def _announce_one(settlement: Settlement, settled: Settled) -> None:
    claim, outcome, decision = settlement.claim, settlement.outcome, settlement.decision
    facts = claim.ids | {
        "outcome": str(outcome.kind),
        "http_status": outcome.http_status,
        "latency_ms": round(outcome.latency_s * 1000),
        "error": outcome.error,
    }
    counted = not isinstance(decision, Defer) and not outcome.withheld
    if counted:
        telemetry.attempts.labels(str(outcome.kind)).inc()
        if outcome.kind is OutcomeKind.UNKNOWN:
            telemetry.outcome_unknown.inc()
    elif outcome.withheld:
        telemetry.deferrals.labels(str(DeferralReason.WITHHELD)).inc()
    if claim.message_id in settled.still_out:
        return
    if claim.message_id in settled.proved:
        telemetry.messages_processed.labels("sent").inc()
        log.info("message_sent", late=True, **facts)
        return
    match decision:
        case Defer(reason, delay_s, cooldown_s):
            telemetry.deferrals.labels(str(reason)).inc()
            log.info("message_deferred", reason=str(reason), delay_s=delay_s, cooldown_s=cooldown_s, **facts)
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
