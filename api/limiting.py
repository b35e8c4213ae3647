"""Limits the requests per caller (`sub`), with the tokens of `ratelimit`. Reads have a separate budget, so that
watching a queue never blocks sending.

Fails open: if Redis is unavailable, requests are served, because a send can still be accepted durably.
`paceline_caller_limit_open_total` counts these requests.
"""

import hashlib
import math
from dataclasses import dataclass

from flask import Flask, Response, current_app, g, request

from api.errors import ApiError
from ratelimit import Grant, Limits, Tokens, TokensUnavailable
from workers.telemetry.logs import logger
from workers.telemetry.metrics import caller_limit_open

log = logger(__name__)

_EXTENSION = "caller_limit"
_READS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Budget:
    """name: the name of its policies in `RateLimit-Policy`, and the prefix of its keys."""

    name: str
    limits: Limits
    what: str


def install(app: Flask, tokens: Tokens, *, writes: Limits | None, reads: Limits | None) -> None:
    """Enforce these limits per caller. None means no limit."""
    app.extensions[_EXTENSION] = (
        tokens,
        writes and Budget("caller", writes, "requests"),
        reads and Budget("reader", reads, "reads"),
    )
    app.after_request(_tell)


def spend(subject: str) -> None:
    """Count this request against its caller. Raises 429."""
    tokens, writes, reads = current_app.extensions[_EXTENSION]
    budget: Budget | None = reads if request.method in _READS else writes
    if budget is None:
        return
    key = f"{budget.name}." + hashlib.sha256(subject.encode()).hexdigest()[:24]
    try:
        grant = tokens.spend(key, budget.limits)
    except TokensUnavailable as error:
        caller_limit_open.inc()
        log.warning("caller_limit_open", error=str(error))
        return
    g.caller_grant = budget, grant
    if not grant.tokens:
        wait_s = _wait_s(grant)
        words = f"More than {budget.limits} {budget.what}; try again in {wait_s} s"
        raise ApiError(429, words, headers={"Retry-After": str(wait_s)})


def _tell(response: Response) -> Response:
    """Add RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers), after those of a full queue."""
    if "caller_grant" not in g:
        return response
    budget, grant = g.caller_grant
    policies = [
        f'"{budget.name}{n}";q={limit.count};w={math.ceil(limit.period_s)}' for n, limit in enumerate(budget.limits, 1)
    ]
    response.headers["RateLimit-Policy"] = ", ".join([*response.headers.getlist("RateLimit-Policy"), *policies])
    response.headers.setdefault("RateLimit", f'"{budget.name}1";r={grant.left};t={_wait_s(grant)}')
    return response


def _wait_s(grant: Grant) -> int:
    return max(0 if grant.left else 1, math.ceil(grant.wait_s))
