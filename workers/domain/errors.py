"""The one tree of what can go wrong in the pipeline. The API turns each into its answer in one place."""

from typing import Any


class PacelineError(Exception):
    """Anything the pipeline raises on purpose."""


class NotFound(PacelineError):
    """No such message or account, or none that the caller may know of. details: of many, which."""

    def __init__(self, words: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(words)
        self.details = details or {}


class Conflict(PacelineError):
    """The thing is there, but not in a state that allows this."""


class InvalidMessage(PacelineError):
    """The message contradicts itself; `details` says so field by field."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__("The message is not valid")
        self.details = details


class KeyReused(Conflict):
    """The Idempotency-Key came before, with another body."""


class QueueFull(PacelineError):
    """The account has as many messages waiting as it may, or would have with `more`. why: what keeps room from being
    made, if nobody can say when there will be some."""

    def __init__(
        self, account_id: str, depth: int, limit: int, retry_after_s: float, *, more: int = 1, why: str | None = None
    ) -> None:
        words = f"Account {account_id} has {depth} messages waiting, and may have {limit}"
        words = words if more == 1 else f"{words}: {more} more do not fit"
        super().__init__(f"{words}. {why}" if why else words)
        self.limit, self.retry_after_s = limit, retry_after_s


class CannotSeal(Conflict):
    """There is no key to encrypt an account's credentials with."""


class Unreadable(PacelineError):
    """An account's credentials were encrypted under a key that this process does not have."""


class StaleClaim(PacelineError):
    """A drain tried to record what is not its own any more: the message has been rescued since."""

    def __init__(self, message_id: str, attempt: int) -> None:
        super().__init__(f"Attempt {attempt} of {message_id} is not open any more")
        self.message_id = message_id
        self.attempt = attempt


class StoreUnavailable(PacelineError):
    """PostgreSQL did not answer. Nothing was accepted that it did not confirm."""
