"""Events: one frozen fact per move, returned by the statement or use case that made the move.

An event only says what happened. Its consequences outside the database (counters, logs, wake-ups) follow after COMMIT,
in one place: `workers.services.publish`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from workers.domain.decisions import DeadLetterReason, DeferralReason
from workers.domain.lookup import Finding
from workers.domain.message import Claim
from workers.domain.outcome import Outcome
from workers.domain.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base class of events."""


# --- accepted -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Event):
    """wake_in_s: when its account can send, in seconds; None if the account is paused without an end."""

    message_id: str
    account_id: str
    channel: str
    state: str
    wake_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of a list that belongs to one account. wake_in_s: as in `Accepted`."""

    account_id: str
    channel: str
    count: int
    wake_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedTogether(Event):
    """A whole list of messages, with ids from `first_id` to `last_id`."""

    first_id: str
    last_id: str
    shares: tuple[Share, ...]


# --- attempts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    claim: Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Event):
    """waited_s: since it was accepted. estimate_error_s: how much later than estimated, negative for earlier. Both are
    None for a late answer, and where nothing was estimated."""

    claim: Claim
    outcome: Outcome
    waited_s: float | None = None
    estimate_error_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LateAnswer(Event):
    """The attempt arrived, as its late answer shows, while another attempt of the message is out."""

    claim: Claim
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved(Event):
    """The attempt ended without success, and the message is sent all the same: an earlier attempt arrived."""

    claim: Claim
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled(Event):
    claim: Claim
    outcome: Outcome
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred(Event):
    """delay_s: how long the line rests; cooldown_s: how long its identity is closed."""

    claim: Claim
    outcome: Outcome
    channel: str
    reason: DeferralReason
    delay_s: float = 0.0
    cooldown_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupBegun(Event):
    claim: Claim
    outcome: Outcome
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Buried(Event):
    claim: Claim
    outcome: Outcome
    reason: DeadLetterReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack(Event):
    """Claims undone whose COMMIT was never confirmed: nothing of them left."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale(Event):
    """A drain came to record an attempt that is not its own any more. Nothing moved."""

    message_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescued(Event):
    """A claim was taken over from a worker that died or hung."""

    claim: Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp(Event):
    """state: what the message is after lookup number `lookups`."""

    claim: Claim
    finding: Finding
    lookups: int
    state: State


# --- closed or changed by time or by people -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(Event):
    message_id: str
    account_id: str
    request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Event):
    message_id: str
    account_id: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCancelled(Event):
    """cancelled: how many messages of each account."""

    batch_id: str
    cancelled: Mapping[str, int]
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Amended(Event):
    """changed: the names of the fields that differ."""

    message_id: str
    account_id: str
    changed: tuple[str, ...]
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(Event):
    message_id: str
    account_id: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven(Event):
    """matched: dead letters that fitted the filter; expired: those left out; accounts: those of the ones queued."""

    matched: int
    expired: int
    queued: int
    accounts: frozenset[str]
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(Event):
    message_id: str
    account_id: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dismissed(Event):
    message_id: str
    account_id: str
    by: str


# --- accounts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountChanged(Event):
    account_id: str
    created: bool
    limits: str | None
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPaused(Event):
    """until: None for a pause without an end."""

    account_id: str
    reason: str
    by: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountResumed(Event):
    """together: the accounts on the same budget, which may send again with it."""

    account_id: str
    by: str
    together: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCoolingDown(Event):
    account_id: str
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountResting(Event):
    """An identity rests: its upstream is unavailable (`away`), or asks for credit (`credit`)."""

    account_id: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOpened(Event):
    """Its upstream serves it again."""

    account_id: str
