"""A message when it is accepted, when it is claimed, and its line."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """The messages of one account, recipient and priority. They are sent one at a time, in order."""

    account_id: str
    recipient_id: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A valid message that is not accepted yet. Times are timezone-aware and UTC."""

    id: str
    account_id: str
    recipient_id: str
    content: str
    media_ids: tuple[str, ...] = ()
    priority: int = 5
    send_at: datetime | None = None
    expires_at: datetime | None = None
    batch_id: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def line(self) -> Line:
        return Line(self.account_id, self.recipient_id, self.priority)


def rank(priority: int, *, redriven: bool = False) -> int:
    """Return the rank of a message. An account's messages are claimed by rank, highest first, then by due time.

    Priority decides. Within one priority fresh messages go before redriven ones. So the ranks are 21 and 20 for
    priority 10, 19 and 18 for priority 9, down to 3 and 2 for priority 1.
    """
    return 2 * priority + (not redriven)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A message that one drain has claimed. Attempt number `attempt` is recorded, under `token`.

    tries: attempts since it was queued, this one included. due_s: how long it had been due when claimed.
    doubt_s: None if no attempt since then may have arrived. Else how long ago the message's first request left, which
        is the age of its key; of a lookup, how long ago the first attempt began that may have arrived.
    rekeyed: the account has another credential than that attempt was made with.
    refusals: answered refusals so far, each of which used up an idempotency key.
    throttles: 429s in a row before this attempt. others_passed: the account's other messages got through since the
        latest of them.
    queued: how many of the account's messages stood first in their lines then, this one included.
    request_id, traceparent: of the request that queued it.
    """

    message_id: str
    account_id: str
    recipient_id: str
    priority: int
    content: str
    media_ids: tuple[str, ...]
    attempt: int
    tries: int
    token: str
    request_id: str | None = None
    traceparent: str | None = None
    due_s: float = 0.0
    queued: int = 0
    doubt_s: float | None = None
    rekeyed: bool = False
    refusals: int = 0
    throttles: int = 0
    others_passed: bool = False

    @property
    def key(self) -> str:
        """The idempotency key of this attempt. An upstream may replay an answered refusal under its key for ever, so a
        message that was refused goes on under another one; one that may have arrived keeps its key."""
        return f"{self.message_id}.{self.refusals + 1}" if self.refusals else self.message_id

    @property
    def ids(self) -> dict[str, Any]:
        """What its logs and spans are found by."""
        return {
            "request_id": self.request_id,
            "message_id": self.message_id,
            "account_id": self.account_id,
            "attempt": self.attempt,
        }

    @property
    def line(self) -> Line:
        return Line(self.account_id, self.recipient_id, self.priority)

    def __repr__(self) -> str:
        return f"Claim({self.message_id}, attempt {self.attempt})"
