"""Cancel what still waits: one message, or a whole batch."""

from collections import Counter
from dataclasses import dataclass

from workers.domain.actor import Actor
from workers.domain.errors import Conflict, NotFound
from workers.domain.events import BatchCancelled
from workers.domain.filters import Scope
from workers.domain.state import State, Status
from workers.services.publish import Publisher
from workers.store import batches, endings, queries
from workers.store.session import Database, Row

AT_ONCE = 500
"""Messages of a batch cancelled in one transaction."""


@dataclass(frozen=True, slots=True)
class Canceller:
    db: Database
    publisher: Publisher

    def cancel(self, message_id: str, *, scope: Scope, by: Actor) -> None:
        """Raises NotFound (also outside the scope) and Conflict (being sent, or over)."""
        row = queries.message(self.db, message_id, scope)
        if row is None:
            raise NotFound(f"No message {message_id}")
        cancelled = endings.cancel(self.db, message_id, by)
        if cancelled is None:
            raise Conflict(refusal("cancelled", queries.message(self.db, message_id, scope) or row))
        self.publisher.publish([cancelled])

    def cancel_batch(self, batch_id: str, *, scope: Scope, by: Actor) -> int:
        """Cancel every message of the batch that still waits. Returns how many did; those that are being sent, are
        over, or may have arrived are left alone. Raises NotFound (also outside the scope)."""
        ids = batches.waiting(self.db, batch_id, scope)
        if not ids and not batches.counts(self.db, batch_id, scope):
            raise NotFound(f"No batch {batch_id}")
        cancelled: Counter[str] = Counter()
        for start in range(0, len(ids), AT_ONCE):
            cancelled.update(batches.cancel_many(self.db, ids[start : start + AT_ONCE], batch_id, by))
        self.publisher.publish([BatchCancelled(batch_id=batch_id, cancelled=cancelled, by=by.subject)])
        return cancelled.total()


def refusal(done: str, row: Row) -> str:
    """Why a message cannot be cancelled or changed."""
    status = State(row["state"]).status
    if status is Status.QUEUED:
        return "It may have been sent already: its last attempt got no answer, and is being cleared up"
    return f"Only waiting messages can be {done}; this one is {status}"
