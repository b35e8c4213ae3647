"""A request's body as JSON, read within bounds that hold before it is parsed.

A parsed value takes up to 30 times the memory of its text. So the names and values of a body are counted first, in the
bytes, and a body that has more than a list of 10,000 messages needs is refused unread.
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
"""Names in one object. The largest that can be valid is `metadata`: 4 KiB have room for some 680."""

LARGE_BODY = 64 * 1024
"""What a smaller one leaves behind is little, and collected in time."""

_DELIMITERS = (b"{", b"[", b",", b":")
# Everything up to the next delimiter outside a string. It matches at the end too: a search that fails there would be
# repeated from each of the bytes before.
_UP_TO_DELIMITER = re.compile(rb'(?:[^"{\[,:]++|"(?:[^"\\]++|\\.)*+"?)*+(?:[{\[,:]|\Z)', re.DOTALL)


def media_types(method: str) -> tuple[str, ...]:
    """What a body may be declared as. A PATCH is a merge patch (RFC 7396), which has a type of its own."""
    return ("application/json", "application/merge-patch+json") if method == "PATCH" else ("application/json",)


def install(app: Flask) -> None:
    app.after_request(_note_refusal)
    app.teardown_request(_collect_refused)


def json_object(*, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object. Raises the 400, 413 or 415 that says why it is none.

    As strict as I-JSON (RFC 7493), so that no proxy before us can have read it in another way than we do: UTF-8 and
    nothing else, no byte order mark, each name once. optional: a request without a body counts as an empty object.
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
    """Free a refused body, which stays in cycles of exceptions and tracebacks. It may be few containers and much
    memory, so that the garbage collector does not come by itself: 24 such bodies held 950 MB. Takes less than 1 ms."""
    if g.pop("large_body", False) and g.get("refused"):
        gc.collect()


def _has_too_many_values(raw: bytes) -> bool:
    """Each name and each value but the first follows a delimiter. Those inside strings are told apart only where there
    are many of all: that takes a tenth of a second, counting all of them hundredths."""
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
