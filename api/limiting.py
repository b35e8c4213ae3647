"""The caller's own limit: so many requests per `sub`, with our own tokens.

Fails open: while Redis is away requests are served, since a send that can be accepted durably should be; counted in
`paceline_caller_limit_open_total`.
"""

import hashlib
import math

from flask import Flask, Response, current_app, g

from api.errors import ApiError
from ratelimit import Grant, Limits, Tokens, TokensUnavailable
from workers.telemetry import caller_limit_open, logger

log = logger(__name__)

_EXTENSION = "caller_limit"


def install(app: Flask, tokens: Tokens, limits: Limits | None) -> None:
    app.extensions[_EXTENSION] = (tokens, limits)
    app.after_request(_tell)


def spend(subject: str) -> None:
    """Count this request against its caller. Raises 429."""
    tokens, limits = current_app.extensions[_EXTENSION]
    if limits is None:
        return
    key = "caller." + hashlib.sha256(subject.encode()).hexdigest()[:24]
    try:
        grant = tokens.spend(key, limits)
    except TokensUnavailable as error:
        caller_limit_open.inc()
        log.warning("caller_limit_open", error=str(error))
        return
    g.caller_grant = grant
    if not grant.tokens:
        wait_s = _wait_s(grant)
        words = f"More than {limits} requests; try again in {wait_s} s"
        raise ApiError(429, words, headers={"Retry-After": str(wait_s)})


def _tell(response: Response) -> Response:
    """RateLimit and RateLimit-Policy, as draft-ietf-httpapi-ratelimit-headers has them; after a full queue's own."""
    _, limits = current_app.extensions[_EXTENSION]
    grant: Grant | None = g.get("caller_grant")
    if limits is not None and grant is not None:
        policies = [f'"caller{n}";q={limit.count};w={math.ceil(limit.period_s)}' for n, limit in enumerate(limits, 1)]
        response.headers["RateLimit-Policy"] = ", ".join([*response.headers.getlist("RateLimit-Policy"), *policies])
        response.headers.setdefault("RateLimit", f'"caller1";r={grant.left};t={_wait_s(grant)}')
    return response


def _wait_s(grant: Grant) -> int:
    return max(0 if grant.left else 1, math.ceil(grant.wait_s))
