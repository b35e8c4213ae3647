"""The exception tree of the pipeline. `api.errors` turns each exception into an answer."""

from typing import Any


class PacelineError(Exception):
    """Base class of the exceptions that the pipeline raises on purpose."""


class NotFound(PacelineError):
    """No such message or account, or it is outside the caller's claim. details: which items of a bulk request."""

    def __init__(self, words: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(words)
        self.details = details or {}


class Conflict(PacelineError):
    """The message or account exists, but its state does not allow this."""


class InvalidMessage(PacelineError):
    """The fields of the message contradict each other; `details` has the errors of each field."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__("The message is not valid")
        self.details = details


class KeyReused(Conflict):
    """The Idempotency-Key was used before with another body."""


class QueueFull(PacelineError):
    """The account has, or with `more` messages would have, too many waiting messages. why: the reason that the queue
    does not shrink, if the time of the next free place is unknown."""

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


class UnknownKind(PacelineError):
    """An account's channel kind is not installed in this process."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"The channel kind {kind!r} is not installed here; install its package, as the API has it")


class StaleClaim(PacelineError):
    """A drain tried to record an outcome of a message that has been rescued from it."""

    def __init__(self, message_id: str, attempt: int) -> None:
        super().__init__(f"Attempt {attempt} of {message_id} is not open any more")
        self.message_id = message_id
        self.attempt = attempt


class StoreUnavailable(PacelineError):
    """PostgreSQL did not answer. A message that it did not confirm was not accepted."""
