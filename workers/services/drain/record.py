"""The COMMIT of each turn of the loop: it records what has ended, and claims what comes next."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from workers.domain.errors import StoreUnavailable
from workers.domain.message import Claim
from workers.services.drain.hand import TokenHand
from workers.services.settle import Settled, Settlement, settle
from workers.store.claims import claim_next, take_back
from workers.store.session import Connection, Database
from workers.telemetry.logs import logger

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One drain's record in PostgreSQL. worker: who claims, for `lease_s` seconds."""

    db: Database
    hand: TokenHand
    worker: int
    lease_s: float

    def turn(
        self, finished: list[Settlement], tokens: tuple[str, ...], *, probe: bool, out: bool
    ) -> tuple[Settled, list[Claim]]:
        """Record `finished`, and claim a message for each token as far as there are any. Tokens without a message are
        refunded.

        out: whether requests of the drain are out. Raises StoreUnavailable only if there are none, and nothing to
        record: then the drain may end."""
        self.hand.adopt_left_over()
        if not (finished or tokens or self.hand.unconfirmed):
            return Settled(), []

        def work(c: Connection) -> tuple[Settled, list[Claim] | None]:
            taken_back = take_back(c, self.hand.unconfirmed, self.worker)
            settled = settle(c, finished)
            if taken_back.count:
                settled.events.append(taken_back)
            claims = claim_next(
                c,
                self.hand.account.id,
                tokens,
                self.worker,
                self.lease_s,
                origin=self.hand.origin,
                budget=self.hand.account.budget,
                probe=probe,
            )
            return settled, claims

        try:
            settled, claims = self._insist(work, tokens, must=bool(finished), out=out)
        except BaseException:
            self.hand.refunds(tokens)
            raise
        if claims is None:  # the tokens are void, and go back as unused
            self.hand.report_void()
        used = {claim.token for claim in claims or ()}
        self.hand.refunds(token for token in tokens if token not in used)
        return settled, claims or []

    def _insist(
        self,
        work: Callable[[Connection], tuple[Settled, list[Claim] | None]],
        tokens: tuple[str, ...],
        *,
        must: bool,
        out: bool,
    ) -> tuple[Settled, list[Claim] | None]:
        """What was sent must be recorded: keep trying while this process lives. What it could not record in the end is
        found by the reconciler as an attempt without an outcome."""
        pause_s = 0.05
        while True:
            try:
                only_claims = not (must or self.hand.unconfirmed)
                done = self.db.single(work) if only_claims else self.db.transaction(work)
                self.hand.unconfirmed = []
                return done
            except StoreUnavailable as error:
                # The COMMIT may have gone through without an answer: its claims are taken back next time.
                self.hand.unconfirmed += tokens
                if not must and not out:
                    self.hand.leave_over()
                    raise
                if not must:  # nothing to record yet, but what is out must not be abandoned
                    log.warning("claim_put_off", account_id=self.hand.account.id, error=str(error))
                    return Settled(), []
                log.warning("record_delayed", account_id=self.hand.account.id, error=str(error))
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 1.0)
