"""One decorator declares a route: its roles, its input and its answers. The role check, the validation and the OpenAPI
document all read this declaration, so they always agree.
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import marshmallow
from flask import Response, g, jsonify, request

from api.auth import Role, authorize
from api.body import json_object
from api.limiting import spend
from api.schemas import IDS
from workers.channels.fields import Strict
from workers.domain.errors import NotFound
from workers.telemetry import traces

View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Declaration:
    """description: the purpose of the route, in a sentence. roles: None for a public route. body_optional: a request
    without a body counts as an empty object. answers: the schema of each status that is not an error; None if an
    answer is not JSON. errors: statuses that only this view returns; `api.openapi` adds the others. headers and
    answer_headers: name and meaning of each header of the request and the answer."""

    summary: str
    description: str
    roles: tuple[Role, ...] | None
    body: type[Strict] | None
    body_optional: bool
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
    body: type[Strict] | None = None,
    body_optional: bool = False,
    query: type[marshmallow.Schema] | None = None,
    errors: tuple[int, ...] = (),
    headers: dict[str, str] | None = None,
    answer_headers: dict[str, str] | None = None,
) -> Callable[[View], View]:
    """Declare a view as a route. Its docstring becomes the description of the route.

    The view gets the path's parameters, and `body` and `query` as loaded by their schemas. It returns (value, status[,
    headers]). The schema of that status dumps the value. An answer that is not JSON is returned as a response."""
    schemas = {status: schema() for status, schema in answers.items() if schema is not None}
    body_schema = body() if body else None
    query_schema = query() if query else None

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def guarded(**params: Any) -> Response:
            with traces.span(
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
            _check_ids(params)
            if query_schema:
                params["query"] = query_schema.load(_query())
            if body_schema:
                params["body"] = body_schema.load(json_object(optional=body_optional))
            answer = view(**params)
            if isinstance(answer, Response):
                return answer
            value, status, *rest = answer
            response = jsonify(schemas[status].dump(value))
            response.status_code = status
            response.headers.update(rest[0] if rest else {})
            return response

        guarded.declaration = Declaration(  # type: ignore[attr-defined]
            summary,
            inspect.cleandoc(view.__doc__ or ""),
            roles,
            body,
            body_optional,
            query,
            answers,
            errors,
            headers or {},
            answer_headers or {},
        )
        return guarded

    return decorate


def declaration_of(view: View) -> Declaration | None:
    return getattr(view, "declaration", None)


def _check_ids(params: dict[str, str]) -> None:
    """Raise NotFound for an id that cannot exist, so that it never reaches the database, which cannot compare a NUL.

    PUT creates the id, so its view validates it and explains the error."""
    for name, value in params.items():
        pattern = IDS.get(name) if request.method != "PUT" else None
        if "\0" in value or (pattern and not re.fullmatch(pattern, value)):
            raise NotFound(f"No {name.removesuffix('_id')} {value}")


def _query() -> dict[str, str]:
    repeated = [name for name, values in request.args.lists() if len(values) > 1]
    if repeated:
        raise marshmallow.ValidationError({name: ["Give it once."] for name in repeated})
    return request.args.to_dict()
