"""Every error as the contract's JSON: the only place where an exception becomes an answer."""

import itertools
import math
from http import HTTPStatus
from typing import Any

import marshmallow
from flask import Flask, g, jsonify
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from workers.domain.errors import Conflict, InvalidMessage, KeyReused, NotFound, QueueFull, StoreUnavailable
from workers.telemetry.logs import logger

log = logger(__name__)

RETRY_STORE_S = 2
"""How soon to try again when PostgreSQL is away."""
MOST_DETAILS = 100
"""Entries of one object of `details`; the others are counted."""
MOST_WORDS = 500
"""Entries of all objects of `details`, which with their lengths bounds the size of an answer: 200 kB at worst."""
NAME_LENGTH, WORDS_LENGTH = 64, 300
"""Characters of a name or of a sentence that the caller may have chosen; the others are left out."""

_CODES = {
    400: "invalid_request",
    401: "not_authenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}


class ApiError(Exception):
    """An answer that is an error: its status, its words, and what is wrong field by field."""

    def __init__(
        self,
        status: int,
        error: str,
        *,
        code: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.code = status, error, code or _CODES[status]
        self.details, self.headers = details or {}, headers or {}


def not_authenticated() -> ApiError:
    """Always the same words: why a token is refused is nobody's business who has none."""
    return ApiError(401, "Not authenticated", headers={"WWW-Authenticate": "Bearer"})


def install(app: Flask) -> None:
    app.register_error_handler(Exception, _answer)


def _answer(error: Exception) -> ResponseReturnValue:
    known = _known(error)
    if known is None:
        log.exception("unhandled_error", exc_info=error)
        known = ApiError(500, "Something went wrong on our side; the request id finds it in the logs")
    body = {
        "error": _short(known.error, WORDS_LENGTH),
        "code": known.code,
        "details": _bounded(known.details),
        "requestId": g.get("request_id"),
    }
    return jsonify(body), known.status, known.headers


def _known(error: Exception) -> ApiError | None:
    match error:
        case ApiError():
            return error
        case marshmallow.ValidationError():
            details = error.messages if isinstance(error.messages, dict) else {"body": error.messages}
            return ApiError(400, "The request is not valid; see details", details=details)
        case InvalidMessage():
            return ApiError(400, "The request is not valid; see details", details=error.details)
        case NotFound():
            return ApiError(404, str(error), details=error.details)
        case KeyReused():
            return ApiError(409, str(error), code="idempotency_key_reused")
        case Conflict():
            return ApiError(409, str(error))
        case QueueFull():
            wait_s = math.ceil(error.retry_after_s)
            return ApiError(
                429,
                str(error),
                code="queue_full",
                headers={
                    "Retry-After": str(wait_s),
                    "RateLimit-Policy": f'"queue";q={error.limit}',
                    "RateLimit": f'"queue";r=0;t={wait_s}',
                },
            )
        case StoreUnavailable():
            log.warning("store_unavailable", error=str(error))
            words = "Nothing can be accepted or looked up right now; try again shortly"
            return ApiError(503, words, headers={"Retry-After": str(RETRY_STORE_S)})
        case HTTPException():
            return _http_error(error)
    return None


def _bounded(details: dict[str, Any]) -> dict[str, Any]:
    """The first of these details, cut to a length; `more` says how many others there are."""
    room, left_out = MOST_WORDS, 0

    def some_of(found: Any) -> Any:
        nonlocal room, left_out
        if isinstance(found, str):
            return _short(found, WORDS_LENGTH)
        if isinstance(found, list):
            return [some_of(words) for words in found[:MOST_DETAILS]]
        if not isinstance(found, dict):
            return found
        kept: dict[str, Any] = {}
        for name, inner in itertools.islice(found.items(), MOST_DETAILS):
            if room <= 0:
                break
            room -= 1
            kept[_short(str(name), NAME_LENGTH)] = some_of(inner)
        left_out += len(found) - len(kept)
        return kept

    kept: dict[str, Any] = some_of(details)
    if left_out:
        kept["more"] = [*kept.get("more", ()), f"{left_out:,} more errors are not listed."]
    return kept


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _http_error(error: HTTPException) -> ApiError:
    status = error.code or 500
    if status == 422 or status not in _CODES:
        status = 400 if 400 <= status < 500 else 500
    words = {
        404: "No such route",
        405: "This route does not take that method",
        413: "The body is larger than 8 MiB",
        415: "Send JSON, with Content-Type: application/json",
    }.get(status, error.description or HTTPStatus(status).phrase)
    headers = {}
    if status == 405 and (allowed := getattr(error, "valid_methods", None)):
        headers["Allow"] = ", ".join(sorted(allowed))
    return ApiError(status, words, headers=headers)
