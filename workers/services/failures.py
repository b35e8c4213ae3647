"""What an admin does with dead letters: send one again, send many again, close one by hand."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from ratelimit import Limits, Tokens
from workers.domain.actor import Actor
from workers.domain.errors import Conflict, NotFound
from workers.domain.events import Dismissed, Redriven, Resolved, Retried
from workers.domain.filters import FailureFilter, Scope
from workers.domain.message import rank
from workers.domain.state import State
from workers.services.estimate import Place, estimate
from workers.services.publish import Publisher
from workers.services.submit import check_times, look_at_all
from workers.store import backlog, failures, queries
from workers.store.queries import Failed
from workers.store.session import Database, Row
from workers.wakeups import Wakeups

BATCH = 500
"""Dead letters queued again in one transaction."""


@dataclass(frozen=True, slots=True)
class Redrive:
    """matched: dead letters that fit the filter. expired: those of them that were left out because their expiresAt has
    passed. queued: how many were queued again; 0 for a dry run. done_at: when the last of them will have gone; None if
    nobody can say."""

    matched: int
    expired: int
    queued: int
    done_at: datetime | None


@dataclass(frozen=True, slots=True)
class Failures:
    db: Database
    tokens: Tokens
    wakeups: Wakeups
    publisher: Publisher
    default_limits: Limits
    lease_s: float

    def retry(self, message_id: str, *, scope: Scope, by: Actor, expires_at: datetime | None = None) -> datetime:
        """Queue a failed message again, with its history kept. Returns when it was queued.

        expires_at: a new expiresAt, which a message needs whose own has passed. Raises NotFound (also outside the
        scope), InvalidMessage (the new expiresAt has passed as well) and Conflict (not failed, or expired).
        """
        row = self._message(message_id, scope)
        check_times(None, expires_at, datetime.now(UTC))
        queued_at = failures.retry(self.db, [message_id], by, expires_at=expires_at)
        if not queued_at:
            now = self._message(message_id, scope)
            if now["state"] == State.FAILED and now["expires_at"]:
                raise Conflict('Its expiresAt has passed; give it a new one: {"expiresAt": "…"}')
            raise Conflict(f"Only failed messages can be retried; this one is {self._status(now)}")
        self._publish(Retried, row, by)
        return queued_at[0]

    def redrive(
        self, wanted: FailureFilter, *, scope: Scope, by: Actor, include_unknown: bool = False, dry_run: bool = False
    ) -> Redrive:
        """Queue every failed message that matches again, behind fresh traffic of the same priority. Unknown outcomes
        only on request: sending one again may deliver it twice. Never those whose expiresAt has passed."""
        found = queries.failed(self.db, wanted, scope, include_unknown=include_unknown)
        matched, expired = sum(share.n for share in found), sum(share.expired for share in found)
        done_at = self._done_at(found)
        queued = 0
        if not dry_run:
            # None that fails meanwhile: it would be sent again and again for as long as this takes.
            last_id = max((share.last_id for share in found), default=0)
            queued = self._queue_again(wanted, scope, by, include_unknown=include_unknown, last_id=last_id)
            going = frozenset(share.account_id for share in found if share.going)
            redriven = Redriven(matched=matched, expired=expired, queued=queued, accounts=going, by=by.subject)
            self.publisher.publish([redriven])
        return Redrive(matched, expired, queued, done_at)

    def _queue_again(
        self, wanted: FailureFilter, scope: Scope, by: Actor, *, include_unknown: bool, last_id: int
    ) -> int:
        """Queue what matches, up to a dead letter, some at a time: there may be a million. Returns how many it were."""
        queued = after = 0
        while batch := queries.failed_ids(
            self.db, wanted, scope, include_unknown=include_unknown, after=after, up_to=last_id, limit=BATCH
        ):
            queued += len(failures.retry(self.db, [message_id for _, message_id in batch], by, redriven=True))
            after, _ = batch[-1]
        return queued

    def dismiss(self, message_id: str, reason: str, *, scope: Scope, by: Actor) -> None:
        """Close a failure of any kind unsent: the message is cancelled. Raises NotFound and Conflict (not failed)."""
        row = self._message(message_id, scope)
        if not failures.dismiss(self.db, message_id, reason, by):
            now = self._message(message_id, scope)
            raise Conflict(f"Only failed messages can be dismissed; this one is {self._status(now)}")
        self._publish(Dismissed, row, by)

    def resolve_as_sent(self, message_id: str, *, scope: Scope, by: Actor) -> None:
        """Close an `outcome_unknown` failure: somebody has seen that it did arrive. Raises NotFound and Conflict."""
        row = self._message(message_id, scope)
        if not failures.resolve_as_sent(self.db, message_id, by):
            words = "Only failures of reason outcome_unknown can be resolved by hand"
            raise Conflict(f"{words}; this message is {self._status(row)}")
        self._publish(Resolved, row, by)

    def _done_at(self, found: Iterable[Failed]) -> datetime | None:
        """When the last of these goes, account by account, once all that may be are queued again: behind whatever is
        more urgent, fresh messages of their own priority included."""
        shares = {share.account_id: share for share in found if share.going}
        standings = backlog.standings(self.db, dict.fromkeys(shares))
        asked = [(s.account, s.account.limits_in_force(self.default_limits)) for s in standings.values()]
        last = []
        for standing, (account, limits), (view, latency_s) in zip(
            standings.values(), asked, look_at_all(self.tokens, self.wakeups, asked), strict=True
        ):
            share = shares[account.id]
            lowest = rank(share.least or 1, redriven=True)
            place = Place(standing.ahead(lowest) + share.going, lowest)
            [promise] = estimate(standing, limits, view, [place], latency_s=latency_s, lease_s=self.lease_s)
            last.append(promise.at)
        return None if None in last else max((at for at in last if at), default=datetime.now(UTC))

    def _publish(self, kind: type[Retried] | type[Dismissed] | type[Resolved], row: Row, by: Actor) -> None:
        self.publisher.publish([kind(message_id=row["id"], account_id=row["account_id"], by=by.subject)])

    def _message(self, message_id: str, scope: Scope) -> Row:
        row = queries.message(self.db, message_id, scope)
        if row is None:
            raise NotFound(f"No message {message_id}")
        return row

    def _status(self, row: Row) -> str:
        return State(row["state"]).status
