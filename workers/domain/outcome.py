"""What came of one request to an upstream. Outcomes are values: channels return them, they do not raise them."""

from dataclasses import dataclass
from enum import StrEnum


class OutcomeKind(StrEnum):
    ACCEPTED = "accepted"
    THROTTLED = "throttled"
    REJECTED = "rejected"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    kind: see the table in the contract.
    left: whether any byte of the request may have reached the upstream. If not, its token is refunded.
    interrupted: not even tried, because the loan of its token had run out.
    account_fault: rejected because of the account's credentials, not because of the message.
    upstream_id: the upstream's id of an accepted message.
    http_status, error: the upstream's words, for people; error never holds content or credentials.
    retry_after_s: how long a throttled account must rest, if the upstream said so.
    latency_s: from start to answer.
    """

    kind: OutcomeKind
    left: bool = True
    interrupted: bool = False
    account_fault: bool = False
    upstream_id: str | None = None
    http_status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    latency_s: float = 0.0


class Evidence(StrEnum):
    """What the upstream's history says of a message whose outcome is unknown."""

    FOUND = "found"
    ABSENT = "absent"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a look-up: the evidence, the upstream's id where found, its words where unavailable."""

    evidence: Evidence
    upstream_id: str | None = None
    error: str | None = None
