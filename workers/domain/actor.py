"""The actor of a change and the request that it came from, for the audit, logs and traces."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """subject, role: from the access token. request_id: `X-Request-Id` of the request. traceparent: its position in a
    distributed trace (W3C Trace Context), if it is traced."""

    subject: str
    role: str
    request_id: str | None = None
    traceparent: str | None = None

    def __str__(self) -> str:
        return self.subject


PACELINE = Actor(subject="paceline", role="system")
"""The actor of changes that Paceline makes on its own, such as pausing an account that the upstream refuses."""


class Action(StrEnum):
    """The changes that the audit records."""

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
