"""The pacer: a Celery beat scheduler that has no schedule. It sleeps until the next account is due, then publishes its
drain.

Celery's own scheduler keeps a heap of periodic tasks in memory. Ours keeps none: what is due stands in Redis
(`workers.wakeups`), so any number of pacers may run, and one that dies takes nothing with it.
"""

from contextlib import suppress
from typing import Any

from celery.beat import Scheduler
from kombu.exceptions import BatchPublishError, OperationalError

from ratelimit import TokensUnavailable
from workers.clock import monotonic_s
from workers.telemetry import metrics
from workers.telemetry.logs import logger
from workers.telemetry.pulse import pulse
from workers.wakeups import PUBLICATION, Due, Nudges, Wakeups

AT_ONCE = 500
LONGEST_SLEEP_S = 1.0
"""So that a request to stop is heard, and a nudge made good that came while the connection was being made anew."""

log = logger(__name__)


class Pacer(Scheduler):
    """One tick: take what is due, publish it, sleep until there is more."""

    _asked_s = float("-inf")
    _listening = False
    _nudges: Nudges | None = None

    def setup_schedule(self) -> None:
        """No periodic tasks."""

    def tick(self, *_: Any, **__: Any) -> float:
        """Returns how long Celery should sleep besides: not at all, unless something is out of reach."""
        wakeups = self.app.process.adapters.wakeups
        nudges = self._nudges = self._nudges or wakeups.listen()
        pulse.beat()
        try:
            if not self._anybody_listens(wakeups):
                return LONGEST_SLEEP_S
            due = wakeups.take_due(AT_ONCE)
            metrics.pacer_lag.set(due.late_s)
            if due.accounts:
                self._publish(due)
            if len(due.accounts) < AT_ONCE:
                nudges.wait(min(LONGEST_SLEEP_S, LONGEST_SLEEP_S if due.next_s is None else due.next_s))
        except TokensUnavailable as error:
            log.warning("pacer_without_redis", error=str(error))
            return LONGEST_SLEEP_S
        except (OperationalError, BatchPublishError, ConnectionError) as error:
            self._do_without_broker(wakeups, error)
            return LONGEST_SLEEP_S
        return 0.0

    def _publish(self, due: Due) -> None:
        """A drain for each, to Redis in one round trip: the last of five hundred must not be late by as many.

        Not with Celery's `expires`, which a worker compares with its own wall clock: one that is ahead would discard
        every drain. `Wakeups.begin_drain` recognises stale copies by the publication's number.
        """
        drain = self.app.tasks["paceline.drain"]
        headers = {PUBLICATION: due.publication}
        with self.producer.batch(max_size=AT_ONCE):
            for account_id in due.accounts:
                drain.apply_async((account_id,), producer=self.producer, headers=headers)

    def _ensure_connected(self) -> Any:
        """Ask each of the broker's hosts once: the next tick asks again. Celery's own would stay here until one
        answers, ask ever more rarely, and hear no request to stop."""
        hosts = len(self.connection.alt or ())
        return self.connection.ensure_connection(max_retries=max(0, hosts - 1), interval_start=0)

    def _do_without_broker(self, wakeups: Wakeups, error: Exception) -> None:
        """What was taken and not published is woken again by the reconciler."""
        log.warning("pacer_without_broker", error=str(error.__cause__ or error))
        self.close()
        with suppress(TokensUnavailable):  # more often than not they are the same Redis
            wakeups.note_broker_away()

    def _anybody_listens(self, wakeups: Wakeups) -> bool:
        """Whether there is a worker. Without one nothing is published: it would only pile up in the broker. What is due
        stays where it is."""
        if monotonic_s() - self._asked_s > LONGEST_SLEEP_S:
            self._asked_s, self._listening = monotonic_s(), wakeups.alive("worker") > 0
        return self._listening
