"""Strict rolling-window rate limits, kept in Redis and judged by its clock.

A *limit* is N per period. A *token* is one permission to use the limited thing. It is *borrowed* before the use and
out on loan until it is *returned* (usable again one whole period later) or *refunded* (certainly not used: usable at
once). So the limited party, which notices the use some time between borrow and return, never sees more than N in any
rolling period, whatever the latency between the two.

The package knows nothing of messages and imports nothing of Paceline.
"""

from ratelimit.connection import connect
from ratelimit.errors import BadLimits, RateLimitError, TokensUnavailable
from ratelimit.forecast import forecast, forecast_many, gone_before
from ratelimit.limits import Limit, Limits
from ratelimit.tokens import Grant, Origin, Tokens, Use, View

__all__ = [
    "BadLimits",
    "Grant",
    "Limit",
    "Limits",
    "Origin",
    "RateLimitError",
    "Tokens",
    "TokensUnavailable",
    "Use",
    "View",
    "connect",
    "forecast",
    "forecast_many",
    "gone_before",
]
