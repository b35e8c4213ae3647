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

import asyncio
import math
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from ratelimit import Limits, Tokens, TokensUnavailable
from ratelimit.tokens import NOWHERE, START_WITHIN_S
from workers.channels.base import Channel, Sender
from workers.clock import monotonic_s
from workers.credentials import Vault
from workers.domain.decisions import Decision, Defer, DeferralReason, RetryPolicy, decide, may_send
from workers.domain.errors import StoreUnavailable
from workers.domain.events import AccountOpened, Started
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Outcome, OutcomeKind
from workers.services.budgets import Budgets
from workers.services.epochs import explain_loss
from workers.services.publish import Publisher
from workers.services.senders import Senders
from workers.services.settle import RESTS, Settled, Settlement, settle
from workers.store import accounts, waiting
from workers.store.accounts import Account
from workers.store.claims import CLAIMED_AT_ONCE, claim_next, take_back
from workers.store.session import Connection, Database
from workers.telemetry import metrics, traces
from workers.telemetry.logs import logger
from workers.wakeups import DRAIN_LEASE_S, Wakeups

WIDTH = 256
"""Requests that one drain keeps out at once."""
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
ASK_AGAIN_S = 1.0
"""How long a drain asks for no tokens after Redis was found to have lost some."""
AT_LEAST_S = 0.001
"""The least time between two looks of a drain for what may be claimed."""
LINGER_S = 0.02
"""How long a drain with nothing out waits for the next token itself. Later ones are left to the pacer, which finds a
worker for them in about as much time; meanwhile this thread is free for other accounts."""
_SMOOTHING = 0.2

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    claim: Claim
    outcome: Outcome
    at_s: float
    """When it came (monotonic s)."""


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
    stopping: threading.Event = field(default_factory=threading.Event)
    latency_s: dict[str, float] = field(default_factory=dict)
    unconfirmed: deque[str] = field(default_factory=deque)
    """Tokens of claims that were perhaps committed and perhaps not, by drains that have ended. Nobody uses them."""

    def drain(self, account_id: str, publication: int | None = None) -> DrainReport:
        """Send what the account may send now. Leaves a wake-up for when there is more to do.

        publication: the number that the pacer published this drain under; a stale copy does nothing."""
        account = accounts.get(self.db, account_id)
        if account is None:
            return DrainReport()
        limits = account.limits_in_force(self.default_limits)
        drain_id = drain_name(self.worker)
        if not self.wakeups.begin_drain(account_id, drain_id, drains_needed(limits), publication):
            return DrainReport()
        drain = _Drain(self, account, limits, drain_id)
        try:
            drain.unlock()
            return drain.run(waiting.count_queued(self.db, account_id))
        finally:
            drain.leave()


def drain_name(worker: int) -> str:
    """Names its worker, so that the places of a dead one can be cleared (`Wakeups.evict`)."""
    return f"{worker}.{secrets.token_hex(4)}"


def drains_needed(limits: Limits) -> int:
    """How many drains it takes to have every token out at once."""
    return max(1, min(MOST_DRAINS, math.ceil(limits.most_at_once / WIDTH)))


class _Drain:
    def __init__(self, shared: Dispatcher, account: Account, limits: Limits, drain_id: str) -> None:
        self._ = shared
        self._account, self._limits, self._id = account, limits, drain_id
        self._channel = shared.channels[account.channel]
        self._sender = Sender(settings=account.settings)
        self._rest = account.rest
        self._probing = False  # whether this drain holds the right to send one message to a resting identity
        self._closed = False  # whether the identity or the account has been closed since this drain began
        self._out: dict[str, Claim] = {}
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._returned: dict[str, float] = {}  # token -> when its answer came (monotonic s)
        self._refunded: list[str] = []
        self._unconfirmed: list[str] = []
        self._report = DrainReport()
        self._denied_until_s = self._closed_until_s = self._lost_until_s = 0.0
        self._origin, self._borrowed_s = NOWHERE, 0.0  # of the tokens last borrowed
        self._claimable = 0
        self._places = 0
        self._crowded = False  # there were not as many places as it could have used
        self._began_s = self._renewed_s = monotonic_s()
        self._recruited_s = 0.0
        self._placed = True

    def unlock(self) -> None:
        """Have the account's key at hand, and draw on the budget of that key. Raises Unreadable: another process may
        have the key that opens it."""
        if self._account.sealed_key is not None:
            self._sender = replace(self._sender, api_key=self._.vault.open(self._account.sealed_key))
        self._account = self._.budgets.settled(self._account, self._sender.api_key)
        self._limits = self._account.limits_in_force(self._.default_limits)

    def run(self, queued: int) -> DrainReport:
        """Send, until there is nothing left to send or no token to send it with. queued: how much there is, about."""
        self._claimable = queued
        if self._rest is not None and not self._begin_probe():
            self._report.next_s = self._next_s()
            return self._report
        finished: list[Settlement] = []
        while True:
            borrowed_s = monotonic_s()
            want = self._wish(len(finished)) if self._denied_for_s() <= 0 else 0
            self._places = self._.senders.take(want, newcomer=not self._out)
            self._crowded = self._places < want
            tokens, free_s = self._trade_tokens(self._places)
            settled, claims = self._record_and_claim(finished, tokens)
            self._start(claims, borrowed_s, free_s)  # before anything is said of it, which takes time and may fail
            self._publish(settled, claims)
            if not self._out and not self._lingers():
                break
            finished = self._await_answers()
            self._keep_place()
        self._report.next_s = self._next_s()
        return self._report

    def leave(self) -> None:
        """Give back what is still in hand, make room, and leave a wake-up for when there is more to do. Redis being
        away, all of it comes about by itself in time."""
        self._.senders.release(self._places)
        self._places = 0
        if self._probing and not self._report.claimed:
            with suppress(StoreUnavailable):  # then it ends by itself
                accounts.end_probe(self._.db, self._account.id)
        try:
            if self._returned or self._refunded:
                self._trade_tokens(0)
            latency_s = self._.latency_s.get(self._account.id, 0.0) if self._report.settled else None
            self._.wakeups.end_drain(self._account.id, self._id, next_s=self._report.next_s, latency_s=latency_s)
        except TokensUnavailable as error:
            log.warning("drain_left_without_redis", account_id=self._account.id, error=str(error))

    def _begin_probe(self) -> bool:
        """Take the right to probe the resting identity, if that is due and there is a message to do it with."""
        due = self._rest is not None and not self._rest.left_s
        self._probing = bool(
            due and self._claimable and accounts.begin_probe(self._.db, self._account.id, self._.lease_s)
        )
        return self._probing

    def _wish(self, answered: int = 0) -> int:
        """How many tokens this drain could use: as many as there may be messages, and no more. A token borrowed in vain
        is refunded soon, but meanwhile it is missing in every forecast. What has just been answered may make way for as
        many others in line. One message probes a resting identity."""
        if self._.stopping.is_set() or self._time_is_up() or self._closed:
            return 0
        if self._probing:
            return 0 if self._report.claimed else 1
        return min(BATCH, WIDTH - len(self._out), max(self._claimable, answered))

    def _denied_for_s(self) -> float:
        """How long there is no use in asking for tokens; not positive: ask. A denial that hung on a loan of ours was a
        bound: with the loan given back, it is worth asking again."""
        denied_until_s = 0.0 if self._returned or self._refunded else self._denied_until_s
        return max(0.0, max(denied_until_s, self._lost_until_s) - monotonic_s())

    def _lingers(self) -> bool:
        """Whether to stay with nothing out, because the next token is nearer than another drain would be."""
        soon = 0 < self._denied_for_s() <= LINGER_S and monotonic_s() - self._began_s < DRAIN_FOR_S
        return soon and not self._crowded and self._wish() > 0

    def _trade_tokens(self, want: int) -> tuple[tuple[str, ...], float]:
        """Return and refund what is due, and borrow up to `want`."""
        if not (want or self._returned or self._refunded):
            return (), math.inf
        borrowed_s = monotonic_s()
        try:
            grant = self._.tokens.exchange(
                self._account.budget,
                self._limits,
                want=want,
                lease_s=self._.lease_s,
                returned={token: monotonic_s() - at_s for token, at_s in self._returned.items()},
                refunded=self._refunded,
            )
        except TokensUnavailable:
            if not self._out and not self._returned:
                raise
            log.warning("tokens_unavailable", account_id=self._account.id)
            self._denied_until_s = monotonic_s() + 1.0
            return (), math.inf
        gave_back = bool(self._returned or self._refunded)
        self._returned, self._refunded = {}, []
        if grant.overshoot:
            metrics.limit_overshoot.inc(grant.overshoot)
            log.error("limit_overshoot", account_id=self._account.id, uses=grant.overshoot)
        if grant.lost:
            self._report_loss()
        elif len(grant.tokens) < want:
            self._denied_until_s = monotonic_s() + grant.wait_s
        else:
            if gave_back:  # what the denial hung on, perhaps
                self._denied_until_s = self._closed_until_s
            self._recruit(grant.left)
        self._origin, self._borrowed_s = grant.origin, borrowed_s
        return grant.tokens, grant.free_s

    def _report_loss(self) -> None:
        """Redis has lost tokens. The reconciler is told; until it has rebuilt them, this drain asks for no others."""
        log.warning("tokens_lost", account_id=self._account.id)
        self._lost_until_s = monotonic_s() + ASK_AGAIN_S
        try:
            self._.tokens.report_loss()
            explain_loss(self._.db, self._.tokens)
        except (TokensUnavailable, StoreUnavailable) as error:  # then the next one to be told reports it
            log.warning("loss_not_reported", error=str(error))

    def _report_void(self) -> None:
        """PostgreSQL refused the tokens: another server gives them out by now, or this one has lost some that it gave
        out before. Tokens that are too old to be used prove neither, and are only given back."""
        if monotonic_s() - self._borrowed_s < START_WITHIN_S:
            with suppress(TokensUnavailable):  # then the next one to be refused says it
                self._.tokens.distrust(self._origin)
            self._report_loss()

    def _recruit(self, tokens_left: int) -> None:
        """There are more tokens and messages than this drain will have room for: have another one started beside it."""
        room = WIDTH - len(self._out) - self._places
        more = min(tokens_left, self._claimable - self._places) > room
        if more and monotonic_s() - self._recruited_s > RECRUIT_EVERY_S:
            self._recruited_s = monotonic_s()
            self._.wakeups.try_wake(self._account.id)

    def _record_and_claim(self, finished: list[Settlement], tokens: tuple[str, ...]) -> tuple[Settled, list[Claim]]:
        """Record what has ended and claim what comes next, in one COMMIT."""
        with suppress(IndexError):  # until there are no more, whoever else takes some
            while True:
                self._unconfirmed.append(self._.unconfirmed.pop())
        if not (finished or tokens or self._unconfirmed):
            return Settled(), []

        def work(c: Connection) -> tuple[Settled, list[Claim] | None]:
            taken_back = take_back(c, self._unconfirmed, self._.worker)
            settled = settle(c, finished)
            if taken_back.count:
                settled.events.append(taken_back)
            claims = claim_next(
                c,
                self._account.id,
                tokens,
                self._.worker,
                self._.lease_s,
                origin=self._origin,
                budget=self._account.budget,
                probe=self._probing,
            )
            return settled, claims

        try:
            settled, claimed = self._insist(work, tokens, must=bool(finished))
        except BaseException:
            self._refunded += tokens
            raise
        if claimed is None:  # the tokens are void, and go back as unused
            self._report_void()
        claims = claimed or []
        self._report.settled += len(finished)
        self._report.claimed += len(claims)
        used = {claim.token for claim in claims}
        self._refunded += [token for token in tokens if token not in used]
        if tokens:
            self._claimable = claims[0].queued - len(claims) if len(claims) == len(tokens) else 0
        else:
            self._claimable += settled.elected
        return settled, claims

    def _publish(self, settled: Settled, claims: list[Claim]) -> None:
        if AccountOpened(account_id=self._account.id) in settled.events:
            self._probing, self._rest = False, None
        self._.publisher.publish([*settled.events, *(Started(claim=claim) for claim in claims)])

    def _insist(
        self, work: Callable[[Connection], tuple[Settled, list[Claim] | None]], tokens: tuple[str, ...], *, must: bool
    ) -> tuple[Settled, list[Claim] | None]:
        """What was sent must be recorded: keep trying while this process lives. What it could not record in the end is
        found by the reconciler as an attempt without an outcome."""
        pause_s = 0.05
        while True:
            try:
                only_claims = not (must or self._unconfirmed)
                done = self._.db.single(work) if only_claims else self._.db.transaction(work)
                self._unconfirmed = []
                return done
            except StoreUnavailable as error:
                # The COMMIT may have gone through, and nobody have told us: what it claimed is taken back next time.
                self._unconfirmed += tokens
                if not must and not self._out:
                    self._.unconfirmed.extend(self._unconfirmed)  # by whichever drain of this process is next
                    raise
                if not must:  # nothing to record yet, but what is out must not be abandoned
                    log.warning("claim_put_off", account_id=self._account.id, error=str(error))
                    return Settled(), []
                log.warning("record_delayed", account_id=self._account.id, error=str(error))
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 1.0)

    def _start(self, claims: list[Claim], borrowed_s: float, free_s: float) -> None:
        # The exchange begins within START_WITHIN_S of borrowing, and after its COMMIT: so the books are in time, as
        # `ratelimit.tokens` asks. It ends `send_timeout_s` later at the latest, connecting included. That is a second
        # before the loan ends (`Settings.lease_s`), so no byte leaves without a token.
        start_by_s = borrowed_s + START_WITHIN_S
        for claim in claims:
            metrics.dispatch_delay.observe(max(0.0, min(claim.due_s, free_s)))
        if claims:
            self._.senders.start([self._send(claim, start_by_s) for claim in claims])
        self._out |= {claim.token: claim for claim in claims}
        self._.senders.release(self._places - len(claims))
        self._places = 0

    async def _send(self, claim: Claim, start_by_s: float) -> None:
        """One request. What is logged or traced meanwhile goes under the message's name. Whatever happens, the drain is
        told an outcome: it waits for one."""
        structlog.contextvars.bind_contextvars(**claim.ids)  # in a context of its own
        try:
            with traces.span("send", kind="CLIENT", parent=claim.traceparent, attributes=claim.ids) as span:
                outcome = await self._ask_channel(claim, start_by_s)
                span |= {"outcome": str(outcome.kind), "http.response.status_code": outcome.http_status}
        except asyncio.CancelledError:
            outcome = Outcome(OutcomeKind.UNKNOWN, error="the process ended before an answer came")
        except Exception as error:  # channels do not raise; should one all the same, the drain must not wait for ever
            log.exception("send_broke")
            outcome = Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM, error=type(error).__name__)
        self._answers.put(_Answer(claim, outcome, monotonic_s()))

    async def _ask_channel(self, claim: Claim, start_by_s: float) -> Outcome:
        """Send it, unless that could deliver it a second time."""
        if not may_send(claim, self._channel.capabilities):
            words = "not sent again: an earlier attempt may have arrived, and no idempotency key protects it any more"
            return Outcome(OutcomeKind.UNKNOWN, left=False, withheld=True, error=words)
        return await self._channel.send(claim, self._sender, start_by_s=start_by_s, timeout_s=self._.send_timeout_s)

    def _await_answers(self) -> list[Settlement]:
        try:
            answered = [self._answers.get(timeout=self._patience_s())]
        except queue.Empty:
            self._claimable = max(self._claimable, 1)  # something may have come in meanwhile
            return []
        while len(answered) < BATCH and not self._answers.empty():
            answered.append(self._answers.get())
        return [self._judge(answer) for answer in answered]

    def _patience_s(self) -> float:
        """How long to wait for an answer: until the next token is free, if there is a message and room for it, and
        Redis took back what it was given."""
        if self._crowded or self._returned or self._refunded or not self._wish():
            return LOOK_AGAIN_S
        return min(LOOK_AGAIN_S, max(AT_LEAST_S, self._denied_for_s()))

    def _judge(self, answer: _Answer) -> Settlement:
        """Decide what follows, and what becomes of the token."""
        claim, outcome = self._out.pop(answer.claim.token), answer.outcome
        if not outcome.left:
            self._refunded.append(claim.token)
        elif outcome.kind is not OutcomeKind.UNKNOWN:
            self._returned[claim.token] = answer.at_s
        # An unknown one stays out until its loan ends: no answer came, so the deadline is what counts.
        time_left_s = self._.send_timeout_s - outcome.latency_s
        slowest = self._limits.slowest()
        decision = decide(
            outcome,
            claim,
            self._.retry,
            self._channel.capabilities,
            time_left_s=time_left_s,
            turn_s=slowest.period_s / slowest.count,
        )
        self._heed(decision)
        if outcome.left:
            metrics.send_latency.labels(self._channel.name).observe(outcome.latency_s)
            known_s = self._.latency_s.get(self._account.id, outcome.latency_s)
            self._.latency_s[self._account.id] = known_s + _SMOOTHING * (outcome.latency_s - known_s)
        return Settlement(
            claim=claim,
            outcome=outcome,
            decision=decision,
            channel=self._channel.name,
            probed=self._probing,
            rests=self._rest.times if self._rest else 0,
        )

    def _heed(self, decision: Decision) -> None:
        """What a decision means for this drain itself, before it is on record."""
        match decision:
            case Defer(DeferralReason.THROTTLED, _, cooldown_s):
                if cooldown_s:
                    self._cool_down(cooldown_s)
            case Defer(reason) if reason in RESTS or reason is DeferralReason.PAUSED:
                self._closed = True

    def _cool_down(self, for_s: float) -> None:
        try:
            for_s = self._.tokens.cool_down(self._account.budget, for_s)
        except TokensUnavailable:
            log.warning("cooldown_only_in_store", account_id=self._account.id)
        self._closed_until_s = max(self._closed_until_s, monotonic_s() + for_s)
        self._denied_until_s = max(self._denied_until_s, self._closed_until_s)

    def _time_is_up(self) -> bool:
        return self._report.claimed > 0 and monotonic_s() - self._began_s > DRAIN_FOR_S

    def _keep_place(self) -> None:
        """Renew the drain's place now and then; give it up when its time is up, for what is out needs none."""
        try:
            if self._placed and self._time_is_up():
                self._placed = False
                self._.wakeups.end_drain(self._account.id, self._id, next_s=0.0)
            elif self._placed and monotonic_s() - self._renewed_s > DRAIN_LEASE_S / 3:
                self._renewed_s = monotonic_s()
                self._.wakeups.renew_drain(self._account.id, self._id)
        except TokensUnavailable as error:
            log.warning("place_not_kept", account_id=self._account.id, error=str(error))

    def _next_s(self) -> float | None:
        """When the account has something to do again."""
        if self._.stopping.is_set():
            return 0.0  # somebody else goes on
        denied_s = self._denied_for_s()
        if self._claimable and denied_s > 0:
            return denied_s
        due_s = waiting.next_due_s(self._.db, self._account.id)
        return None if due_s is None else max(due_s, denied_s, SOON_S)
