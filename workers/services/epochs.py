"""Sees to it that one Redis server at a time gives out tokens, and that it remembers all that it gave out.

A reconciler compares the server that it talks to with the epoch in PostgreSQL, every second:

    the epoch's, all there     note how many grants there have been; send away whoever asks to take over
    the epoch's, data lost     open a new epoch
    another one                ask to take over; if nobody who talks to the epoch's server objects, open a new epoch

Under a new epoch every key's tokens are rebuilt from the attempts on record (`recovery.rebuild_tokens`). Until then the
server gives out none, and what any other server gave out is void (`claims.claim_next`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from ratelimit import Origin, Tokens
from ratelimit.tokens import START_WITHIN_S
from workers.clock import monotonic_s
from workers.store import epochs
from workers.store.epochs import Epoch
from workers.store.session import Database
from workers.telemetry.logs import logger

OBJECT_WITHIN_S = 1.5
"""Whoever talks to the epoch's server looks this often, at least, whether another one asks to take over."""
ASK_EVERY_S = 10.0
"""How often a server asks again to take over, after others objected."""
NOTE_EVERY_S = 1.5 * START_WITHIN_S
"""What had been given out one round ago is noted: no grant as old as that may be claimed any more."""
REMEDY = (
    "Another Redis server gives out the tokens, so what talks to this one sends nothing. If that lasts, REDIS_URL "
    "differs between processes on this database, or its name leads to two servers: have it name one everywhere"
)

log = logger(__name__)


@dataclass(slots=True)
class Keeper:
    """A reconciler's part in it. Remembers what it saw last, to notice what goes back."""

    db: Database
    tokens: Tokens
    number: int = -1
    """Of the epoch that it last held."""
    given: int = 0
    """Grants on its server, when this looked last."""
    noted: int = 0
    noted_s: float = 0.0
    """The same, some time ago."""
    asked_s: float = float("-inf")
    clock: Callable[[], float] = monotonic_s

    def hold(self, seen: Epoch, pause: Callable[[float], bool | None]) -> Epoch | None:
        """Have this process's server give out the tokens, if it may. Returns the epoch that its data is filled under.
        None if the epoch is another server's, or the pause was cut short. seen: the epoch as it was just read."""
        origin = self.tokens.origin()
        if not origin.server:
            return None  # a replica
        if seen.server != origin.server:
            opened = self._take_over(seen, origin.server, pause)
        elif self._lost(seen, origin):
            opened = epochs.open_next(self.db, seen, origin.server)
        else:
            if seen.rival:
                epochs.defend(self.db, seen)
                log.error("redis_contested", server=seen.server, rival=seen.rival, remedy=REMEDY)
            opened = seen
        if opened is None:
            return None
        if opened.number != seen.number:
            log.warning("epoch_opened", epoch=opened.number, server=opened.server, before=seen.server)
        if origin.epoch != opened.name and not self.tokens.enter_epoch(opened.name, opened.server, opened.given):
            return None  # the address leads to yet another server by now
        self._note(opened, origin)
        return opened

    def _lost(self, seen: Epoch, origin: Origin) -> bool:
        """Whether the epoch's server has lost what it had. One that was not filled yet has lost nothing: another
        reconciler has just opened this epoch, and both fill it."""
        if origin.epoch != seen.name:
            return self.number == seen.number
        return origin.void or origin.given < max(seen.given, self.given if self.number == seen.number else 0)

    def _take_over(self, seen: Epoch, server: str, pause: Callable[[float], bool | None]) -> Epoch | None:
        if not seen.server:
            return epochs.open_next(self.db, seen, server)
        if self.clock() - self.asked_s < ASK_EVERY_S:
            return None
        asked = epochs.contest(self.db, seen, server)
        if asked is None or pause(OBJECT_WITHIN_S):
            return None
        if opened := epochs.open_next(self.db, asked, server):
            return opened
        now = epochs.current(self.db)
        if now.server == server:
            return now  # another reconciler that talks to this server was quicker
        if now.number == asked.number and now.rival is None:
            self.asked_s = self.clock()
            log.error("redis_not_the_epochs", server=server, epochs=now.server, since=str(now.since), remedy=REMEDY)
        return None

    def _note(self, held: Epoch, origin: Origin) -> None:
        now = self.clock()
        if self.number != held.number or origin.epoch != held.name:
            self.number, self.given, self.noted, self.noted_s = held.number, held.given, held.given, now
            return
        self.given = origin.given
        if now - self.noted_s > NOTE_EVERY_S:
            if self.noted > held.given:
                epochs.note_given(self.db, held, self.noted)
            self.noted, self.noted_s = self.given, now


def begin_epoch(db: Database, tokens: Tokens) -> Epoch:
    """Open an epoch on this server though another may have one. It vouches that no token is out: for new data."""
    origin = tokens.origin()
    opened = epochs.open_next(db, epochs.current(db), origin.server)
    assert opened is not None, "nobody else is here yet"
    tokens.enter_epoch(opened.name, opened.server, opened.given)
    tokens.declare_known(opened.name)
    return opened


def explain_loss(db: Database, tokens: Tokens) -> None:
    """Say why this server gives out no tokens, if another one does."""
    present, origin = epochs.current(db), tokens.origin()
    if present.server and present.server != origin.server:  # for some seconds after a failover, or for good
        log.warning(
            "redis_not_the_epochs",
            server=origin.server,
            epochs=present.server,
            since=str(present.since),
            remedy=REMEDY,
        )
