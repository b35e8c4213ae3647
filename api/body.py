"""Reads a request's body as JSON, within bounds that are checked before it is parsed.

A parsed value takes up to 30 times the memory of its text. So the names and values of a body are first counted in the
bytes. A body with more than a list of 10,000 messages needs is refused without parsing.
"""

import gc
import json
import re
from itertools import islice
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from api.errors import ApiError

MAX_BODY = 8 * 1024 * 1024
MOST_VALUES = 500_000
"""Names and values in one body: 50 for each of 10,000 messages. Parsed, they take 60 MB at worst."""
MOST_NAMES = 1000
"""Names in one object. The largest valid object is `metadata`: 4 KiB have room for about 680."""

LARGE_BODY = 64 * 1024
"""Bytes. A smaller body leaves little garbage, which the collector frees in time."""

_DELIMITERS = (b"{", b"[", b",", b":")
# Matches everything up to the next delimiter outside a string, or to the end. Without a match at the end, the search
# would be repeated from each earlier byte.
_UP_TO_DELIMITER = re.compile(rb'(?:[^"{\[,:]++|"(?:[^"\\]++|\\.)*+"?)*+(?:[{\[,:]|\Z)', re.DOTALL)


def media_types(method: str) -> tuple[str, ...]:
    """Return the valid media types of a body. A PATCH is a merge patch (RFC 7396), which has its own type."""
    return ("application/json", "application/merge-patch+json") if method == "PATCH" else ("application/json",)


def install(app: Flask) -> None:
    app.after_request(_note_refusal)
    app.teardown_request(_collect_refused)


def json_object(*, optional: bool = False) -> dict[str, Any]:
    """Return the body as a JSON object. Raises 400, 413 or 415 with the reason.

    The body must be I-JSON (RFC 7493): only UTF-8, no byte order mark, each name once. So no proxy can parse it
    differently. optional: a request without a body counts as an empty object.
    """
    if optional and not request.get_data():
        return {}
    if request.mimetype not in media_types(request.method):
        raise UnsupportedMediaType
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(415, "Send the body as it is, without Content-Encoding")
    raw = request.get_data()
    if len(raw) > MAX_BODY:
        raise RequestEntityTooLarge
    g.large_body = len(raw) > LARGE_BODY
    if _has_too_many_values(raw):
        words = f"The body has more than {MOST_VALUES:,} names and values; send it in several parts"
        raise ApiError(413, words, details={"body": [f"Has more than {MOST_VALUES:,} names and values."]})
    g.body = raw
    try:
        found = json.loads(raw.decode(), parse_constant=_not_json, object_pairs_hook=_each_name_once)
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply", details={"body": ["Is nested too deeply."]}) from None
    except ValueError as error:
        raise ApiError(400, "The body is not valid JSON", details={"body": [str(error)]}) from None
    if not isinstance(found, dict):
        raise ApiError(400, "The body must be a JSON object", details={"body": ["Must be an object."]})
    return found


def _note_refusal(response: Response) -> Response:
    g.refused = response.status_code >= 400
    return response


def _collect_refused(_error: BaseException | None) -> None:
    """Free a refused body, which cycles of exceptions and tracebacks keep alive. Takes less than 1 ms.

    A body may have few containers but use much memory, so the garbage collector does not start by itself: 24 such
    bodies held 950 MB."""
    if g.pop("large_body", False) and g.get("refused"):
        gc.collect()


def _has_too_many_values(raw: bytes) -> bool:
    """Return whether the body has more than `MOST_VALUES` names and values, counted by the delimiters before them.

    Counting all delimiters takes hundredths of a second. Only if there are too many are those inside strings excluded,
    which takes a tenth of a second."""
    if sum(map(raw.count, _DELIMITERS)) <= MOST_VALUES:
        return False
    found = islice(_UP_TO_DELIMITER.finditer(raw), MOST_VALUES + 2)  # the last one ends where the body does
    return sum(1 for _ in found) > MOST_VALUES + 1


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_NAMES:
        raise ValueError(f"an object has more than {MOST_NAMES:,} names")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
