"""The tables. Migrations under `migrations/` create them; a test holds the two to each other."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from workers.domain.decisions import DeadLetterReason
from workers.domain.outcome import OutcomeKind
from workers.domain.state import HEADS, TALLIED, State


def _one_of(column: str, values: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), str: Text, dict[str, Any]: JSONB}


class Account(Base):
    """A sending identity upstream, owner of limits."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("id ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}$'", name="id_plain"),
        CheckConstraint("paused_by IN ('admin', 'upstream')", name="paused_by"),
        Index("ix_accounts_budget", "budget", postgresql_where=text("budget IS NOT NULL")),
        CheckConstraint("(rest_kind IS NULL) = (rest_until IS NULL)", name="rest"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    channel: Mapped[str] = mapped_column(server_default="onlyfans")
    display_name: Mapped[str | None]
    limits: Mapped[str | None]
    """As written, e.g. `10/minute`; RATE_LIMIT if null."""
    api_key: Mapped[str | None]
    """The account's own key upstream, encrypted (`workers.credentials`); the channel's if null."""
    paused_at: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    """Null with paused_at set: until someone resumes it."""
    pause_reason: Mapped[str | None]
    paused_by: Mapped[str | None]
    """`admin` or `upstream`; null if a version before this column paused it."""
    cooldown_until: Mapped[datetime | None]
    """Kept here too so that a cooldown survives the loss of Redis."""
    rest_kind: Mapped[str | None]
    """`away` or `credit` while the identity rests and is probed; else null."""
    rest_error: Mapped[str | None]
    rest_since: Mapped[datetime | None]
    rest_until: Mapped[datetime | None]
    """When it may be probed next. In the future also while a probe is out."""
    rests: Mapped[int] = mapped_column(Integer, server_default="0")
    """Rests in a row so far."""
    refused: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """Recipients refused in a row of whom it is not certain that they are to blame."""
    refused_at: Mapped[datetime | None]
    """The last of these refusals."""
    key_since: Mapped[datetime | None]
    """When it was given another key of its own, or lost it; null if never."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    budget: Mapped[str | None]
    """The key of the tokens that the account draws on; the account's id if null. Accounts under one credential name
    the same budget."""
    credential: Mapped[str | None]
    """A fingerprint of the key that the account sends with (`workers.credentials`); null until one was taken."""
    settings: Mapped[dict[str, Any]] = mapped_column(server_default="{}")


class CredentialBudget(Base):
    """A budget that accounts drew on under a credential. After a change of budget, the uses of the old one are found
    here: the upstream counts them by the credential still."""

    __tablename__ = "credential_budgets"

    credential: Mapped[str] = mapped_column(primary_key=True)
    budget: Mapped[str] = mapped_column(primary_key=True)
    left_at: Mapped[datetime | None]
    """When the last account left it; null while one draws on it."""


class Message(Base):
    __tablename__ = "messages"
    __table_args__ = (
        CheckConstraint(_one_of("state", State), name="state"),
        CheckConstraint("priority BETWEEN 1 AND 10", name="priority"),
        CheckConstraint("(state = 'sent') = (sent_at IS NOT NULL)", name="sent_has_time"),
        CheckConstraint(
            f"({_one_of('state', ('sent', 'failed', 'cancelled', 'expired'))}) = (ended_at IS NOT NULL)",
            name="over_has_end",
        ),
        # The claim walks this index: one account, one priority, fresh ones before redriven ones, oldest due first.
        Index(
            "ix_messages_claim", "account_id", text("priority DESC"), "redriven", "due_at", "seq",
            postgresql_where=text("state = 'queued'"),
        ),
        # One head per line: to one recipient one message of a priority at a time, whoever writes.
        Index(
            "uq_messages_head", "account_id", "recipient_id", "priority",
            unique=True, postgresql_where=text(_one_of("state", HEADS)),
        ),
        Index(
            "ix_messages_held", "account_id", "recipient_id", "priority", "due_at", "seq",
            postgresql_where=text("state = 'held'"),
        ),
        Index("ix_messages_scheduled", "account_id", "due_at", postgresql_where=text("state = 'scheduled'")),
        Index("ix_messages_verifying", "due_at", postgresql_where=text("state = 'verifying'")),
        Index(
            "ix_messages_expires", "expires_at",
            postgresql_where=text("expires_at IS NOT NULL AND state IN ('scheduled', 'held', 'queued')"),
        ),
        Index("ix_messages_account", "account_id", text("id DESC")),
        Index("ix_messages_recipient", "recipient_id", text("id DESC")),
        Index("ix_messages_batch", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
        {"postgresql_with": {"fillfactor": "70"}},
    )  # fmt: skip

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    """The order of acceptance, by the database; ids are time-ordered, but by each API process's clock."""
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    recipient_id: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[str]
    content: Mapped[str]
    media_ids: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    message_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)
    batch_id: Mapped[str | None]
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime]
    """Not before this: sendAt, the next retry, or the next lookup while `verifying`."""
    send_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    estimated_at: Mapped[datetime | None]
    """The estimate given on acceptance, kept to measure its error."""
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Attempts so far; the number of the latest."""
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    """Attempts since it was queued, or queued again by an admin: what MAX_ATTEMPTS limits."""
    redriven: Mapped[bool] = mapped_column(Boolean, server_default="false")
    """Queued again with many others after a failure: goes behind fresh ones of its priority."""
    lookups: Mapped[int] = mapped_column(Integer, server_default="0")
    """Lookups of the present unknown outcome so far."""
    refusals: Mapped[int] = mapped_column(Integer, server_default="0")
    """Answered refusals so far; each used up an idempotency key (`domain.message.Claim.key`)."""
    throttles: Mapped[int] = mapped_column(Integer, server_default="0")
    """429s in a row."""
    throttled_at: Mapped[datetime | None]
    """The last of them."""
    upstream_id: Mapped[str | None]
    """What the upstream calls it. On a message that is not sent: an earlier attempt is proved to have arrived."""
    sent_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    request_id: Mapped[str | None]
    """The request that queued it last: what its logs are found by."""
    traceparent: Mapped[str | None]
    """The span of that request (W3C Trace Context), if it was traced."""


class Attempt(Base):
    """A request that may have left; committed before it does. `counted` is false for deferrals."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint(f"outcome IS NULL OR {_one_of('outcome', OutcomeKind)}", name="outcome"),
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended_has_outcome"),
        Index("uq_attempts_number", "message_id", "number", unique=True, postgresql_where=text("counted")),
        Index("uq_attempts_open", "message_id", unique=True, postgresql_where=text("outcome IS NULL")),
        Index("ix_attempts_message", "message_id", "id"),
        # Read only to rebuild the tokens after a loss, by time; a BRIN costs next to nothing to keep.
        Index("ix_attempts_started", "started_at", postgresql_using="brin"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    message_id: Mapped[str] = mapped_column(Text(collation="C"), ForeignKey("messages.id", ondelete="CASCADE"))
    account_id: Mapped[str]
    number: Mapped[int]
    token: Mapped[str]
    worker: Mapped[int]
    """The claiming process, as `workers.engine.presence` numbers it."""
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deadline_at: Mapped[datetime]
    """The end of the token's loan: nothing leaves later."""
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    counted: Mapped[bool] = mapped_column(Boolean, server_default="true")
    spent: Mapped[bool] = mapped_column(Boolean, server_default="true")
    """False if the token was refunded: certainly nothing left."""
    deferral: Mapped[str | None]
    """Why it was not counted."""
    http_status: Mapped[int | None]
    latency_ms: Mapped[int | None]
    error: Mapped[str | None]
    budget: Mapped[str | None]
    """The budget that the token came from; null: the one that has the account's id, as most have."""


class DeadLetter(Base):
    """A message given up, until an admin retries or resolves it. Closed ones stay as history."""

    __tablename__ = "dead_letters"
    __table_args__ = (
        CheckConstraint(_one_of("reason", DeadLetterReason), name="reason"),
        CheckConstraint("closed_as IS NULL OR closed_as IN ('retried', 'sent', 'dismissed')", name="closed_as"),
        CheckConstraint("(closed_at IS NULL) = (closed_as IS NULL)", name="closed"),
        # All of a message's, closed ones too: to show them, and to let them go with it.
        Index("ix_dead_letters_message", "message_id", "id"),
        Index("uq_dead_letters_open", "message_id", unique=True, postgresql_where=text("closed_at IS NULL")),
        Index(
            "ix_dead_letters_account",
            "account_id",
            text("id DESC"),
            postgresql_where=text("closed_at IS NULL"),
        ),
        # The same for a caller who may know of all accounts.
        Index("ix_dead_letters_open", text("id DESC"), postgresql_where=text("closed_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    message_id: Mapped[str] = mapped_column(Text(collation="C"), ForeignKey("messages.id", ondelete="CASCADE"))
    account_id: Mapped[str]
    reason: Mapped[str]
    error: Mapped[str | None]
    http_status: Mapped[int | None]
    failed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]
    closed_as: Mapped[str | None]
    closed_by: Mapped[str | None]


class IdempotencyKey(Base):
    """The first use of a caller's Idempotency-Key, and what it queued."""

    __tablename__ = "idempotency_keys"

    subject: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    """Hash of the body, to tell a repeat from a reuse."""
    message_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("messages.id", ondelete="CASCADE"), index=True
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AuditEntry(Base):
    """Who did what, when, from which request; append-only. It refers to nothing, for it outlives what it tells of."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_account", "account_id", text("id DESC")),
        Index("ix_audit_message", "message_id", postgresql_where=text("message_id IS NOT NULL")),
        Index("ix_audit_at", "at", postgresql_using="brin"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    subject: Mapped[str]
    role: Mapped[str]
    request_id: Mapped[str | None]
    action: Mapped[str]
    account_id: Mapped[str]
    message_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    details: Mapped[dict[str, Any] | None]


class TokenEpoch(Base):
    """Which Redis server gives out the tokens, and since when. One row; `workers.store.epochs` has its columns."""

    __tablename__ = "token_epoch"
    __table_args__ = (CheckConstraint("one", name="one"),)

    one: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    number: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    server: Mapped[str] = mapped_column(server_default=text("''"))
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    given: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    rival: Mapped[str | None]


class Tally(Base):
    """How many messages an account has in each state that is counted, kept by a trigger on `messages`.

    A count is the sum over `slot`: each database backend adds to a slot of its own, by its pid (0 is where the
    reconciler folds them together), so that writers of one account neither queue up behind one row nor deadlock over
    it. Depth, position and status are as quick at a million messages as at none.

    Redriven messages go behind the fresh ones of their priority, so they are counted apart: under the negative
    priority, -5 for redriven ones of priority 5. `TALLY_RANK` gives the rank of a row.
    """

    __tablename__ = "tallies"
    __table_args__ = (
        CheckConstraint(_one_of("state", TALLIED), name="state"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    account_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(primary_key=True)
    priority: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    """Negative for redriven messages."""
    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)


TALLY_RANK = "2 * abs(tallies.priority) + (tallies.priority > 0)::int"
"""SQL: the rank (`workers.domain.message.rank`) of the messages that a row of `tallies` counts."""
