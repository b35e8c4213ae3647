"""What can go wrong with limits and tokens. Being denied a token is not an error: it is a `Grant` of none."""


class RateLimitError(Exception):
    """Anything this package raises."""


class BadLimits(RateLimitError, ValueError):
    """The text does not describe limits; the message says what would."""


class TokensUnavailable(RateLimitError):
    """Redis did not answer. Nothing may be used until it does: no token was handed out that the caller knows of."""
