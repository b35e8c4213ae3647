"""The outcome of one request to an upstream, and its blame. Channels return outcomes as values, never raise them."""

from dataclasses import dataclass
from enum import StrEnum


class OutcomeKind(StrEnum):
    ACCEPTED = "accepted"
    """The upstream accepted the message and gave it an id."""
    THROTTLED = "throttled"
    """Refused for now: too many requests."""
    REJECTED = "rejected"
    """Refused permanently. `blame` says whose fault it is."""
    FAILED = "failed"
    """Certainly not delivered, because the upstream says so. Another attempt may succeed."""
    UNAVAILABLE = "unavailable"
    """Certainly not delivered, and the upstream is unavailable: nothing was sent, or it refused the request unread."""
    IN_PROGRESS = "in_progress"
    """The upstream still processes an earlier request under the same idempotency key."""
    UNKNOWN = "unknown"
    """The request may have been delivered. There is no proof of either."""


class Blame(StrEnum):
    """Whose fault a refusal is. It decides how far the consequences reach (guarantee 10)."""

    MESSAGE = "message"
    RECIPIENT = "recipient"
    ACCOUNT = "account"
    CREDENTIAL = "credential"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    kind, blame: see the table of answers in the contract. blame is None if the answer does not show it.
    left: whether any byte of the request may have reached the upstream. If not, its token is refunded.
    interrupted: not sent, because the loan of its token had ended.
    withheld: not sent, because an earlier attempt may have arrived and nothing would prevent a second delivery.
    upstream_id: the upstream's id of an accepted message.
    http_status, error: the upstream's answer, for people. error never contains content or credentials.
    retry_after_s: how long the upstream asks to wait, if it said so.
    probe_after_s: for a fault of the credential that ends by itself: seconds until one message may probe again.
    latency_s: from start to answer.
    """

    kind: OutcomeKind
    blame: Blame | None = None
    left: bool = True
    interrupted: bool = False
    withheld: bool = False
    upstream_id: str | None = None
    http_status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    probe_after_s: float | None = None
    latency_s: float = 0.0

    @property
    def refused(self) -> bool:
        """Whether the upstream refused the message permanently. An upstream may replay such an answer under its key for
        ever. A message that merely failed keeps its key, in case it did arrive."""
        return self.http_status is not None and self.kind is OutcomeKind.REJECTED

    @property
    def serves(self) -> bool:
        """Whether the outcome shows that the upstream is available."""
        if self.kind is OutcomeKind.UNAVAILABLE or self.probe_after_s is not None:
            return False
        return self.http_status is not None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a channel kind declares about its upstream.

    idempotent: the same request under the same key is delivered once. key_lifetime_s: seconds after the first use for
        which that holds.
    history: the messages that arrived in a chat can be read.
    """

    idempotent: bool = False
    key_lifetime_s: float = 86_400.0
    history: bool = False
