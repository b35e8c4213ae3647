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
from werkzeug.exceptions import UnsupportedMediaType

from api.auth import Role, authorize
from api.errors import ApiError
from api.limiting import spend

View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Declaration:
    """roles: None for a route open to anyone. answers: the schema of each status that is not an error."""

    summary: str
    roles: tuple[Role, ...] | None
    body: type[marshmallow.Schema] | None
    query: type[marshmallow.Schema] | None
    answers: dict[int, type[marshmallow.Schema]]
    errors: tuple[int, ...]
    headers: dict[str, str]


def endpoint(
    summary: str,
    *,
    roles: tuple[Role, ...] | None,
    answers: dict[int, type[marshmallow.Schema]],
    body: type[marshmallow.Schema] | None = None,
    query: type[marshmallow.Schema] | None = None,
    errors: tuple[int, ...] = (),
    headers: dict[str, str] | None = None,
) -> Callable[[View], View]:
    """The view gets the path's parameters, `body` and `query` as loaded, and answers (value, status[, headers]); the
    value is dumped through the schema of that status."""
    declaration = Declaration(summary, roles, body, query, answers, errors, headers or {})
    schemas = {status: schema() for status, schema in answers.items()}
    body_schema = body() if body else None
    query_schema = query() if query else None

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def guarded(**params: Any) -> Response:
            if roles is not None:
                spend(authorize(roles).subject)
            if query_schema:
                params["query"] = query_schema.load(_query())
            if body_schema:
                params["body"] = body_schema.load(_json_object())
            value, status, *rest = view(**params)
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
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    raw = request.get_data()
    g.body = raw
    try:
        found = json.loads(raw, parse_constant=_not_json)
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply", details={"body": ["Is nested too deeply."]}) from None
    except ValueError as error:
        raise ApiError(400, "The body is not valid JSON", details={"body": [str(error)]}) from None
    if not isinstance(found, dict):
        raise ApiError(400, "The body must be a JSON object", details={"body": ["Must be an object."]})
    return found


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
