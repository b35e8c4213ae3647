"""What an admin does with dead letters."""

from dataclasses import dataclass
from datetime import UTC, datetime

from ratelimit import TokensUnavailable
from workers.domain.errors import Conflict, NotFound
from workers.domain.state import State
from workers.store import failures, queries
from workers.store.queries import Scope
from workers.store.session import Database
from workers.telemetry import logger
from workers.wakeups import Wakeups

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Failures:
    db: Database
    wakeups: Wakeups

    def retry(self, message_id: str, *, scope: Scope, by: str) -> datetime:
        """Queue a failed message again, with its history kept. Returns when it was queued.

        Raises NotFound (also outside the scope) and Conflict (not failed).
        """
        row = queries.message(self.db, message_id, scope)
        if row is None:
            raise NotFound(f"No message {message_id}")
        if not failures.retry(self.db, [message_id], by):
            status = State(row["state"]).status
            raise Conflict(f"Only failed messages can be retried; this one is {status}")
        log.info("message_retried", message_id=message_id, account_id=row["account_id"], by=by)
        try:
            self.wakeups.wake(row["account_id"])
        except TokensUnavailable as error:  # the reconciler wakes it
            log.warning("wake_lost", account_id=row["account_id"], error=str(error))
        return datetime.now(UTC)
