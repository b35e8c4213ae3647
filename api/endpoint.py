"""One decorator declares a route: who may call it, what it takes, what it answers. The check, the validation and the
OpenAPI document all read the same declaration, so none of them can drift from the others.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import marshmallow
from flask import Response, g, jsonify, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from api.auth import Role, authorize
from api.errors import ApiError
from api.limiting import spend
from workers import tracing

View = Callable[..., Any]
MAX_BODY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Declaration:
    """roles: None for a route open to anyone. answers: the schema of each status that is not an error, None for
    one that is not JSON. errors: those that only the view knows of; `api.openapi` knows the others. headers and
    answer_headers: what the request and the answer may carry, and what each means."""

    summary: str
    roles: tuple[Role, ...] | None
    body: type[marshmallow.Schema] | None
    query: type[marshmallow.Schema] | None
    answers: dict[int, type[marshmallow.Schema] | None]
    errors: tuple[int, ...]
    headers: dict[str, str]
    answer_headers: dict[str, str]


def endpoint(
    summary: str,
    *,
    roles: tuple[Role, ...] | None,
    answers: dict[int, type[marshmallow.Schema] | None],
    body: type[marshmallow.Schema] | None = None,
    query: type[marshmallow.Schema] | None = None,
    errors: tuple[int, ...] = (),
    headers: dict[str, str] | None = None,
    answer_headers: dict[str, str] | None = None,
) -> Callable[[View], View]:
    """The view gets the path's parameters, `body` and `query` as loaded, and answers (value, status[, headers]); the
    value is dumped through the schema of that status. An answer that is not JSON is a response already."""
    declaration = Declaration(summary, roles, body, query, answers, errors, headers or {}, answer_headers or {})
    schemas = {status: schema() for status, schema in answers.items() if schema is not None}
    body_schema = body() if body else None
    query_schema = query() if query else None

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def guarded(**params: Any) -> Response:
            with tracing.span(
                f"{request.method} {request.url_rule}",
                kind="SERVER",
                parent=request.headers.get("traceparent"),
                attributes={"request_id": g.request_id},
            ) as span:
                response = answer(**params)
                span["http.response.status_code"] = response.status_code
                return response

        def answer(**params: Any) -> Response:
            if roles is not None:
                spend(authorize(roles).subject)
            if query_schema:
                params["query"] = query_schema.load(_query())
            if body_schema:
                params["body"] = body_schema.load(_json_object())
            answer = view(**params)
            if isinstance(answer, Response):
                return answer
            value, status, *rest = answer
            response = jsonify(schemas[status].dump(value))
            response.status_code = status
            response.headers.update(rest[0] if rest else {})
            return response

        guarded.declaration = declaration  # type: ignore[attr-defined]
        return guarded

    return decorate


def declaration_of(view: View) -> Declaration | None:
    return getattr(view, "declaration", None)


def _query() -> dict[str, str]:
    repeated = [name for name, values in request.args.lists() if len(values) > 1]
    if repeated:
        raise marshmallow.ValidationError({name: ["Give it once."] for name in repeated})
    return request.args.to_dict()


def _json_object() -> dict[str, Any]:
    """The body, as strictly as I-JSON (RFC 7493) has it, so that nobody who stands before us can have read it in
    another way than we do: UTF-8 and nothing else, no byte order mark, each name once."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(415, "Send the body as it is, without Content-Encoding")
    raw = request.get_data()
    if len(raw) > MAX_BODY:
        raise RequestEntityTooLarge
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


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
