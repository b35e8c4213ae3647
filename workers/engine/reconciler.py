"""Repeats from PostgreSQL what Redis has forgotten, and takes up what died on its way.

One runs beside every pacer. Each step is guarded by the state it expects, so several at once do no harm; each fails by
itself, so that one that cannot run now does not keep the others from running.
"""

import random
import threading
from collections.abc import Callable, Mapping

from ratelimit import TokensUnavailable
from workers.bootstrap import Adapters
from workers.clock import monotonic_s
from workers.domain.errors import StoreUnavailable
from workers.services.epochs import Keeper
from workers.services.recovery import DEAD_FOR_S, Departures, Overlooked, expire, rebuild_tokens
from workers.store import accounts, audit, epochs, lines, upkeep, waiting
from workers.store.glance import Glance, glance
from workers.telemetry.logs import logger

PERIOD_S = 1.0
LOOK_S = 0.2
"""How often it looks meanwhile whether everybody is still there: one question to PostgreSQL."""
HURRY_FOR_S = 2 * DEAD_FOR_S
BY_NAME_EVERY = 10
"""Rounds, at most, between two comparisons of all accounts that wait with all wake-ups."""
CHORES_S = 30.0
PRUNED_AT_ONCE = 500
DAY_S = 86_400.0
VERIFY_EVERY_S = 1.0
"""However many pacers there are, one lookup task is published this often."""

log = logger(__name__)


class Reconciler:
    """verify: has the unknown outcomes looked up by some worker. pruned_at_once: rows that a round deletes at most."""

    def __init__(self, adapters: Adapters, verify: Callable[[], object], pruned_at_once: int = PRUNED_AT_ONCE) -> None:
        self._pruned_at_once = pruned_at_once
        self._a = adapters
        self._verify = verify
        self._rescuer = adapters.rescuer()
        self._keeper = Keeper(adapters.db, adapters.tokens)
        self._departures = Departures(adapters.db, adapters.wakeups)
        self._overlooked = Overlooked(adapters.db, adapters.tokens, adapters.wakeups, adapters.settings.rate_limit)
        self._seen: Glance | None = None
        self._stopping = threading.Event()
        self._chores_s = self._hurry_until_s = 0.0
        self._skipped = 0
        self._in_order_at: int | None = None
        self._more_to_prune = False

    def tick(self) -> Mapping[str, int]:
        """One round. Returns what it found to do."""
        a = self._a
        steps: dict[str, Callable[[], int]] = {
            "gone": self._look,
            "tokens_rebuilt": self._rebuild,
            "rescued": lambda: self._rescuer.rescue(self._seen),
            "expired": self._expire,
            "woken": self._wake_forgotten,
            "verifying": self._have_verified,
        }
        if monotonic_s() - self._chores_s > CHORES_S:
            self._chores_s = monotonic_s()
            self._more_to_prune = True
            steps["overlooked"] = self._overlooked.wake
            steps["lines_mended"] = lambda: lines.mend_headless_lines(a.db)
            steps["tallies_folded"] = lambda: upkeep.fold_tallies(a.db)
        if self._more_to_prune:
            steps["pruned"] = self._prune
        return {name: self._try(name, step) for name, step in steps.items()}

    def run(self) -> None:
        """Tick until `stop`, with some jitter so that several do not march in step."""
        while not self._stopping.is_set():
            found = {name: n for name, n in self.tick().items() if n}
            if found:
                log.info("reconciled", **found)
            self._rest(PERIOD_S * random.uniform(0.8, 1.2))  # noqa: S311

    def stop(self) -> None:
        self._stopping.set()

    def _rest(self, for_s: float) -> None:
        """Until the next round; less if a process is gone, and for a while after that: what it left behind is to be
        taken up once it is certain that it does not come back."""
        until_s = monotonic_s() + for_s
        while not self._stopping.wait(LOOK_S) and monotonic_s() < until_s:
            if self._somebody_is_gone():
                self._hurry_until_s = monotonic_s() + HURRY_FOR_S
            if monotonic_s() < self._hurry_until_s:
                return

    def _somebody_is_gone(self) -> bool:
        """Says nothing of what goes wrong, and goes on: the next round asks again, and says it."""
        try:
            return self._note_gone() > 0
        except Exception:
            return False

    def _wake_forgotten(self) -> int:
        """Wake the accounts that wait with neither a wake-up nor a drain. Returns how many.

        The accounts are compared by name. That takes 3 to 7 ms of CPU for 1,000 accounts, and an idle stack takes 12 ms
        a second in all. So a round skips the comparison if nobody has written to PostgreSQL since all was in order.
        A task can be lost without a write, so every tenth round compares all the same. If the broker is unavailable,
        the pacer loses tasks every second, so every round compares. To compare counts first would save a third of the
        time, and would miss an account whenever another has one wake-up too many.
        """
        a = self._a
        written = self._seen.written if self._seen else None
        self._skipped += 1
        in_order = written is not None and written == self._in_order_at
        if in_order and self._skipped < BY_NAME_EVERY and not a.wakeups.broker_is_away():
            return 0
        self._skipped = 0
        woken = a.wakeups.wake_all(waiting.accounts_waiting(a.db))
        self._in_order_at = None if woken else written
        return woken

    def _rebuild(self) -> int:
        a, pause = self._a, self._stopping.wait
        seen = self._seen.epoch if self._seen else epochs.current(a.db)
        epoch = self._keeper.hold(seen, pause)
        if epoch is None:
            return 0
        if epoch.server != seen.server:
            a.wakeups.forget(waiting.accounts_waiting(a.db))
        rebuilt = rebuild_tokens(a.db, a.tokens, epoch, a.settings.rate_limit, pause)
        if rebuilt or epoch.number != seen.number:
            self._in_order_at = None
            self._seen = None  # that took a while
        return rebuilt

    def _prune(self) -> int:
        """A small batch a round, so that nothing else waits for it, until there is no more; again with the next chores.
        Attempts are also the books of the tokens: none goes before the period of its limit is over."""
        a, settings = self._a, self._a.settings
        limits = accounts.limits_in_use(a.db) | {settings.rate_limit}
        keep_s = max(settings.retention_days * DAY_S, max(limit.longest_period_s for limit in limits) + DAY_S)
        pruned = upkeep.prune(a.db, keep_s, self._pruned_at_once)
        forgotten = audit.prune(a.db, settings.audit_retention_days * DAY_S, self._pruned_at_once)
        self._more_to_prune = self._pruned_at_once in (pruned, forgotten)
        return pruned + forgotten

    def _look(self) -> int:
        """One question for most steps of a round: where it says that there is nothing to do, they ask no more. Should
        it get no answer, each asks for itself."""
        self._seen = None
        self._seen = glance(self._a.db)
        return self._note_gone(self._seen.living)

    def _note_gone(self, present: frozenset[int] | None = None) -> int:
        gone = self._departures.notice(present)
        if gone:
            self._in_order_at = None  # whatever they had in hand is forgotten
        return gone

    def _expire(self) -> int:
        if self._seen and not self._seen.past_expiry:
            return 0
        return expire(self._a.db, self._a.publisher)

    def _have_verified(self) -> int:
        if (self._seen and not self._seen.lookups_due) or not self._a.wakeups.alive("worker"):
            return 0
        if not self._a.wakeups.may_verify(VERIFY_EVERY_S):
            return 0
        self._verify()
        return 1

    def _try(self, name: str, step: Callable[[], int]) -> int:
        try:
            return step()
        except (StoreUnavailable, TokensUnavailable) as error:
            log.warning("reconciler_step_failed", step=name, error=str(error))
        except Exception:
            log.exception("reconciler_step_broke", step=name)
        return 0
