"""Accept a message: find its place, insert, COMMIT, wake the account. What is answered 202 is on disk by then."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ulid import ULID

from ratelimit import Limits, Tokens, TokensUnavailable, View
from workers import telemetry
from workers.domain.errors import InvalidMessage, KeyReused, NotFound, QueueFull
from workers.domain.message import NewMessage
from workers.domain.state import State
from workers.services.estimate import BlockedBy, Estimate, estimate
from workers.store import accounts, messages
from workers.store.accounts import Account
from workers.store.session import Database
from workers.telemetry import logger
from workers.wakeups import EXPECTED_LATENCY_S, Wakeups

log = logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the caller is told. position: 1 for next to go. replayed: this idempotency key had been used already; then
    position, estimate and what blocks it are not the message's, which stands elsewhere by now, but a new one's."""

    message_id: str
    account_id: str
    queued_at: datetime
    position: int
    estimated_at: datetime | None
    blocked_by: BlockedBy | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Submitter:
    """Accepts messages. Needs PostgreSQL; Redis only for the estimate and the wake-up."""

    db: Database
    tokens: Tokens
    wakeups: Wakeups
    default_limits: Limits
    lease_s: float
    max_queue_depth: int

    def submit(
        self,
        wanted: dict[str, Any],
        account_id: str,
        *,
        subject: str,
        key: str | None = None,
        fingerprint: str = "",
    ) -> Receipt:
        """Queue a message for an account.

        wanted: the fields of `NewMessage` but its id and account. subject, key, fingerprint: who asks, under which
        idempotency key, and a hash of what was asked. Raises NotFound, InvalidMessage, QueueFull, KeyReused,
        StoreUnavailable; nothing is queued then.
        """
        now = datetime.now(UTC)
        message = NewMessage(id=f"msg_{ULID()}", account_id=account_id, **wanted)
        standing = accounts.standing(self.db, account_id, message.priority)
        if standing is None:
            raise NotFound(f"No account {account_id}")
        due_s = (message.send_at - now).total_seconds() if message.send_at else 0.0
        state = State.SCHEDULED if due_s > 0 else State.QUEUED
        promise = self._estimate(standing, state, max(due_s, 0.0), now)
        try:
            check_times(message, now)
            if standing.depth >= self.max_queue_depth:
                raise QueueFull(account_id, standing.depth, self.max_queue_depth, max(1.0, promise.next_token_s))
        except (InvalidMessage, QueueFull):
            # What has been accepted once is answered again, also when it would not be accepted now.
            if not (key and messages.key_used(self.db, subject, key)):
                raise
        accepted = messages.accept(
            self.db, message, estimated_at=promise.at, subject=subject, key=key, fingerprint=fingerprint
        )
        if accepted.replayed and accepted.fingerprint != fingerprint:
            raise KeyReused("This Idempotency-Key was used before with another body; use a new key for a new message")
        if not accepted.replayed:
            telemetry.messages_accepted.labels(standing.account.channel).inc()
            log.info("message_accepted", message_id=message.id, account_id=account_id, state=accepted.state)
            self._wake(standing.account, promise, due_s)
        blocked_by = promise.blocked_by
        if accepted.state == State.HELD and blocked_by in (None, BlockedBy.RATE):
            blocked_by = BlockedBy.ORDERING
        return Receipt(
            message_id=accepted.message_id,
            account_id=account_id,
            queued_at=accepted.queued_at,
            position=standing.ahead + 1,
            estimated_at=promise.at and max(promise.at, accepted.queued_at),
            blocked_by=blocked_by,
            replayed=accepted.replayed,
        )

    def _estimate(self, standing: accounts.Standing, state: State, due_s: float, now: datetime) -> Estimate:
        account = standing.account
        limits = account.limits or self.default_limits
        view, latency_s = look(self.tokens, self.wakeups, account, limits)
        return estimate(
            account,
            limits,
            view,
            position=standing.ahead + 1,
            claimed=standing.tokens,
            state=state,
            due_s=due_s,
            latency_s=latency_s,
            lease_s=self.lease_s,
            now=now,
        )

    def _wake(self, account: Account, promise: Estimate, due_s: float) -> None:
        """A wake-up for when the account can send, not for now: one without tokens is not drained for every message
        that comes in. Should this be lost, the reconciler repeats it."""
        if account.paused_s == float("inf"):
            return
        self.wakeups.try_wake(account.id, max(promise.next_token_s, due_s, 0.0))


def look(tokens: Tokens, wakeups: Wakeups, account: Account, limits: Limits) -> tuple[View | None, float]:
    """The account's tokens and its upstream's latency; no tokens while Redis is away."""
    try:
        return tokens.view(account.id, limits), wakeups.latency_s(account.id)
    except TokensUnavailable as error:
        log.warning("tokens_unavailable", account_id=account.id, error=str(error))
        return None, EXPECTED_LATENCY_S


def check_times(message: NewMessage, now: datetime) -> None:
    """An expiresAt that is past or not after sendAt means that the message could never be sent."""
    if message.expires_at is None:
        return
    if message.expires_at <= now:
        raise InvalidMessage({"expiresAt": ["Is in the past; leave it out or choose a later time."]})
    if message.send_at is not None and message.expires_at <= message.send_at:
        raise InvalidMessage({"expiresAt": ["Must be after sendAt."]})
