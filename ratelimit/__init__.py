"""Strict rolling-window rate limits, stored in Redis and judged by the clock of the Redis server.

A *limit* is N per period. A *token* is one permission to use the limited resource. A caller *borrows* a token before
the use. The token is on loan until the caller *returns* it (usable again one whole period later) or *refunds* it
(certainly not used: usable at once). The owner of the resource sees the use at some time between borrow and return. So
it never sees more than N uses in any rolling period, whatever the latency.

tokens      borrow, return, refund; the Lua scripts beside it do each in one call
limits      limits as people write them
forecast    when the k-th in line will go
connection  a Redis client with timeouts, and its scripts
errors      what can go wrong

The package does not depend on messages. It needs redis-py and nothing else.
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
