"""Write down what an attempt came to: the one place where a decision becomes a transition, with its consequences for
the account and for all that share its credential."""

from dataclasses import dataclass, field

from workers.domain.actor import PACELINE, Action
from workers.domain.decisions import (
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
from workers.domain.errors import StaleClaim
from workers.domain.events import AccountPaused, Event, Proved, Stale
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Outcome
from workers.store import audit, closures, lines, outcomes
from workers.store.session import Connection

RESTS = {DeferralReason.UPSTREAM: "away", DeferralReason.CREDIT: "credit"}
"""Deferrals after which the identity rests, and what kind of rest that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """An attempt that has ended, and what is to follow. probed: it was the one message that probes a resting identity;
    rests: how often in a row that has rested so far."""

    claim: Claim
    outcome: Outcome
    decision: Decision
    channel: str
    probed: bool = False
    rests: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What the transaction changed. events: to be published once it has committed. elected: messages that stand first
    in their lines now that others are sent."""

    events: list[Event] = field(default_factory=list)
    elected: int = 0


def settle(c: Connection, settlements: list[Settlement]) -> Settled:
    """Make the transitions, within the caller's transaction. A claim that is not ours any more is reported, and the
    others go on: their outcomes must not be lost with it."""
    accepted = [(s.claim, s.outcome) for s in settlements if isinstance(s.decision, MarkSent)]
    sent = outcomes.mark_sent(c, accepted)
    elected = lines.elect_heads(c, [claim.line for claim, _ in accepted])
    in_time = {event.claim.message_id for event in sent}
    events: list[Event] = [*sent]
    for settlement in settlements:
        try:
            if settlement.claim.message_id not in in_time:
                events.append(_settle_message(c, settlement))
            events += _settle_account(c, settlement)
        except StaleClaim as error:
            events.append(Stale(message_id=error.message_id, attempt=error.attempt))
    return Settled(events, elected)


def _settle_message(c: Connection, settlement: Settlement) -> Event:
    claim, outcome = settlement.claim, settlement.outcome
    moved: Event
    match settlement.decision:
        case MarkSent():
            return outcomes.accept_late_answer(c, claim, outcome)
        case ScheduleRetry(delay_s):
            moved = outcomes.schedule_retry(c, claim, outcome, delay_s)
        case Defer(reason, delay_s, cooldown_s):
            moved = outcomes.defer(
                c, claim, outcome, reason, channel=settlement.channel, delay_s=delay_s, cooldown_s=cooldown_s
            )
        case AwaitVerification(delay_s):
            moved = outcomes.await_verification(c, claim, outcome, delay_s)
        case Bury(reason):
            moved = outcomes.bury(c, claim, outcome, reason)
    return Proved(claim=claim, outcome=outcome) if outcomes.mark_proved(c, claim) else moved


def _settle_account(c: Connection, settlement: Settlement) -> list[Event]:
    """What the outcome means for the account and for those that share its credential: no more than `blame` allows."""
    claim, outcome, decision = settlement.claim, settlement.outcome, settlement.decision
    account_id, words = claim.account_id, _words(outcome)
    events: list[Event] = []
    match decision:
        case Defer(reason) if reason in RESTS:
            return _rest(c, settlement, RESTS[reason])
        case Defer(cooldown_s=for_s) if for_s:
            events += closures.cool_down(c, account_id, for_s)
        case Defer(DeferralReason.PAUSED) if outcome.blame is Blame.CREDENTIAL:
            events += _noted(c, closures.close_credential(c, account_id, words))
        case Defer(DeferralReason.PAUSED):
            events += _noted(c, closures.close(c, account_id, words))
        case Bury(suspicious=True):
            refused = closures.note_refusal(c, claim)
            if refused >= REFUSALS_IN_A_ROW:
                why = f"{refused} recipients in a row were refused; the last time the {words}"
                events += _noted(c, closures.close(c, account_id, why))
    if settlement.probed:
        events += _end_probe(c, settlement)
    return events


def _end_probe(c: Connection, settlement: Settlement) -> list[Event]:
    """The resting identity opens at the first answer of an upstream that serves requests again."""
    account_id, outcome = settlement.claim.account_id, settlement.outcome
    if outcome.serves:
        return [*closures.open_again(c, account_id)]
    if outcome.blame is Blame.UPSTREAM:
        return _rest(c, settlement, "away")
    closures.end_probe(c, account_id)  # not sent, or this process stopped: that says nothing of the upstream
    return []


def _rest(c: Connection, settlement: Settlement, kind: str) -> list[Event]:
    claim, outcome = settlement.claim, settlement.outcome
    for_s = outcome.probe_after_s or rest_s(settlement.rests + 1, outcome.retry_after_s)
    return [*closures.rest(c, claim.account_id, kind, _words(outcome), for_s, probed=settlement.probed)]


def _noted(c: Connection, paused: list[AccountPaused]) -> list[AccountPaused]:
    """The audit tells of it too."""
    for event in paused:
        audit.note(c, PACELINE, Action.PAUSE, event.account_id, reason=event.reason)
    return paused


def _words(outcome: Outcome) -> str:
    """The upstream's words, or the network's, for people."""
    if outcome.http_status is None:
        return f"upstream cannot be reached: {outcome.error}"
    return f"upstream answered {outcome.http_status}: {outcome.error}"
