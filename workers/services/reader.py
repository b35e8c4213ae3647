"""What people ask: how things stand, and what became of a message."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ratelimit import Limits, Tokens, TokensUnavailable, View, forecast
from workers.clock import moment_in
from workers.domain.errors import NotFound, StoreUnavailable
from workers.domain.filters import AuditFilter, FailureFilter, MessageFilter, Scope
from workers.domain.health import Closed, Health, Refused, Trouble, account_troubles, health
from workers.domain.message import rank
from workers.domain.state import IN_FLIGHT, WAITING, State
from workers.domain.state import Status as MessageStatus
from workers.services.estimate import BlockedBy, Estimate, Place, estimate
from workers.services.submit import behind_its_line, look_at_all
from workers.store import accounts, audit, backlog, batches, epochs, queries
from workers.store.accounts import Account
from workers.store.backlog import Standing
from workers.store.session import Database, Row
from workers.telemetry.logs import logger
from workers.wakeups import EXPECTED_LATENCY_S, Wakeups

_WAIT = "messages are accepted, and wait until it is back"

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Of a message that has not gone yet."""

    position: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Dossier:
    """Everything about one message. attempts: those that count; deferrals: requests that did not count."""

    message: Row
    attempts: list[Row]
    deferrals: list[Row]
    dead_letters: list[Row]
    waiting: Waiting | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one name. done_at: when the last of those that wait goes; None if none waits, or if nobody can
    say."""

    id: str
    counts: dict[MessageStatus, int]
    done_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountStatus:
    """view: None while Redis is unavailable. latency_s: how long the account's upstream takes to answer. beside: how
    many messages wait on other accounts that draw on the same budget. last_due_s: seconds until the last of its own may
    go by its sendAt or its next try. What takes a forecast is worked out when it is asked for."""

    account: Account
    limits: Limits
    view: View | None
    latency_s: float
    counts: dict[State, int]
    beside: int = 0
    last_due_s: float = 0.0

    @property
    def closed(self) -> Closed | None:
        """Why it sends nothing; None if it may."""
        return self.account.closed(self.cooldown_s)

    @property
    def state(self) -> str:
        """active, paused or cooldown."""
        return self.closed.state if self.closed else "active"

    @property
    def reason(self) -> str | None:
        return self.closed.reason if self.closed else None

    @property
    def cooldown_s(self) -> float:
        return max(self.account.cooldown_s, self.view.cooldown_s if self.view else 0.0)

    @property
    def depth(self) -> int:
        return _depth(self.counts)

    @property
    def in_flight(self) -> int:
        return sum(self.counts.get(state, 0) for state in IN_FLIGHT)

    @property
    def dead_letters(self) -> int:
        return self.counts.get(State.FAILED, 0)

    @property
    def tokens_available(self) -> int | None:
        if self.view is None:
            return None
        return 0 if self.cooldown_s else self.view.available(self.limits)

    def next_token_at(self, now: datetime) -> datetime | None:
        if self.view is None:
            return None
        next_s = forecast(self.limits, self.view.uses, 1, latency_s=self.latency_s, not_before_s=self.cooldown_s)
        return moment_in(next_s, now)

    @property
    def done_s(self) -> float | None:
        """Seconds until its last waiting message goes; None if nobody can say."""
        held_s = max(self.account.paused_s, self.cooldown_s)
        if self.view is None or not self.depth or held_s == float("inf") or self.account.rest:
            return None
        last = self.depth + min(self.beside, self.depth)  # accounts that draw on the same budget take turns
        turn_s = forecast(self.limits, self.view.uses, last, latency_s=self.latency_s, not_before_s=held_s)
        return max(turn_s, self.last_due_s)


@dataclass(frozen=True, slots=True)
class Status:
    accounts: list[AccountStatus]
    limits: Limits
    last_processed_at: datetime | None
    troubles: list[Trouble] = field(default_factory=list)
    """What keeps messages from going out; empty if nothing does."""

    @property
    def health(self) -> tuple[Health, str]:
        """The state of the whole, and why."""
        return health(self.troubles)

    @property
    def depth(self) -> int:
        return sum(account.depth for account in self.accounts)

    @property
    def in_flight(self) -> int:
        return sum(account.in_flight for account in self.accounts)

    @property
    def dead_letters(self) -> int:
        return sum(account.dead_letters for account in self.accounts)

    @property
    def done_s(self) -> float:
        """Seconds until the last waiting message goes, of those of which it can be said."""
        return max((account.done_s or 0.0 for account in self.accounts), default=0.0)


@dataclass(frozen=True, slots=True)
class Reader:
    db: Database
    tokens: Tokens
    wakeups: Wakeups
    default_limits: Limits
    lease_s: float

    def message(self, message_id: str, scope: Scope) -> Dossier:
        """Raises NotFound, also outside the scope."""
        row = queries.message(self.db, message_id, scope)
        if row is None:
            raise NotFound(f"No message {message_id}")
        tried = queries.attempts(self.db, message_id)
        return Dossier(
            message=row,
            attempts=[attempt for attempt in tried if attempt["counted"]],
            deferrals=[attempt for attempt in tried if not attempt["counted"]],
            dead_letters=queries.dead_letters(self.db, message_id),
            waiting=self._prospects([row]).get(message_id),
        )

    def messages(
        self, wanted: MessageFilter, scope: Scope, limit: int
    ) -> tuple[list[tuple[Row, Waiting | None]], str | None]:
        """A page of messages, newest first, each with its prospects while it waits, and the cursor of the next page
        (None: there is none)."""
        rows = queries.messages(self.db, wanted, scope, limit + 1)
        page = rows[:limit]
        prospects = self._prospects(page)
        found = [(row, prospects.get(row["id"])) for row in page]
        return found, page[-1]["id"] if len(rows) > limit else None

    def batch(self, batch_id: str, scope: Scope) -> Batch:
        """Raises NotFound, also if nothing of it is within the scope."""
        counts = batches.counts(self.db, batch_id, scope)
        if not counts:
            raise NotFound(f"No batch {batch_id}")
        by_status = dict.fromkeys(MessageStatus, 0)
        for state, n in counts.items():
            by_status[state.status] += n
        last = self._prospects(batches.last_to_go(self.db, batch_id, scope)).values()
        ends = [waiting.estimate.at for waiting in last]
        return Batch(batch_id, by_status, None if None in ends else max((at for at in ends if at), default=None))

    def failures(
        self, wanted: FailureFilter, scope: Scope, limit: int, offset: int
    ) -> tuple[list[Row], int, int | None]:
        """A page of open dead letters, latest first, how many there are in all, and the cursor of the next page."""
        rows, total = queries.failures(self.db, wanted, scope, limit + 1, offset)
        page = rows[:limit]
        return page, total, page[-1]["letter_id"] if len(rows) > limit else None

    def audit(self, wanted: AuditFilter, scope: Scope, limit: int) -> tuple[list[Row], int | None]:
        """A page of the audit, latest first, and the cursor of the next one (None: there is none)."""
        rows = audit.entries(self.db, wanted, scope, limit + 1)
        page = rows[:limit]
        return page, page[-1]["id"] if len(rows) > limit else None

    def status(self, scope: Scope) -> Status:
        found = accounts.all_of(self.db, None if scope is None else list(scope))
        counts, last_due_s = queries.counts(self.db, scope), queries.last_due_s(self.db, scope)
        troubles: list[Trouble] = []
        ids = [account.id for account in found]
        views: list[View | None]
        try:
            views = list(self.tokens.views([(account.budget, self._limits(account)) for account in found]))
            latencies_s, last_s = self.wakeups.latencies_s(ids), self.wakeups.last_processed_s(ids)
            troubles += [
                Trouble(f"No {kind} is running: messages are accepted, and wait", stops_all=True)
                for kind in ("worker", "pacer")
                if not self.wakeups.alive(kind)
            ]
            if self.wakeups.broker_is_away():
                troubles.append(Trouble(f"Celery's broker is unavailable: {_WAIT}", stops_all=True))
        except TokensUnavailable:
            views, latencies_s, last_s = [None] * len(found), [EXPECTED_LATENCY_S] * len(found), None
            troubles.append(Trouble(f"Redis is unavailable: {_WAIT}", stops_all=True))
        troubles += account_troubles(
            # An upstream that nothing waits for is not probed, so nobody knows how it is.
            [(a.id, a.rest) for a in found if a.rest is not None and _depth(counts.get(a.id, {}))],
            [Refused(a.id, a.pause_reason or "", a.paused_since) for a in found if a.paused_by == "upstream"],
        )
        depths: Counter[str] = Counter()
        for account in found:
            depths[account.budget] += _depth(counts.get(account.id, {}))
        held = {self._limits(account) for account in found}
        return Status(
            [
                AccountStatus(
                    account=a,
                    limits=self._limits(a),
                    view=view,
                    latency_s=latency_s,
                    counts=counts.get(a.id, {}),
                    beside=depths[a.budget] - _depth(counts.get(a.id, {})),
                    last_due_s=last_due_s.get(a.id, 0.0),
                )
                for a, view, latency_s in zip(found, views, latencies_s, strict=True)
            ],
            held.pop() if len(held) == 1 else self.default_limits,
            None if last_s is None else datetime.fromtimestamp(last_s, UTC),
            troubles,
        )

    def oldest_ages_s(self) -> dict[str, float]:
        """For each account, for how many seconds its oldest due message has waited."""
        return queries.oldest_ages_s(self.db)

    def alive(self) -> dict[str, int] | None:
        """How many workers and pacers say that they live; None while Redis is away."""
        try:
            return {kind: self.wakeups.alive(kind) for kind in ("worker", "pacer")}
        except TokensUnavailable:
            return None

    def ready(self) -> list[str]:
        """What is missing for messages to be accepted and sent; empty if nothing is. Only the log names hosts."""
        missing = []
        epoch = None
        try:
            epoch = epochs.current(self.db)
        except StoreUnavailable as error:
            log.warning("not_ready", error=str(error))
            missing.append("database: does not answer")
        try:
            missing += [f"{kind}: none is alive" for kind in ("pacer", "worker") if not self.wakeups.alive(kind)]
            origin = self.tokens.origin()
            if epoch and epoch.server not in ("", origin.server):
                missing.append("redis: another server gives out the tokens")
            elif not origin.known or (epoch and epoch.name != origin.epoch):
                missing.append("tokens: being rebuilt")
        except TokensUnavailable as error:
            log.warning("not_ready", error=str(error))
            missing.append("redis: does not answer")
        return missing

    def _limits(self, account: Account) -> Limits:
        return account.limits_in_force(self.default_limits)

    def _prospects(self, rows: Sequence[Row]) -> dict[str, Waiting]:
        """Where those of these messages stand that wait, and when each will go, by its id. Takes as many questions for
        two hundred as for one."""
        waiting = [row for row in rows if State(row["state"]) in WAITING]
        if not waiting:
            return {}
        last_due_at = {row["account_id"]: row["due_at"] for row in sorted(waiting, key=lambda row: row["due_at"])}
        standings = backlog.standings(self.db, last_due_at)
        places = self._places(waiting, standings)
        asked = [(standing.account, self._limits(standing.account)) for standing in standings.values()]
        looks = look_at_all(self.tokens, self.wakeups, asked)
        found: dict[str, Waiting] = {}
        for standing, (account, limits), (view, latency_s) in zip(standings.values(), asked, looks, strict=True):
            own = {row["id"]: places[row["id"]] for row in waiting if row["account_id"] == account.id}
            promises = estimate(standing, limits, view, list(own.values()), latency_s=latency_s, lease_s=self.lease_s)
            found |= {
                message_id: Waiting(place.position, promise)
                for (message_id, place), promise in zip(own.items(), promises, strict=True)
            }
        return found

    def _places(self, waiting: Sequence[Row], standings: Mapping[str, Standing]) -> dict[str, Place]:
        lines = queries.lines_ahead(self.db, [row["id"] for row in waiting if row["state"] == State.HELD])
        heads = [line.head_id for line in lines.values() if line.redriven]
        ahead = queries.ahead_of(self.db, [*(row["id"] for row in waiting), *heads])
        places = {}
        for row in waiting:
            now = standings[row["account_id"]].at
            place = _place(row, ahead.get(row["id"], 0) + 1, now)
            if line := lines.get(row["id"]):
                place = behind_its_line(place, line, ahead.get(line.head_id, 0), now)
            places[row["id"]] = place
        return places


def _depth(counts: Mapping[State, int]) -> int:
    return sum(counts.get(state, 0) for state in WAITING)


def _place(row: Row, position: int, now: datetime) -> Place:
    """Where a waiting message stands."""
    due_s = max(0.0, (row["due_at"] - now).total_seconds())
    own = rank(row["priority"], redriven=row["redriven"])
    return Place(position, own, State(row["state"]), due_s, _put_off_by(row))


def _put_off_by(row: Row) -> BlockedBy:
    """What a waiting message waits for until its due time."""
    if row["line_rests"]:
        return BlockedBy.COOLDOWN
    return BlockedBy.RETRY if row["tries"] else BlockedBy.SCHEDULE
