"""What came of one request to an upstream, and who is to blame. Outcomes are values: channels return them, they do not
raise them.
"""

from dataclasses import dataclass
from enum import StrEnum


class OutcomeKind(StrEnum):
    ACCEPTED = "accepted"
    """The upstream took the message and named it."""
    THROTTLED = "throttled"
    """Refused for now: too many requests."""
    REJECTED = "rejected"
    """Refused for good, as things are. `blame` says whose fault it is."""
    FAILED = "failed"
    """Certainly not delivered, by the upstream's own word, and worth another attempt."""
    UNAVAILABLE = "unavailable"
    """Certainly not delivered: nothing left, or the upstream turned it away unread. It serves nobody just now."""
    IN_PROGRESS = "in_progress"
    """The upstream still works on an earlier request under the same idempotency key."""
    UNKNOWN = "unknown"
    """The request may have been delivered, and nothing proves that it was or was not."""


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
    kind, blame: see the table of answers in the contract. blame is None where the answer does not tell.
    left: whether any byte of the request may have reached the upstream. If not, its token is refunded.
    interrupted: not even tried, because the loan of its token had run out.
    withheld: not even tried, because an earlier attempt may have arrived and nothing would keep this one from being
        delivered a second time.
    upstream_id: the upstream's id of an accepted message.
    http_status, error: the upstream's words, for people; error never holds content or credentials.
    retry_after_s: how long the upstream asks to wait, if it said so.
    probe_after_s: of a credential's fault that passes by itself: when to ask again with one message.
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
        """Whether the upstream refused it for good: an upstream may replay such an answer under its key for ever. What
        merely failed goes on under its key, in case that the upstream is wrong about having failed."""
        return self.http_status is not None and self.kind is OutcomeKind.REJECTED

    @property
    def serves(self) -> bool:
        """Whether it shows an upstream that serves requests again."""
        if self.kind is OutcomeKind.UNAVAILABLE or self.probe_after_s is not None:
            return False
        return self.http_status is not None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a channel kind declares about its upstream.

    idempotent: the same request under the same key is delivered once. key_lifetime_s: for how long after the first use.
    history: it can be asked what arrived in a chat.
    """

    idempotent: bool = False
    key_lifetime_s: float = 86_400.0
    history: bool = False
