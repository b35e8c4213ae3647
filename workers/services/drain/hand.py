"""The tokens of one drain, and when to ask for more.

Each call to Redis gives back the tokens of requests that have ended and borrows new ones. A token of an answered
request is returned: it is usable one period later. A token that was certainly not used is refunded: it is usable at
once. A token whose request got no answer stays out until its loan ends.
"""

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ratelimit import Grant, Limits, Origin, Tokens, TokensUnavailable
from ratelimit.tokens import NOWHERE, START_WITHIN_S
from workers.clock import monotonic_s
from workers.domain.errors import StoreUnavailable
from workers.services.epochs import explain_loss
from workers.store.accounts import Account
from workers.store.session import Database
from workers.telemetry import metrics
from workers.telemetry.logs import logger

ASK_AGAIN_S = 1.0
"""How long a drain asks for no tokens after Redis was unavailable, or was found to have lost some."""

log = logger(__name__)

_NOTHING = Grant((), 0.0)


@dataclass(slots=True)
class TokenHand:
    """Trades one drain's tokens with Redis.

    left_over: tokens that ended drains of this process could neither use nor take back; the next drain takes them back.
    unconfirmed: tokens of claims whose COMMIT got no answer. Each claim is taken back if it was committed.
    origin: where the tokens last borrowed come from.
    """

    tokens: Tokens
    db: Database
    account: Account
    limits: Limits
    lease_s: float
    left_over: deque[str]
    unconfirmed: list[str] = field(default_factory=list)
    origin: Origin = NOWHERE
    _borrowed_s: float = 0.0
    _returned: dict[str, float] = field(default_factory=dict)  # token -> when its answer came (monotonic s)
    _refunded: list[str] = field(default_factory=list)
    _denied_until_s: float = 0.0
    _closed_until_s: float = 0.0
    _lost_until_s: float = 0.0

    @property
    def start_by_s(self) -> float:
        """Until when (monotonic s) a request may begin with the tokens last borrowed."""
        return self._borrowed_s + START_WITHIN_S

    @property
    def gives_back(self) -> bool:
        """Whether the next call to Redis returns or refunds a token."""
        return bool(self._returned or self._refunded)

    @property
    def denied_for_s(self) -> float:
        """For how many seconds Redis has no token for this drain; 0: ask now. A denial that hung on a loan of this
        drain was a bound. If that loan is given back, it is worth asking again."""
        denied_until_s = 0.0 if self.gives_back else self._denied_until_s
        return max(0.0, max(denied_until_s, self._lost_until_s) - monotonic_s())

    def returns(self, token: str, at_s: float) -> None:
        """Return a token with the next call to Redis: its request was answered at `at_s` (monotonic s)."""
        self._returned[token] = at_s

    def refunds(self, tokens: Iterable[str]) -> None:
        """Refund tokens with the next call to Redis: certainly no request used them."""
        self._refunded += tokens

    def trade(self, want: int, *, out: bool) -> Grant:
        """Return and refund what is due, and borrow up to `want`. out: whether requests of the drain are out. Raises
        TokensUnavailable only if the drain has neither these nor tokens to return: then it may end."""
        if not (want or self.gives_back):
            return _NOTHING
        borrowed_s = monotonic_s()
        try:
            grant = self.tokens.exchange(
                self.account.budget,
                self.limits,
                want=want,
                lease_s=self.lease_s,
                returned={token: borrowed_s - at_s for token, at_s in self._returned.items()},
                refunded=self._refunded,
            )
        except TokensUnavailable:
            if not out and not self._returned:
                raise
            log.warning("tokens_unavailable", account_id=self.account.id)
            self._denied_until_s = monotonic_s() + ASK_AGAIN_S
            return _NOTHING
        gave_back = self.gives_back
        self._returned, self._refunded = {}, []
        if grant.overshoot:
            metrics.limit_overshoot.inc(grant.overshoot)
            log.error("limit_overshoot", account_id=self.account.id, uses=grant.overshoot)
        if grant.lost:
            self._report_loss()
        elif len(grant.tokens) < want:
            self._denied_until_s = monotonic_s() + grant.wait_s
        elif gave_back:  # what the denial hung on, perhaps
            self._denied_until_s = self._closed_until_s
        self.origin, self._borrowed_s = grant.origin, borrowed_s
        return grant

    def cool_down(self, for_s: float) -> None:
        """Close the account's budget for `for_s` seconds, in Redis if it answers, and for this drain in any case."""
        try:
            for_s = self.tokens.cool_down(self.account.budget, for_s)
        except TokensUnavailable:
            log.warning("cooldown_only_in_store", account_id=self.account.id)
        self._closed_until_s = max(self._closed_until_s, monotonic_s() + for_s)
        self._denied_until_s = max(self._denied_until_s, self._closed_until_s)

    def report_void(self) -> None:
        """PostgreSQL refused the tokens: another server gives them out by now, or this one has lost some that it gave
        out before. Tokens that are too old to be used prove neither, and are only given back."""
        if monotonic_s() < self.start_by_s:
            with suppress(TokensUnavailable):  # then the next drain to be refused says it
                self.tokens.distrust(self.origin)
            self._report_loss()

    def _report_loss(self) -> None:
        """Redis has lost tokens. The reconciler is told; until it has rebuilt them, this drain asks for no others."""
        log.warning("tokens_lost", account_id=self.account.id)
        self._lost_until_s = monotonic_s() + ASK_AGAIN_S
        try:
            self.tokens.report_loss()
            explain_loss(self.db, self.tokens)
        except (TokensUnavailable, StoreUnavailable) as error:  # then the next drain to be told reports it
            log.warning("loss_not_reported", error=str(error))

    def adopt_left_over(self) -> None:
        """Take charge of the tokens that ended drains of this process left unconfirmed."""
        with suppress(IndexError):  # until there are no more; other drains take some meanwhile
            while True:
                self.unconfirmed.append(self.left_over.pop())

    def leave_over(self) -> None:
        """Leave the unconfirmed tokens to the next drain of this process."""
        self.left_over.extend(self.unconfirmed)
