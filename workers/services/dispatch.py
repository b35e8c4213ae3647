"""Draining an account: the one loop through which every message leaves.

    borrow tokens ─► claim as many messages, attempts on record, COMMIT ─► send, side by side ─► record, return tokens
         ▲                                                                                          │
         └──────────────────────────────────────────────────────────────────────────────────────────┘

Each turn of the loop handles whatever has been answered since the last one: it gives those tokens back and borrows new
ones in one call to Redis, records those outcomes and claims new messages in one transaction, and starts the new sends.
No connection is held while a request is out. One drain keeps as many requests out as there are tokens, up to `WIDTH`;
an account whose limits allow more gets several drains.

Order matters, twice. The token comes before the claim, so that a message is never `sending` without one. The COMMIT
comes before the request, so that whatever kills this process, the attempt is on record.
"""

import math
import secrets
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from ratelimit import Limits, Tokens, TokensUnavailable
from workers.channels.base import Channel, Sender
from workers.clock import monotonic_s
from workers.credentials import Vault
from workers.domain.decisions import Decision, Defer, DeferralReason, RetryPolicy, decide
from workers.domain.events import AccountOpened, Started
from workers.domain.message import Claim
from workers.domain.outcome import OutcomeKind
from workers.services.budgets import Budgets
from workers.services.drain.hand import TokenHand
from workers.services.drain.probe import Probe
from workers.services.drain.record import Record
from workers.services.drain.requests import WIDTH, Answer, Requests
from workers.services.drain.slot import DrainSlot
from workers.services.publish import Publisher
from workers.services.senders import Senders
from workers.services.settle import RESTS, Settled, Settlement
from workers.store import accounts, waiting
from workers.store.accounts import Account
from workers.store.claims import CLAIMED_AT_ONCE
from workers.store.session import Database
from workers.telemetry import metrics
from workers.telemetry.logs import logger
from workers.wakeups import Wakeups

BATCH = CLAIMED_AT_ONCE
"""Messages claimed, and outcomes recorded, in one turn of the loop."""
MOST_DRAINS = 4
"""Drains of one account at once, whatever its limits: others want their turn."""
DRAIN_FOR_S = 2.0
"""How long a drain goes on claiming: then it makes way for others, and for one that knows the account as it is now."""
LOOK_AGAIN_S = 0.1
"""How often a drain whose requests are still out looks for new messages meanwhile."""
RECRUIT_EVERY_S = 0.5
"""How often a full drain asks for another one beside it."""
SOON_S = 0.05
"""The least delay of a wake-up for something that is due but could not be claimed just now."""
AT_LEAST_S = 0.001
"""The least time between two looks of a drain for what may be claimed."""
LINGER_S = 0.02
"""How long a drain with nothing out waits for the next token itself. Later ones are left to the pacer, which finds a
worker for them in about as much time; meanwhile this thread is free for other accounts."""
_SMOOTHING = 0.2

log = logger(__name__)


@dataclass(slots=True)
class DrainReport:
    """What a drain did. next_s: seconds until the account has something to do again; None: nothing that is known."""

    claimed: int = 0
    settled: int = 0
    next_s: float | None = None


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """What every drain of this process shares. `senders` runs the requests; `stopping` asks drains to end early."""

    db: Database
    tokens: Tokens
    wakeups: Wakeups
    publisher: Publisher
    channels: Mapping[str, Channel]
    senders: Senders
    default_limits: Limits
    retry: RetryPolicy
    send_timeout_s: float
    lease_s: float
    worker: int
    vault: Vault
    budgets: Budgets
    drain_for_s: float = DRAIN_FOR_S
    stopping: threading.Event = field(default_factory=threading.Event)
    latency_s: dict[str, float] = field(default_factory=dict)
    """How long each account's upstream takes to answer, smoothed."""
    left_over: deque[str] = field(default_factory=deque)
    """Tokens of claims that were perhaps committed and perhaps not, by drains that have ended. No request uses them."""

    def drain(self, account_id: str, publication: int | None = None) -> DrainReport:
        """Send what the account may send now. Leaves a wake-up for when there is more to do.

        publication: the number that the pacer published this drain under; a stale copy does nothing. Raises Unreadable
        or UnknownKind if this process lacks the key of the account's credentials or its channel kind."""
        report = DrainReport()
        account = accounts.get(self.db, account_id)
        if account is None:
            return report
        slot = DrainSlot(self.wakeups, account_id, drain_name(self.worker))
        if not slot.take(drains_needed(account.limits_in_force(self.default_limits)), publication):
            return report
        try:
            account, sender = self._unlock(account)
            _Drain(self, account, sender, slot, report).run()
        finally:
            slot.leave(report.next_s, self.latency_s.get(account_id, 0.0) if report.settled else None)
        return report

    def note_latency(self, account_id: str, latency_s: float) -> None:
        """Smooth a measured latency into the account's."""
        known_s = self.latency_s.get(account_id, latency_s)
        self.latency_s[account_id] = known_s + _SMOOTHING * (latency_s - known_s)

    def _unlock(self, account: Account) -> tuple[Account, Sender]:
        """Have the account's credentials at hand, and draw on their budget. Raises Unreadable: another process may have
        the key that opens them."""
        sender = Sender(self.vault.credentials(account.sealed_key), account.settings)
        return self.budgets.settled(account, sender.credentials), sender


def drain_name(worker: int) -> str:
    """Names its worker, so that the slots of a dead one can be cleared (`Wakeups.evict`)."""
    return f"{worker}.{secrets.token_hex(4)}"


def drains_needed(limits: Limits) -> int:
    """How many drains it takes to have every token out at once."""
    return max(1, min(MOST_DRAINS, math.ceil(limits.most_at_once / WIDTH)))


class _Drain:
    """One run of the loop for one account. What it did goes into `report`, also if it raises."""

    def __init__(
        self, process: Dispatcher, account: Account, sender: Sender, slot: DrainSlot, report: DrainReport
    ) -> None:
        self._process, self._account, self._slot, self._report = process, account, slot, report
        self._limits = account.limits_in_force(process.default_limits)
        self._channel = process.channels[account.channel]
        self._hand = TokenHand(process.tokens, process.db, account, self._limits, process.lease_s, process.left_over)
        self._requests = Requests(process.senders, self._channel, sender, process.send_timeout_s)
        self._record = Record(process.db, self._hand, process.worker, process.lease_s)
        self._probe = Probe(process.db, account)
        self._closed = False  # whether the identity or the account has been closed since this drain began
        self._claimable = waiting.count_queued(process.db, account.id)  # about
        self._began_s, self._recruited_s = monotonic_s(), 0.0

    def run(self) -> None:
        """Send, until there is nothing left to send or no token to send it with. Then let go of what is in hand."""
        try:
            if not self._probe.resting or (self._claimable and self._probe.begin(self._process.lease_s)):
                self._loop()
            self._report.next_s = self._next_s()
        finally:
            self._let_go()

    def _loop(self) -> None:
        finished: list[Settlement] = []
        while True:
            tokens, free_s = self._borrow(answered=len(finished))
            settled, claims = self._record_and_claim(finished, tokens)
            self._start(claims, free_s)  # before anything is said of it, which takes time and may fail
            self._publish(settled, claims)
            if not self._requests and not self._lingers():
                return
            finished = self._await_answers()
            self._keep_slot()

    def _let_go(self) -> None:
        """Give back what is still in hand. If Redis or PostgreSQL is unavailable, all of it ends by itself in time."""
        self._requests.release()
        if self._probe.held and not self._report.claimed:
            self._probe.give_up()
        try:
            self._hand.trade(0, out=bool(self._requests))
        except TokensUnavailable as error:
            log.warning("drain_left_without_redis", account_id=self._account.id, error=str(error))

    def _borrow(self, answered: int) -> tuple[tuple[str, ...], float]:
        """Give back the tokens of what has been answered, and borrow others: one for each slot that can be reserved.
        Returns them, and for how long the last of them had been free (s)."""
        want = self._wish(answered) if self._hand.denied_for_s <= 0 else 0
        grant = self._hand.trade(self._requests.reserve(want), out=bool(self._requests))
        self._recruit(grant.left)
        return grant.tokens, grant.free_s

    def _wish(self, answered: int = 0) -> int:
        """How many tokens this drain could use: as many as there may be messages, and no more. A token borrowed in vain
        is refunded soon, but meanwhile it is missing in every forecast. What has just been answered may make way for as
        many others in line. One message probes a resting identity."""
        if self._process.stopping.is_set() or self._time_is_up() or self._closed:
            return 0
        if self._probe.held:
            return 0 if self._report.claimed else 1
        return min(BATCH, self._requests.room, max(self._claimable, answered))

    def _time_is_up(self) -> bool:
        return self._report.claimed > 0 and monotonic_s() - self._began_s > self._process.drain_for_s

    def _recruit(self, tokens_left: int) -> None:
        """Have another drain started beside this one, if it will not have room for all the tokens and messages."""
        more = min(tokens_left, self._claimable - self._requests.reserved) > self._requests.room
        if more and monotonic_s() - self._recruited_s > RECRUIT_EVERY_S:
            self._recruited_s = monotonic_s()
            self._process.wakeups.try_wake(self._account.id)

    def _record_and_claim(self, finished: list[Settlement], tokens: tuple[str, ...]) -> tuple[Settled, list[Claim]]:
        """Record what has ended and claim what comes next, in one COMMIT."""
        settled, claims = self._record.turn(finished, tokens, probe=self._probe.held, out=bool(self._requests))
        self._report.settled += len(finished)
        self._report.claimed += len(claims)
        if tokens:
            self._claimable = claims[0].queued - len(claims) if len(claims) == len(tokens) else 0
        else:
            self._claimable += settled.elected
        return settled, claims

    def _start(self, claims: list[Claim], free_s: float) -> None:
        # The exchange begins within START_WITHIN_S of borrowing, and after its COMMIT: so the books are in time, as
        # `ratelimit.tokens` asks. It ends `send_timeout_s` later at the latest, connecting included. That is a second
        # before the loan ends (`Settings.lease_s`), so no byte leaves without a token.
        for claim in claims:
            metrics.dispatch_delay.observe(max(0.0, min(claim.due_s, free_s)))
        self._requests.start(claims, self._hand.start_by_s)

    def _publish(self, settled: Settled, claims: list[Claim]) -> None:
        if AccountOpened(account_id=self._account.id) in settled.events:
            self._probe.succeed()
        self._process.publisher.publish([*settled.events, *(Started(claim=claim) for claim in claims)])

    def _lingers(self) -> bool:
        """Whether to stay with nothing out, because the next token is nearer than another drain would be."""
        soon = 0 < self._hand.denied_for_s <= LINGER_S and monotonic_s() - self._began_s < self._process.drain_for_s
        return soon and not self._requests.crowded and self._wish() > 0

    def _await_answers(self) -> list[Settlement]:
        answers = self._requests.answers(self._patience_s(), BATCH)
        if not answers:
            self._claimable = max(self._claimable, 1)  # something may have come in meanwhile
        return [self._judge(answer) for answer in answers]

    def _patience_s(self) -> float:
        """How long to wait for an answer: until the next token is free, if there is a message and room for it, and
        Redis took back what it was given."""
        if self._requests.crowded or self._hand.gives_back or not self._wish():
            return LOOK_AGAIN_S
        return min(LOOK_AGAIN_S, max(AT_LEAST_S, self._hand.denied_for_s))

    def _judge(self, answer: Answer) -> Settlement:
        """Decide what follows, and what becomes of the token."""
        claim, outcome = answer.claim, answer.outcome
        if not outcome.left:
            self._hand.refunds([claim.token])
        elif outcome.kind is not OutcomeKind.UNKNOWN:
            self._hand.returns(claim.token, answer.at_s)
        # An unknown one stays out until its loan ends: no answer came, so the deadline is what counts.
        slowest = self._limits.slowest()
        decision = decide(
            outcome,
            claim,
            self._process.retry,
            self._channel.capabilities,
            time_left_s=self._process.send_timeout_s - outcome.latency_s,
            turn_s=slowest.period_s / slowest.count,
        )
        self._heed(decision)
        if outcome.left:
            metrics.send_latency.labels(self._channel.name).observe(outcome.latency_s)
            self._process.note_latency(self._account.id, outcome.latency_s)
        return Settlement(
            claim=claim,
            outcome=outcome,
            decision=decision,
            channel=self._channel.name,
            probed=self._probe.held,
            rests=self._probe.rests,
        )

    def _heed(self, decision: Decision) -> None:
        """What a decision means for this drain itself, before it is on record."""
        match decision:
            case Defer(DeferralReason.THROTTLED, _, cooldown_s):
                if cooldown_s:
                    self._hand.cool_down(cooldown_s)
            case Defer(reason) if reason in RESTS or reason is DeferralReason.PAUSED:
                self._closed = True

    def _keep_slot(self) -> None:
        """Renew the slot now and then; vacate it when the time is up, for what is out needs none."""
        if self._time_is_up():
            self._slot.vacate()
        else:
            self._slot.renew()

    def _next_s(self) -> float | None:
        """When the account has something to do again."""
        if self._process.stopping.is_set():
            return 0.0  # another process goes on
        denied_s = self._hand.denied_for_s
        if self._claimable and denied_s > 0:
            return denied_s
        due_s = waiting.next_due_s(self._process.db, self._account.id)
        return None if due_s is None else max(due_s, denied_s, SOON_S)
