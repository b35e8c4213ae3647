"""Errors of limits and tokens. A denied token is not an error: it is a `Grant` without tokens."""


class RateLimitError(Exception):
    """Base class of all errors of this package."""


class BadLimits(RateLimitError, ValueError):
    """The text does not describe limits. The message gives valid examples."""


class TokensUnavailable(RateLimitError):
    """Redis did not answer, so the caller got no token. The caller must not use anything until Redis answers."""
