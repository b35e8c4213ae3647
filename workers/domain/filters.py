"""Which rows a caller asks for, and which it may know of. Fields that are None, or empty, let everything pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from workers.domain.state import State

Scope = Sequence[str] | None
"""The accounts that a caller may know of; None for all. A message of another account does not exist for this caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFilter:
    states: Sequence[State] = ()
    recipient_id: str | None = None
    account_id: str | None = None
    batch_id: str | None = None
    before_id: str | None = None
    """Only older ones than this: the cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureFilter:
    reason: str | None = None
    recipient_id: str | None = None
    account_id: str | None = None
    batch_id: str | None = None
    http_status: int | None = None
    words: Sequence[str] = ()
    """Each must occur in the error, in upper or lower case."""
    since: datetime | None = None
    until: datetime | None = None
    before_id: int | None = None
    """Only dead letters older than this one: the cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    subject: str | None = None
    action: str | None = None
    account_id: str | None = None
    message_id: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before_id: int | None = None
    """Only older ones than this: the cursor."""
