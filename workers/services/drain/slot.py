"""The slot of one drain among the drains of its account."""

from ratelimit import TokensUnavailable
from workers.clock import monotonic_s
from workers.telemetry.logs import logger
from workers.wakeups import DRAIN_LEASE_S, Wakeups

log = logger(__name__)


class DrainSlot:
    """A lease in Redis. If Redis is unavailable, the lease ends by itself."""

    def __init__(self, wakeups: Wakeups, account_id: str, drain_id: str) -> None:
        self._wakeups, self._account_id, self._drain_id = wakeups, account_id, drain_id
        self._taken = False
        self._renewed_s = 0.0

    def take(self, most: int, publication: int | None) -> bool:
        """Take one of the account's `most` slots. False: all are taken, or the publication is a stale copy."""
        self._taken = self._wakeups.begin_drain(self._account_id, self._drain_id, most, publication)
        self._renewed_s = monotonic_s()
        return self._taken

    def renew(self) -> None:
        """Renew the lease when a third of it is over."""
        if not self._taken or monotonic_s() - self._renewed_s <= DRAIN_LEASE_S / 3:
            return
        self._renewed_s = monotonic_s()
        try:
            self._wakeups.renew_drain(self._account_id, self._drain_id)
        except TokensUnavailable as error:
            log.warning("place_not_kept", account_id=self._account_id, error=str(error))

    def vacate(self) -> None:
        """Make room for another drain at once, while requests of this one are still out: they need no slot."""
        if not self._taken:
            return
        self._taken = False
        try:
            self._wakeups.end_drain(self._account_id, self._drain_id, next_s=0.0)
        except TokensUnavailable as error:
            log.warning("place_not_kept", account_id=self._account_id, error=str(error))

    def leave(self, next_s: float | None, latency_s: float | None) -> None:
        """Make room, and wake the account in `next_s` seconds. latency_s: of its requests, for the forecasts."""
        try:
            self._wakeups.end_drain(self._account_id, self._drain_id, next_s=next_s, latency_s=latency_s)
        except TokensUnavailable as error:
            log.warning("drain_left_without_redis", account_id=self._account_id, error=str(error))
