"""What puts things right after a fault: each function finds what is out of order and mends it, guarded so that several
may run at once.

    notice      processes that are gone: others' drains take their places
    rescue      claims whose worker died or hangs: their outcome is unknown
    rebuild     tokens that Redis lost, from the books, before any is given out again
    verify      unknown outcomes, in the upstream's history
    expire      waiting messages past their expiresAt
    wake        accounts whose wake-up is missing or late
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ratelimit import Limits, Tokens, Use
from ratelimit.tokens import START_WITHIN_S, View
from workers.channels.base import Channel, Sender
from workers.clock import monotonic_s
from workers.credentials import Vault
from workers.domain.decisions import (
    ConfirmSent,
    GiveUp,
    LookAgain,
    LookupDecision,
    RetryPolicy,
    SendAgain,
    decide,
    decide_lookup,
)
from workers.domain.errors import StaleClaim, UnknownKind, Unreadable
from workers.domain.events import LookedUp, Rescued, Stale
from workers.domain.lookup import Evidence, Finding, History, compare
from workers.domain.outcome import Outcome, OutcomeKind
from workers.domain.state import State
from workers.services.publish import Publisher
from workers.services.settle import Settlement, settle
from workers.store import accounts, budgets, endings, lookups, queries, upkeep, waiting
from workers.store.epochs import Epoch
from workers.store.glance import LOCK_CLASS, Glance, glance, living
from workers.store.session import Connection, Database
from workers.telemetry.logs import logger
from workers.wakeups import Wakeups

GRACE_S = 1.0
"""A claim is taken over this long after its deadline, so that a drain just recording it is not disturbed."""
DEAD_FOR_S = 0.8
"""A worker counts as dead once its lock has been missing this long: a living one whose connection was cut notices at
once, and takes it again."""
BACK_FOR_S, DEAD_WHEN_BACK_S = 5.0, 2.0
"""While PostgreSQL has been up for less than the first, or everybody lost their locks less than that ago (it failed
over to another server), a lock must have been missing for the second: clients wait for a server that has just begun."""
SURE_FOR_S = 900.0
"""An account without a token is looked at again after this long at the latest: who slept past the end of a loan may
still refund it."""
LOOKUP_TIMEOUT_S = 10.0
LOOKUP_WIDTH = 8
"""Lookups that one worker process has out at once, over all accounts."""
LOOK_FOR_MORE_S = 0.5
"""How often it looks for lookups that have become due while others are out."""

log = logger(__name__)


@dataclass(slots=True)
class Rescuer:
    """Takes over claims whose worker is gone. Keeps in mind since when each worker has been missing."""

    db: Database
    wakeups: Wakeups
    publisher: Publisher
    channels: Mapping[str, Channel]
    retry: RetryPolicy
    missing_since_s: dict[int, float] = field(default_factory=dict)
    all_lost_s: float = -math.inf
    """When nobody held a lock, last."""
    back_for_s: float = BACK_FOR_S

    def rescue(self, seen: Glance | None = None) -> int:
        """Settle every orphan as an unknown outcome. Returns how many. What has just been seen is not asked again."""
        now = monotonic_s()
        seen = seen or glance(self.db)
        if not seen.living:  # at least the pacer that this runs in should be there
            self.all_lost_s = now
        orphans = upkeep.find_orphans(self.db, grace_s=GRACE_S, lock_class=LOCK_CLASS) if seen.under_way else []
        missing = {orphan.worker: now - orphan.server_up_s for orphan in orphans}
        self.missing_since_s = {
            worker: max(self.missing_since_s.get(worker, now), since) for worker, since in missing.items()
        }
        rescued = 0
        for orphan in orphans:
            overdue = orphan.time_left_s < -GRACE_S
            calm_s = min(orphan.server_up_s, now - self.all_lost_s)
            patience_s = DEAD_FOR_S if calm_s >= self.back_for_s else DEAD_WHEN_BACK_S
            if not overdue and now - self.missing_since_s[orphan.worker] < patience_s:
                continue
            try:
                rescued += self._settle(orphan, "hung" if overdue else "died")
            except UnknownKind as error:  # a pacer that has the kind rescues it
                log.error("channel_kind_unknown", account_id=orphan.claim.account_id, error=str(error))
        return rescued

    def _settle(self, orphan: upkeep.Orphan, what: str) -> int:
        account = accounts.get(self.db, orphan.claim.account_id)
        assert account is not None, "messages refer to accounts"
        channel = self.channels[account.channel]
        outcome = Outcome(OutcomeKind.UNKNOWN, error=f"the worker {what} before it could record the outcome")
        decision = decide(outcome, orphan.claim, self.retry, channel.capabilities, time_left_s=orphan.time_left_s)
        settlement = Settlement(claim=orphan.claim, outcome=outcome, decision=decision, channel=account.channel)
        events = self.db.transaction(lambda c: settle(c, [settlement])).events
        if any(isinstance(event, Stale) for event in events):
            self.publisher.publish(events)
            return 0
        try:
            if what == "died":
                self.wakeups.evict([orphan.claim.account_id], [orphan.worker])
        finally:  # it has happened, whatever became of Redis
            self.publisher.publish([*events, Rescued(claim=orphan.claim)])
        return 1


@dataclass(slots=True)
class Departures:
    """Notices that a worker or a pacer is gone, by its lock, and makes room for others at once: the places of its
    drains are cleared, and what it had taken from the broker may be published again. To take a living one for gone, as
    after a restart of PostgreSQL, costs a look or two: its drains go on."""

    db: Database
    wakeups: Wakeups
    present: frozenset[int] = frozenset()

    def notice(self, present: frozenset[int] | None = None) -> int:
        """Returns how many have gone since the last look; asks who is here if it is not told."""
        if present is None:
            present = living(self.db)
        gone = self.present - present
        if gone:
            self.wakeups.evict(waiting.accounts_waiting(self.db), gone)
            self.wakeups.publish_again()
            log.info("processes_gone", processes=sorted(gone))
        self.present = present  # not before: should Redis be away, they are noticed again
        return len(gone)


def rebuild_tokens(
    db: Database, tokens: Tokens, epoch: Epoch, default_limits: Limits, pause: Callable[[float], bool | None]
) -> int:
    """If Redis lost its data, or a new epoch has been opened: bring back the uses of every budget from the attempts on
    record, with one query, and only then open the budgets' gates again. Returns how many it opened.

    epoch: the present one, which this server has entered (`services.epochs`). pause(seconds) waits between marking the
    gates and reading the books; see `ratelimit.tokens.START_WITHIN_S`. It returns True if it was cut short.
    """
    if not tokens.lost():
        return 0
    limits = {account.budget: account.limits_in_force(default_limits) for account in accounts.all_of(db)}
    nonces = tokens.begin_rebuild(limits, epoch.name)
    opened = 0
    if nonces:
        if pause(START_WITHIN_S):
            return 0  # stopped before the wait was over: the gates stay closed for whoever comes next
        longest_s = max(limits[budget].longest_period_s for budget in nonces)
        uses = _uses(db, nonces, longest_s)
        cooldowns: defaultdict[str, float] = defaultdict(float)
        for account in accounts.all_of(db):
            cooldowns[account.budget] = max(cooldowns[account.budget], account.cooldown_s)
        opened = tokens.finish_rebuild(
            (budget, nonce, limits[budget], cooldowns[budget], uses[budget]) for budget, nonce in nonces.items()
        )
        log.warning("tokens_rebuilt", budgets=opened, uses=sum(map(len, uses.values())))
    tokens.declare_known(epoch.name)
    return opened


def _uses(db: Database, lost: Collection[str], longest_s: float) -> Mapping[str, list[Use]]:
    """The uses of these budgets in the last `longest_s` seconds, by the books. A budget takes over the uses of another
    that was drawn on under its credential until then."""
    counts_in: defaultdict[str, list[budgets.Source]] = defaultdict(list)
    for source in budgets.sources(db, lost):
        counts_in[source.budget].append(source)
    found: defaultdict[str, list[Use]] = defaultdict(list)
    for row in budgets.token_uses(db, longest_s):
        use = Use(row["token"], row["ended_s"])
        found[row["budget"]].append(use)
        for source in counts_in[row["budget"]]:
            if row["started_ago_s"] > source.left_ago_s - START_WITHIN_S:  # it may have been borrowed just before
                found[source.counts_in].append(use)
    return found


def expire(db: Database, publisher: Publisher) -> int:
    """Close what is past its expiresAt; whoever stood behind it in line may go now. Returns how many."""
    expired = endings.expire(db)
    publisher.publish(expired)
    return len(expired)


@dataclass(slots=True)
class Overlooked:
    """Accounts that have a message due and a token free, and sleep on. There should be none.

    The reconciler finds a missing wake-up by name. Only this class finds one that exists and is too late, since only
    the tokens tell that. It runs every 30 s.

    Keeps in mind which accounts have no token, and until when: a use that is over keeps its token for the rest of the
    period, so there is no point in looking before that. Loans still out may end at any time.
    """

    db: Database
    tokens: Tokens
    wakeups: Wakeups
    default_limits: Limits
    spent: dict[str, tuple[Limits, float]] = field(default_factory=dict)
    """Account -> its limits, and until when (monotonic s) it has no token under them."""

    def wake(self) -> int:
        """Returns how many it woke."""
        now = monotonic_s()
        found = accounts.in_line(self.db)
        in_line = {account.id: account.limits_in_force(self.default_limits) for account in found}
        self.spent = {
            id_: (limits, until_s)
            for id_, (limits, until_s) in self.spent.items()
            if until_s > now and in_line.get(id_) == limits
        }
        possible = [account for account in found if account.id not in self.spent]
        free = []
        views = self.tokens.views([(account.budget, in_line[account.id]) for account in possible])
        for id_, view in zip([account.id for account in possible], views, strict=True):
            limits = in_line[id_]
            if not view.available(limits):
                self.spent[id_] = limits, now + min(_spent_for_s(view, limits), SURE_FOR_S)
            elif view.known and not view.cooldown_s:
                free.append(id_)
        overlooked = queries.oldest_ages_s(self.db, free) if free else {}
        for id_ in overlooked:
            self.wakeups.wake(id_)
        return len(overlooked)


def _spent_for_s(view: View, limits: Limits) -> float:
    """For how long (s) no token can come back, even if every loan that is out were given back unused."""
    over = [end for end in view.uses if end <= 0]
    return max((over[-limit.count] + limit.period_s for limit in limits if len(over) >= limit.count), default=0.0)


def verify(
    db: Database,
    publisher: Publisher,
    channels: Mapping[str, Channel],
    vault: Vault,
    retry: RetryPolicy,
    stopping: threading.Event,
) -> int:
    """Look up the unknown outcomes that are due, up to `LOOKUP_WIDTH` at once and one per account. Spends no token.
    Returns how many it settled."""
    verifier = _Verifier(db, publisher, channels, vault, retry)
    verified = 0
    with ThreadPoolExecutor(LOOKUP_WIDTH, thread_name_prefix="lookup") as pool:
        out: dict[Future[int], str] = {}
        while True:
            while len(out) < LOOKUP_WIDTH and not stopping.is_set():
                lookup = lookups.claim_lookup(db, 2 * LOOKUP_TIMEOUT_S, busy=out.values())
                if lookup is None:
                    break
                out[pool.submit(verifier.look_up, lookup)] = lookup.claim.account_id
            if not out:
                return verified
            ended, _ = wait(out, timeout=LOOK_FOR_MORE_S, return_when=FIRST_COMPLETED)
            for future in ended:
                del out[future]
                verified += future.result()


@dataclass(frozen=True, slots=True)
class _Verifier:
    """One lookup at a time, for whichever thread asks."""

    db: Database
    publisher: Publisher
    channels: Mapping[str, Channel]
    vault: Vault
    retry: RetryPolicy

    def look_up(self, lookup: lookups.Lookup) -> int:
        """Ask the upstream, and record what follows. Returns 1, or 0 if nothing came of it."""
        claim = lookup.claim
        account = accounts.get(self.db, claim.account_id)
        assert account is not None, "messages refer to accounts"
        try:
            channel = self.channels[account.channel]
            credentials = self.vault.credentials(account.sealed_key)
        except (UnknownKind, Unreadable) as error:
            # The lookup is due again when its lease is over: for a worker that has the kind and the key.
            event = "channel_kind_unknown" if isinstance(error, UnknownKind) else "credentials_unreadable"
            log.error(event, account_id=account.id, error=str(error))
            return 0
        finding = self._ask(channel, Sender(credentials, account.settings), lookup)
        try:
            decision = self.db.transaction(lambda c: self._record(c, lookup, finding))
        except StaleClaim:
            self.publisher.publish([Stale(message_id=claim.message_id, attempt=claim.attempt)])
            return 0
        state = _STATE_AFTER[type(decision)]
        self.publisher.publish([LookedUp(claim=claim, finding=finding, lookups=lookup.lookups, state=state)])
        return 1

    def _ask(self, channel: Channel, sender: Sender, lookup: lookups.Lookup) -> Finding:
        """Channels do not raise; should one all the same, its message must not be looked up for ever."""
        chat_id = lookup.claim.recipient_id
        try:
            history = channel.history(chat_id, sender, since_s=lookup.since_s, timeout_s=LOOKUP_TIMEOUT_S)
        except Exception as error:
            log.exception("lookup_broke", message_id=lookup.claim.message_id)
            history = History(error=type(error).__name__)
        return compare(history, lookup.claim, lookup.known_ids)

    def _record(self, c: Connection, lookup: lookups.Lookup, finding: Finding) -> LookupDecision:
        claim = lookup.claim
        lookups.lock_chat(c, claim)
        found = finding.evidence is Evidence.FOUND
        is_anothers = found and lookups.is_anothers(c, claim, finding.upstream_id)
        decision = decide_lookup(finding, claim, lookup.lookups, self.retry, is_anothers=is_anothers)
        match decision:
            case ConfirmSent(upstream_id):
                lookups.confirm_sent(c, claim, upstream_id)
            case SendAgain():
                lookups.confirm_absent(c, claim)
            case LookAgain(delay_s, counted):
                lookups.look_again(c, claim, delay_s, counted=counted)
            case GiveUp(reason, error):
                lookups.bury_unverified(c, claim, reason, error)
        return decision


_STATE_AFTER = {
    ConfirmSent: State.SENT,
    SendAgain: State.QUEUED,
    LookAgain: State.VERIFYING,
    GiveUp: State.FAILED,
}
