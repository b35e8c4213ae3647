"""Turns every exception into the JSON error of the contract. No other module does this."""

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
"""Seconds after which a caller should try again if PostgreSQL is unavailable."""
MOST_DETAILS = 100
"""The most entries of one object of `details`. Further entries are only counted."""
MOST_WORDS = 500
"""The most entries of all objects of `details`. With the lengths below, an answer has 200 kB at most."""
NAME_LENGTH, WORDS_LENGTH = 64, 300
"""The most characters of a name or sentence that may come from the caller. Longer ones are cut."""

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
    """An error answer: its status, its text, and the errors of each field."""

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
    """Return the 401, always with the same text, so that it reveals nothing about why a token was refused."""
    return ApiError(401, "Not authenticated", headers={"WWW-Authenticate": "Bearer"})


def install(app: Flask) -> None:
    app.register_error_handler(Exception, _answer)


def _answer(error: Exception) -> ResponseReturnValue:
    known = _known(error)
    if known is None:
        log.exception("unhandled_error", exc_info=error)
        known = ApiError(500, "Internal error; find it in the logs by its request id")
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
            words = "Messages can be neither accepted nor read right now; try again shortly"
            return ApiError(503, words, headers={"Retry-After": str(RETRY_STORE_S)})
        case HTTPException():
            return _http_error(error)
    return None


def _bounded(details: dict[str, Any]) -> dict[str, Any]:
    """Return the first details, cut to a length. `more` says how many are left out."""
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
        405: "This route does not support that method",
        413: "The body is larger than 8 MiB",
        415: "Send JSON, with Content-Type: application/json",
    }.get(status, error.description or HTTPStatus(status).phrase)
    headers = {}
    if status == 405 and (allowed := getattr(error, "valid_methods", None)):
        headers["Allow"] = ", ".join(sorted(allowed))
    return ApiError(status, words, headers=headers)
