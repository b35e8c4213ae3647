"""Cancel a message that still waits."""

from workers.domain.actor import Actor
from workers.domain.errors import Conflict, NotFound
from workers.domain.state import State, Status
from workers.store import messages, queries
from workers.store.queries import Scope
from workers.store.session import Database
from workers.telemetry import logger, messages_processed
from workers.wakeups import Wakeups

log = logger(__name__)


def cancel(db: Database, wakeups: Wakeups, message_id: str, *, scope: Scope, by: Actor) -> None:
    """Raises NotFound (also outside the scope) and Conflict (being sent, or over)."""
    row = queries.message(db, message_id, scope)
    if row is None:
        raise NotFound(f"No message {message_id}")
    if not messages.cancel(db, message_id, by):
        status = State((queries.message(db, message_id, scope) or row)["state"]).status
        if status is Status.QUEUED:
            raise Conflict("It may have been sent already: its last attempt got no answer, and is being cleared up")
        raise Conflict(f"Only waiting messages can be cancelled; this one is {status}")
    messages_processed.labels("cancelled").inc()
    log.info("message_cancelled", message_id=message_id, account_id=row["account_id"], by=by.subject)
    wakeups.try_wake(row["account_id"])  # whoever stood behind it in line may go now
