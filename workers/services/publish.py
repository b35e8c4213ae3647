"""What follows from an event, outside the database: the only code that counts a move, writes it into the log and wakes
an account because of it.

To be called after COMMIT: an event of a transaction that was rolled back has not happened. If the process dies in
between, the counters miss it, and the reconciler finds whom to wake.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from workers.domain import events
from workers.domain.actor import PACELINE
from workers.domain.decisions import DeferralReason
from workers.domain.events import Event
from workers.domain.outcome import Outcome, OutcomeKind
from workers.domain.state import State
from workers.telemetry import metrics
from workers.telemetry.logs import logger
from workers.wakeups import Wakeups

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Publisher:
    wakeups: Wakeups

    def publish(self, happened: Iterable[Event]) -> None:
        """Count, log and wake. Never raises for Redis: the reconciler makes good what could not be woken."""
        wakes: dict[str, float] = {}
        for event in happened:
            _count(event)
            _tell(event)
            for account_id, delay_s in _wakes(event):
                wakes[account_id] = min(delay_s, wakes.get(account_id, delay_s))
        if len(wakes) == 1:
            [(account_id, delay_s)] = wakes.items()
            self.wakeups.try_wake(account_id, delay_s)
        elif wakes:
            self.wakeups.try_wake_many(wakes)


# --- counters -------------------------------------------------------------------------------------------------------


def _count(event: Event) -> None:
    match event:
        case events.Started() | events.Stale():
            pass
        case events.Accepted(channel=channel):
            metrics.messages_accepted.labels(channel).inc()
        case events.AcceptedTogether(shares=shares):
            for share in shares:
                metrics.messages_accepted.labels(share.channel).inc(share.count)
        case events.Sent(outcome=outcome, waited_s=waited_s, estimate_error_s=error_s):
            _count_attempt(outcome)
            _count_end("sent")
            if waited_s is not None:
                metrics.queue_wait.observe(waited_s)
            if error_s is not None:
                metrics.estimate_error.observe(error_s)
        case events.Proved(outcome=outcome):
            _count_attempt(outcome)
            _count_end("sent")
        case events.Buried(outcome=outcome):
            _count_attempt(outcome)
            _count_end("failed")
        case events.LateAnswer(outcome=outcome) | events.RetryScheduled(outcome=outcome):
            _count_attempt(outcome)
        case events.LookupBegun(outcome=outcome):
            _count_attempt(outcome)
        case events.Deferred(reason=reason, channel=channel):
            metrics.deferrals.labels(str(reason)).inc()
            if reason is DeferralReason.THROTTLED:
                metrics.upstream_throttled.labels(channel).inc()
        case events.TakenBack(count=count):
            metrics.deferrals.labels(str(DeferralReason.INTERRUPTED)).inc(count)
        case events.Rescued():
            metrics.rescued.inc()
        case events.LookedUp(state=State.SENT | State.FAILED as state):
            _count_end(str(state))
        case events.Expired():
            _count_end("expired")
        case events.Cancelled() | events.Dismissed():
            _count_end("cancelled")
        case events.BatchCancelled(cancelled=cancelled):
            metrics.messages_processed.labels("cancelled").inc(sum(cancelled.values()))
        case events.Resolved():
            _count_end("sent")


def _count_attempt(outcome: Outcome) -> None:
    if outcome.withheld:  # nothing left: a deferral, whatever became of the message
        metrics.deferrals.labels(str(DeferralReason.WITHHELD)).inc()
        return
    metrics.attempts.labels(str(outcome.kind)).inc()
    if outcome.kind is OutcomeKind.UNKNOWN:
        metrics.outcome_unknown.inc()


def _count_end(outcome: str) -> None:
    metrics.messages_processed.labels(outcome).inc()


# --- logs -----------------------------------------------------------------------------------------------------------


def _tell(event: Event) -> None:
    match event:
        case events.Started(claim=claim):
            log.info("message_sending", **claim.ids)
        case events.Sent():
            log.info("message_sent", **_facts(event))
        case events.Proved():
            log.info("message_sent", late=True, **_facts(event))
        case events.LateAnswer():
            log.info("message_answered_late", **_facts(event))
        case events.Accepted():
            log.info("message_accepted", message_id=event.message_id, account_id=event.account_id, state=event.state)
        case events.AcceptedTogether(first_id=first_id, last_id=last_id, shares=shares):
            count = sum(share.count for share in shares)
            log.info("messages_accepted", count=count, accounts=len(shares), first_id=first_id, last_id=last_id)
        case events.Deferred(reason=reason, delay_s=delay_s, cooldown_s=cooldown_s):
            rests = {"delay_s": round(delay_s, 3), "cooldown_s": cooldown_s}
            log.info("message_deferred", reason=str(reason), **rests, **_facts(event))
        case events.RetryScheduled(delay_s=delay_s):
            log.info("message_retry_scheduled", delay_s=round(delay_s, 3), **_facts(event))
        case events.LookupBegun(delay_s=delay_s):
            log.info("message_verifying", delay_s=round(delay_s, 3), **_facts(event))
        case events.Buried(reason=reason):
            log.warning("message_failed", reason=str(reason), **_facts(event))
        case events.TakenBack(count=count):
            log.info("claims_taken_back", count=count)
        case events.Rescued(claim=claim):
            log.info("message_rescued", **claim.ids)
        case events.Stale(message_id=message_id, attempt=attempt):
            log.warning("stale_claim", message_id=message_id, attempt=attempt)
        case events.LookedUp(claim=claim, finding=finding, lookups=lookups, state=state):
            found = {"evidence": str(finding.evidence), "error": finding.error}
            log.info("message_looked_up", **claim.ids, **found, state=str(state), lookups=lookups)
        case events.Expired():
            log.info(
                "message_expired",
                message_id=event.message_id,
                account_id=event.account_id,
                request_id=event.request_id,
            )
        case events.Cancelled(message_id=message_id, account_id=account_id, by=by):
            log.info("message_cancelled", message_id=message_id, account_id=account_id, by=by)
        case events.BatchCancelled(batch_id=batch_id, cancelled=cancelled, by=by):
            log.info("batch_cancelled", batch_id=batch_id, cancelled=sum(cancelled.values()), by=by)
        case events.Amended(message_id=message_id, account_id=account_id, changed=changed, by=by):
            log.info("message_amended", message_id=message_id, account_id=account_id, changed=changed, by=by)
        case events.Retried(message_id=message_id, account_id=account_id, by=by):
            log.info("message_retried", message_id=message_id, account_id=account_id, by=by)
        case events.Redriven(matched=matched, expired=expired, queued=queued, by=by):
            log.info("messages_redriven", matched=matched, expired=expired, queued=queued, by=by)
        case events.Resolved(message_id=message_id, account_id=account_id, by=by):
            log.info("message_resolved", message_id=message_id, account_id=account_id, by=by)
        case events.Dismissed(message_id=message_id, account_id=account_id, by=by):
            log.info("message_dismissed", message_id=message_id, account_id=account_id, by=by)
        case _:
            _tell_of_account(event)


def _tell_of_account(event: Event) -> None:
    match event:
        case events.AccountChanged(account_id=account_id, created=created, limits=limits, by=by):
            log.info("account_changed", account_id=account_id, created=created, limits=limits, by=by)
        case events.AccountPaused(account_id=account_id, reason=reason, by=by):
            told = log.warning if by == PACELINE.subject else log.info
            told("account_paused", account_id=account_id, reason=reason, by=by)
        case events.AccountResumed(account_id=account_id, by=by):
            log.info("account_resumed", account_id=account_id, by=by)
        case events.AccountCoolingDown(account_id=account_id, for_s=for_s):
            log.info("account_cooling_down", account_id=account_id, for_s=for_s)
        case events.AccountResting(account_id=account_id, kind=kind, reason=reason):
            log.warning("account_resting", account_id=account_id, kind=kind, reason=reason)
        case events.AccountOpened(account_id=account_id):
            log.info("account_opened", account_id=account_id)


def _facts(event: Any) -> dict[str, Any]:
    """What there is to say of an attempt that has ended."""
    outcome: Outcome = event.outcome
    return event.claim.ids | {
        "outcome": str(outcome.kind),
        "http_status": outcome.http_status,
        "latency_ms": round(outcome.latency_s * 1000),
        "error": outcome.error,
    }


# --- wake-ups -------------------------------------------------------------------------------------------------------


def _wakes(event: Event) -> Iterator[tuple[str, float]]:
    """Which accounts have something to do because of it, and in how many seconds. A drain that records the end of an
    attempt is awake: it leaves a wake-up for what comes next itself."""
    match event:
        case events.Accepted(account_id=account_id, wake_in_s=wake_in_s) if wake_in_s is not None:
            yield account_id, wake_in_s
        case events.AcceptedTogether(shares=shares):
            for share in shares:
                if share.wake_in_s is not None:
                    yield share.account_id, share.wake_in_s
        case events.Rescued(claim=claim):
            yield claim.account_id, 0.0
        case events.LookedUp(claim=claim, state=state) if state is not State.VERIFYING:
            yield claim.account_id, 0.0
        case events.Expired() | events.Cancelled() | events.Amended() | events.Retried():  # others in line may go now
            yield event.account_id, 0.0
        case events.BatchCancelled(cancelled=cancelled):
            for account_id in cancelled:
                yield account_id, 0.0
        case events.Redriven(accounts=accounts):
            for account_id in accounts:
                yield account_id, 0.0
        case events.AccountChanged(account_id=account_id) | events.AccountOpened(account_id=account_id):
            yield account_id, 0.0
        case events.AccountPaused(account_id=account_id, until=until) if until is not None:
            yield account_id, 0.0  # a drain finds when that is
        case events.AccountResumed(account_id=account_id, together=together):
            for one in {account_id, *together}:
                yield one, 0.0
