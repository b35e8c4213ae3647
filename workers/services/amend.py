"""Change a message that still waits: its words, its times, its priority."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from workers.domain import events
from workers.domain.actor import Actor
from workers.domain.errors import Conflict, InvalidMessage, NotFound
from workers.domain.filters import Scope
from workers.services.cancel import refusal
from workers.services.publish import Publisher
from workers.services.submit import check_times
from workers.store import amend as store
from workers.store import queries
from workers.store.amend import Amended
from workers.store.session import Database, Row

FIELDS = ("content", "priority", "send_at", "expires_at")


@dataclass(frozen=True, slots=True)
class Amender:
    db: Database
    publisher: Publisher

    def amend(self, message_id: str, patch: Mapping[str, Any], *, scope: Scope, by: Actor) -> None:
        """Give a waiting message these fields; those that are not named stay (RFC 7396).

        Raises NotFound (also outside the scope), InvalidMessage (it would contradict itself) and Conflict (being sent,
        over, or perhaps sent already). Nothing is changed then.
        """
        row = queries.message(self.db, message_id, scope)
        if row is None:
            raise NotFound(f"No message {message_id}")
        now = datetime.now(UTC)
        new = store.amend(self.db, message_id, lambda found: _amended(found, patch, now), by)
        if new is None:
            raise Conflict(refusal("changed", queries.message(self.db, message_id, scope) or row))
        if new.changed:
            amended = events.Amended(
                message_id=message_id, account_id=row["account_id"], changed=new.changed, by=by.subject
            )
            self.publisher.publish([amended])


def _amended(row: Row, patch: Mapping[str, Any], now: datetime) -> Amended:
    """What a message becomes. Its times are looked at only where the patch names one: what was right on acceptance may
    have passed since."""
    new = {name: patch.get(name, row[name]) for name in FIELDS}
    if not new["content"] and not row["media_ids"]:
        raise InvalidMessage({"content": ["Must not be empty without mediaIds."]})
    if new["content"] != row["content"] and row["may_have_arrived"]:  # and its idempotency key stands for these words
        raise Conflict("Its words may have been sent already: an earlier attempt got no answer")
    if "send_at" in patch:
        check_times(new["send_at"], new["expires_at"], now)
    elif "expires_at" in patch:
        still_to_come = new["send_at"] if new["send_at"] and new["send_at"] > now else None
        check_times(still_to_come, new["expires_at"], now)
    return Amended(**new, changed=tuple(name for name in FIELDS if new[name] != row[name]))
