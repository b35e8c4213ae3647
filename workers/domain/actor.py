"""Who asked for what, and from which request: what the audit keeps, and what logs and traces carry on."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """subject, role: as their token said. request_id: `X-Request-Id` of the request. traceparent: its place in a
    distributed trace (W3C Trace Context), if it is traced."""

    subject: str
    role: str
    request_id: str | None = None
    traceparent: str | None = None

    def __str__(self) -> str:
        return self.subject


PACELINE = Actor(subject="paceline", role="system")
"""What nobody asked for: the upstream closed an account, say."""


class Action(StrEnum):
    """What the audit tells of."""

    SEND = "send"
    SEND_BULK = "send_bulk"
    CANCEL = "cancel"
    CANCEL_BATCH = "cancel_batch"
    AMEND = "amend"
    RETRY = "retry"
    RESOLVE = "resolve"
    DISMISS = "dismiss"
    PUT_ACCOUNT = "put_account"
    PATCH_ACCOUNT = "patch_account"
    PAUSE = "pause"
    RESUME = "resume"
