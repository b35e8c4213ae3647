"""Accept a message: find its place, insert, COMMIT, wake the account. What is answered 202 is on disk by then."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

from ulid import ULID

from ratelimit import Limits, Tokens, TokensUnavailable, View
from workers.domain import events
from workers.domain.actor import Actor
from workers.domain.errors import InvalidMessage, KeyReused, NotFound, QueueFull
from workers.domain.message import NewMessage
from workers.domain.state import State
from workers.services.bulk import Share, first_id, ids_like, latest, line_up, shares
from workers.services.estimate import BlockedBy, Estimate, Place, estimate
from workers.services.publish import Publisher
from workers.store import accept, backlog, queries
from workers.store.accept import Accepted
from workers.store.accounts import Account
from workers.store.backlog import LineAhead, Standing
from workers.store.session import Database
from workers.telemetry.logs import logger
from workers.wakeups import EXPECTED_LATENCY_S, Wakeups

log = logger(__name__)

SEND_AT_PAST = timedelta(hours=1)
"""A sendAt that is past by no more than this means now: clocks differ, and requests take their time."""
_NEVER = datetime.max.replace(tzinfo=UTC)
RETRY_UNKNOWN_S = 300.0
"""How soon to try again where nobody can say when a full queue has room."""


class Receipt(NamedTuple):
    """What the caller is told. position: 1 for next to go. replayed: this idempotency key had been used already; then
    position, estimate and what blocks it are not the message's, which stands elsewhere by now, but a new one's."""

    message_id: str
    account_id: str
    queued_at: datetime
    position: int | None
    estimated_at: datetime | None
    blocked_by: BlockedBy | None
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkReceipt:
    """One receipt for each message, in the order of the list. done_at: when the last of them will have gone; None if
    nobody can say. replayed: this idempotency key had been used already; positions and estimates, which would not be
    these messages', are None then."""

    receipts: list[Receipt]
    done_at: datetime | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Submitter:
    """Accepts messages. Needs PostgreSQL; Redis only for the estimate and the wake-up."""

    db: Database
    tokens: Tokens
    wakeups: Wakeups
    publisher: Publisher
    default_limits: Limits
    lease_s: float
    max_queue_depth: int

    def submit(
        self,
        wanted: dict[str, Any],
        account_id: str,
        *,
        by: Actor,
        key: str | None = None,
        fingerprint: str = "",
    ) -> Receipt:
        """Queue a message for an account.

        wanted: the fields of `NewMessage` but its id and account. by, key, fingerprint: who asks, under which
        idempotency key, and a hash of what was asked. Raises NotFound, InvalidMessage, QueueFull, KeyReused,
        StoreUnavailable; nothing is queued then.
        """
        message = NewMessage(id=f"msg_{ULID()}", account_id=account_id, **wanted)
        standing = backlog.standing(self.db, message.line, message.send_at)
        if standing is None:
            raise NotFound(f"No account {account_id}")
        place, after = self._place(message, standing)
        [[promise]] = self._estimate([(after, [place])])
        with self._unless_accepted_before(by, key):
            check_times(message.send_at, message.expires_at, standing.at)
            self._check_room(standing, 1)
        accepted = accept.accept(self.db, message, by=by, estimated_at=promise.at, key=key, fingerprint=fingerprint)
        if accepted.replayed:
            check_reuse(accepted, fingerprint)
        else:
            event = events.Accepted(
                message_id=message.id,
                account_id=account_id,
                channel=standing.account.channel,
                state=accepted.state,
                wake_in_s=_wake_in_s(standing.account, promise, place.due_s),
            )
            self.publisher.publish([event])
        return Receipt(
            message_id=accepted.message_id,
            account_id=account_id,
            queued_at=accepted.queued_at,
            position=place.position,
            estimated_at=promise.at and max(promise.at, accepted.queued_at),
            blocked_by=_behind_another(promise) if accepted.state == State.HELD else promise.blocked_by,
            replayed=accepted.replayed,
        )

    def submit_many(
        self, wanted: Sequence[dict[str, Any]], *, by: Actor, key: str | None = None, fingerprint: str = ""
    ) -> BulkReceipt:
        """Queue all of these messages, or none.

        wanted: the fields of `NewMessage` but its id, priority among them; each is given its id and its estimate here.
        by, key, fingerprint: as for `submit`. Raises what `submit` does; NotFound and InvalidMessage say in `details`
        which messages they mean. One line in the log and one entry per account in the audit stand for all: their ids
        run from the first to the last.
        """
        standings = backlog.standings(self.db, latest(wanted))
        by_account = shares(wanted, standings)
        places, after = line_up(wanted, standings)
        with self._unless_accepted_before(by, key):
            check_all_times(wanted, by_account[0].standing.at)
            for share in by_account:
                self._check_room(share.standing, len(share.numbers))
        promises = self._promises(by_account, after, places)
        ids = ids_like(first_id(), len(wanted))
        last = max(range(len(wanted)), key=lambda n: (promises[n].at or _NEVER, places[n].position))
        for id_, message, promise in zip(ids, wanted, promises, strict=True):
            message.update(id=id_, estimated_at=promise.at)
        accepted = accept.accept_many(self.db, wanted, by=by, last_to_go=ids[last], key=key, fingerprint=fingerprint)
        if first_use := accepted.first_use:
            check_reuse(first_use, fingerprint)
            return _replay(first_use, wanted)
        self.publisher.publish([_accepted_together(ids, by_account, places, promises)])
        queued_at = accepted.queued_at.astimezone(UTC)  # as the estimates are: between zones a comparison takes long
        receipts = [
            Receipt(
                id_,
                m["account_id"],
                queued_at,
                place.position,
                promise.at and max(promise.at, queued_at),
                _behind_another(promise) if id_ in accepted.held else promise.blocked_by,
            )
            for id_, m, place, promise in zip(ids, wanted, places, promises, strict=True)
        ]
        return BulkReceipt(receipts=receipts, done_at=_done_at(receipts))

    def _place(self, message: NewMessage, standing: Standing) -> tuple[Place, Standing]:
        """Where a new message will stand, and the account once it does."""
        wanted = {
            "account_id": message.account_id,
            "recipient_id": message.recipient_id,
            "priority": message.priority,
            "send_at": message.send_at,
        }
        [place], after = line_up([wanted], {message.account_id: standing})
        line = standing.line
        if line is not None and not place.waits:
            ahead = queries.ahead_of(self.db, [line.head_id]) if line.redriven else {}
            place = behind_its_line(place, line, ahead.get(line.head_id, 0), standing.at)
        return place, after[message.account_id]

    def _promises(
        self, by_account: Sequence[Share], after: Mapping[str, Standing], places: Sequence[Place]
    ) -> list[Estimate]:
        """An estimate for each place of a list."""
        found = self._estimate(
            [(after[share.standing.account.id], [places[n] for n in share.numbers]) for share in by_account]
        )
        shared_out = (
            zip(share.numbers, promised, strict=True) for share, promised in zip(by_account, found, strict=True)
        )
        promises = dict(chain.from_iterable(shared_out))
        return [promises[n] for n in range(len(places))]

    @contextmanager
    def _unless_accepted_before(self, by: Actor, key: str | None) -> Iterator[None]:
        """What has been accepted once is answered again, also when it would not be accepted now."""
        try:
            yield
        except (InvalidMessage, QueueFull):
            if not (key and accept.key_used(self.db, by.subject, key)):
                raise

    def _check_room(self, standing: Standing, more: int) -> None:
        """Raises QueueFull if the account may not have so many more messages waiting, with how long it takes until
        enough have gone; InvalidMessage if they would not fit into an empty queue."""
        account, depth, most = standing.account, standing.depth, self.max_queue_depth
        excess = depth + more - most
        if excess <= 0:
            return
        if more > most:
            words = f"{more} messages are for account {account.id}, which may have {most} waiting (MAX_QUEUE_DEPTH)."
            raise InvalidMessage({"messages": [f"{words} Send at most {most} at once."]})
        [[gone]] = self._estimate([(standing, [Place(max(1, min(excess, depth)), 0, State.SCHEDULED)])])
        if gone.at is None:
            raise QueueFull(account.id, depth, most, RETRY_UNKNOWN_S, more=more, why=_no_forecast(account, gone))
        raise QueueFull(account.id, depth, most, max(1.0, (gone.at - standing.at).total_seconds()), more=more)

    def _estimate(self, wanted: Sequence[tuple[Standing, Sequence[Place]]]) -> list[list[Estimate]]:
        """For places on each of some accounts, from one look at all their tokens."""
        asked = [(standing.account, standing.account.limits_in_force(self.default_limits)) for standing, _ in wanted]
        return [
            estimate(standing, limits, view, places, latency_s=latency_s, lease_s=self.lease_s)
            for (standing, places), (_, limits), (view, latency_s) in zip(
                wanted, asked, look_at_all(self.tokens, self.wakeups, asked), strict=True
            )
        ]


def _no_forecast(account: Account, gone: Estimate) -> str:
    """Why nobody can say when a message of the account will go."""
    match gone.blocked_by:
        case BlockedBy.PAUSED:
            reason = f" ({account.pause_reason})" if account.pause_reason else ""
            return f"It is paused{reason}: there will be no room before somebody resumes it or cancels messages"
        case BlockedBy.UPSTREAM:
            return "Its upstream is unavailable: there will be no room before that answers again"
    return "Nobody can say when there will be room: its tokens are unknown at the moment"


def _accepted_together(
    ids: Sequence[str], by_account: Sequence[Share], places: Sequence[Place], promises: Sequence[Estimate]
) -> events.AcceptedTogether:
    shares = []
    for share in by_account:
        account = share.standing.account
        due_s = min(places[n].due_s for n in share.numbers)
        wake_in_s = _wake_in_s(account, promises[share.numbers[0]], due_s)
        count = len(share.numbers)
        shares.append(events.Share(account_id=account.id, channel=account.channel, count=count, wake_in_s=wake_in_s))
    return events.AcceptedTogether(first_id=ids[0], last_id=ids[-1], shares=tuple(shares))


def _wake_in_s(account: Account, promise: Estimate, due_s: float) -> float | None:
    """When the account can send, not now: one without tokens is not drained for every message that comes in. None if it
    is paused without an end. Should the wake-up be lost, the reconciler repeats it."""
    return None if account.paused_s == float("inf") else max(promise.next_token_s, due_s, 0.0)


def behind_its_line(place: Place, line: LineAhead, ahead_of_head: int, now: datetime) -> Place:
    """The place of a message that others to the same recipient go before, one at a time. A fresh one behind a redriven
    one goes when that does."""
    position = place.position
    if line.redriven and place.rank % 2:  # its own is a fresh one's
        position = max(position, ahead_of_head - line.fresh + 1 + line.held + 1)
    due_s = max(0.0, (line.due_at - now).total_seconds())
    return place._replace(position=position, in_its_line=line.held + 1, line_due_s=due_s)


def look_at_all(
    tokens: Tokens, wakeups: Wakeups, wanted: Sequence[tuple[Account, Limits]]
) -> list[tuple[View | None, float]]:
    """Each account's tokens and its upstream's latency, in as few round trips as of one; no tokens while Redis is
    away."""
    try:
        views = tokens.views([(account.budget, limits) for account, limits in wanted])
        return list(zip(views, wakeups.latencies_s([account.id for account, _ in wanted]), strict=True))
    except TokensUnavailable as error:
        log.warning("tokens_unavailable", accounts=len(wanted), error=str(error))
        return [(None, EXPECTED_LATENCY_S)] * len(wanted)


def check_times(send_at: datetime | None, expires_at: datetime | None, now: datetime) -> None:
    """Raises InvalidMessage for times that cannot be meant: a sendAt long past is another year or another offset; with
    an expiresAt that is past or not after sendAt the message could never be sent."""
    if send_at is not None and send_at < now - SEND_AT_PAST:
        words = "Is more than an hour past. Leave it out to send at once, or check the year and the offset."
        raise InvalidMessage({"sendAt": [words]})
    if expires_at is None:
        return
    if expires_at <= now:
        raise InvalidMessage({"expiresAt": ["Is in the past; leave it out or choose a later time."]})
    if send_at is not None and expires_at <= send_at:
        raise InvalidMessage({"expiresAt": ["Must be after sendAt."]})


def check_all_times(wanted: Iterable[Mapping[str, Any]], now: datetime) -> None:
    """The same of many; what is wrong with each, by its place in the list."""
    wrong = {}
    for n, message in enumerate(wanted):
        try:
            check_times(message.get("send_at"), message.get("expires_at"), now)
        except InvalidMessage as error:
            wrong[str(n)] = error.details
    if wrong:
        raise InvalidMessage({"messages": wrong})


def check_reuse(first_use: Accepted, fingerprint: str) -> None:
    if first_use.fingerprint != fingerprint:
        raise KeyReused("This Idempotency-Key was used before with another body; use a new key for a new message")


def _behind_another(promise: Estimate) -> BlockedBy:
    """What blocks a held message; the estimate did not know yet that it would be one."""
    return BlockedBy.ORDERING if promise.blocked_by in (None, BlockedBy.RATE) else promise.blocked_by


def _done_at(receipts: Iterable[Receipt]) -> datetime | None:
    times = [receipt.estimated_at for receipt in receipts]
    return None if None in times else max(time for time in times if time)


def _replay(first_use: Accepted, wanted: Sequence[Mapping[str, Any]]) -> BulkReceipt:
    """What can be said again of messages queued before: their ids, and when that was."""
    receipts = [
        Receipt(
            message_id=id_,
            account_id=m["account_id"],
            queued_at=first_use.queued_at,
            position=None,
            estimated_at=None,
            blocked_by=None,
            replayed=True,
        )
        for id_, m in zip(ids_like(first_use.message_id, len(wanted)), wanted, strict=True)
    ]
    return BulkReceipt(receipts=receipts, done_at=None, replayed=True)
