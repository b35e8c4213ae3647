"""Generates the OpenAPI 3.1 document from the declarations of the routes."""

import re
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask
from marshmallow import Schema, fields

from api import examples, kinds, schemas
from api.body import media_types
from api.endpoint import Declaration, declaration_of
from workers.channels.fields import Text
from workers.channels.registry import platforms

_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
_PATH = {
    **{name: {"type": "string", "pattern": pattern} for name, pattern in schemas.IDS.items()},
    "batch_id": {"type": "string", "minLength": 1, "maxLength": 255},
}
_ERRORS = {
    400: "The request is not valid; `details` has the errors of each field",
    401: "Not authenticated",
    403: "The role of the access token does not allow this",
    404: "It does not exist, or is outside the caller's claim",
    405: "This route does not support that method",
    409: "The current state does not allow this",
    413: "The body is larger than 8 MiB, or has more than 500,000 names and values",
    415: "The Content-Type is not JSON, or the body is compressed",
    429: "The caller's limit is exceeded, or the queue is full",
    503: "The database is unavailable, so nothing can be accepted durably",
}
_ANSWERS = {
    200: "Success",
    202: "Queued: committed to the database",
    503: "Not ready; the answer names what is missing",
}


def _text(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"} | schema}


_REQUEST_ID = {"name": "X-Request-Id", "in": "header"} | _text(
    "An id for this request, echoed and logged. Use 1 to 128 of `A-Z a-z 0-9 . _ : -`; otherwise it is replaced",
    examples=[examples.HEADERS["X-Request-Id"]],
)
_ON_EVERY_ANSWER = {"X-Request-Id": _text("The id of this request in the logs", pattern="^[A-Za-z0-9._:-]{1,128}$")}
_ON_COUNTED_ANSWERS = {
    "RateLimit": _text(
        "How many requests the caller has left, and for how long: `caller` counts writes, `reader` reads"
    ),
    "RateLimit-Policy": _text(
        "The caller's limits: `API_RATE_LIMIT`, or `API_READ_LIMIT` for reads; absent if it is `off`"
    ),
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}}
_ON_ERRORS = {
    401: {"WWW-Authenticate": _text("The scheme to use", enum=["Bearer"])},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_NOT_COUNTED = {401, 403}
"""Answered before the request is counted against its caller."""


_HOW = "`paceline token --role admin --sub you` prints one"
_ABOUT = f"""\
Queues outbound messages and sends them exactly as fast as the upstream platform allows.

**Try it out:** you need an access token. {_HOW}, beside `paceline up` or wherever `JWT_SECRET_KEY` is set. Press \
*Authorize* and paste the token without `Bearer`. The API accepts every example below unchanged.

**Times** are ISO 8601 with an offset; answers are in UTC. **Errors** have the same shape everywhere: `error` says \
what is wrong, `details` says where, and `requestId` finds the request in the logs.
"""
_TAGS = {
    "send": ("Sending", "Queue messages. A message that is answered with 202 is on disk."),
    "messages": ("Messages", "Find messages, and change or cancel those that still wait."),
    "batches": ("Batches", "Messages with the same `batchId`."),
    "status": ("Status", "State of queue and accounts."),
    "failed": ("Failures", "Failed messages: see the reason, then retry, resolve or dismiss them."),
    "accounts": ("Accounts", "Accounts that send messages: limits, credentials, pauses."),
    "audit": ("Audit", "Who changed what, and when."),
    "operations": ("Operations", "For machines: health and metrics."),
}
"""Groups of routes in the documentation, in order of first use, by the first part of their path."""
_GROUPED_WITH = {"test": "status", "channels": "accounts", "<message_id>": "failed"}


def document(app: Flask) -> dict[str, Any]:
    """The document of every declared route of this application, in the order in which they were declared."""
    spec = APISpec(
        title="Paceline",
        version=version("paceline"),
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin(schema_name_resolver=lambda schema: _name(schema))],
        info={"description": _ABOUT, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        security=[{"bearer": []}],
        servers=[{"url": "/"}],
        tags=[{"name": name, "description": about} for name, about in _TAGS.values()],
    )
    _teach(spec)
    spec.components.security_scheme(
        "bearer",
        {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": f"An access token: {_HOW}. Paste it without `Bearer`.",
        },
    )
    spec.components.security_scheme("metrics", {"type": "http", "scheme": "bearer", "description": "`METRICS_TOKEN`"})
    spec.components.parameter("RequestId", "header", _REQUEST_ID)
    spec.components.schema("Error", schema=schemas.Error)
    for endpoint, view in app.view_functions.items():
        declaration = declaration_of(view)
        if declaration is None:
            continue
        for rule in app.url_map.iter_rules(endpoint):
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                path = _PARAMETER.sub(r"{\1}", rule.rule)
                spec.path(path, operations={method.lower(): _operation(endpoint, rule.rule, method, declaration)})
    made = spec.to_dict()
    for name, shape in made["components"]["schemas"].items():
        shape |= getattr(getattr(schemas, name, None), "rules", {})
    return made


def _tag(rule: str) -> str:
    """The group of a route. One of a kind that is new here has a group of its own."""
    first = rule.partition("/messaging/")[2].partition("/")[0] or "operations"
    group = _GROUPED_WITH.get(first, first)
    return _TAGS[group][0] if group in _TAGS else group.capitalize()


def _operation(name: str, rule: str, method: str, declared: Declaration) -> dict[str, Any]:
    in_path = _PARAMETER.findall(rule)
    path = {"channel": {"type": "string", "enum": platforms()}, **_PATH}
    parameters: list[Any] = [
        {"name": found, "in": "path", "required": True, "schema": path[found], "example": examples.IN_PATH[found]}
        for found in in_path
    ]
    if declared.query:
        parameters.append({"in": "query", "schema": declared.query})
    for header, description in declared.headers.items():
        example = [examples.HEADERS[header]]
        text = _text(description, minLength=1, maxLength=255, pattern="^[ -~]+$", examples=example)
        parameters.append({"name": header, "in": "header"} | text)
    operation: dict[str, Any] = {
        "operationId": name.replace(".", "_"),
        "summary": declared.summary,
        "tags": [_tag(rule)],
        "parameters": [*parameters, "RequestId"],
        "responses": {
            **{str(status): _answer(status, schema, declared) for status, schema in declared.answers.items()},
            **{str(status): _error(status, declared) for status in sorted(_errors(declared, in_path))},
        },
    }
    operation["description"] = declared.description
    if declared.roles is not None:
        operation["description"] += f"\n\nFor {', '.join(declared.roles)}."
    else:
        operation["security"] = [{}, {"metrics": []}] if 401 in declared.errors else []
    if declared.body:
        operation["requestBody"] = {
            "required": not declared.body_optional,
            "content": {
                kind: {"schema": declared.body, "example": declared.body.example} for kind in media_types(method)
            },
        }
    return operation


def _errors(declared: Declaration, in_path: list[str]) -> set[int]:
    """What the view says it answers, and what follows from what the route takes."""
    errors = set(declared.errors)
    if in_path:
        errors |= {404}
    if declared.query or declared.headers or declared.body:
        errors |= {400}
    if declared.body:
        errors |= {413, 415}
    if declared.roles is not None:
        errors |= {401, 403, 429, 503}
    return errors


def _answer(status: int, schema: type[Schema] | None, declared: Declaration) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}} if schema is None else _json(schema)
    headers = {name: _text(description) for name, description in declared.answer_headers.items()}
    return {
        "description": _ANSWERS.get(status, "Done"),
        "headers": headers | _headers(status, declared),
        "content": content,
    }


def _error(status: int, declared: Declaration) -> dict[str, Any]:
    return {
        "description": _ERRORS[status],
        "headers": _ON_ERRORS.get(status, {}) | _headers(status, declared),
        "content": _json({"$ref": "#/components/schemas/Error"}),
    }


def _headers(status: int, declared: Declaration) -> dict[str, Any]:
    counted = declared.roles is not None and status not in _NOT_COUNTED
    return _ON_EVERY_ANSWER | (_ON_COUNTED_ANSWERS if counted else {})


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _name(schema: Any) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    assert issubclass(kind, Schema)
    return kind.__name__


def _teach(spec: APISpec) -> None:
    """What apispec does not say of a field by itself: constants are one-value enums, and our own kinds of fields take
    only what their pattern does."""

    def constant(_self: Any, field: fields.Field, **_: Any) -> dict[str, Any]:
        return {"enum": [field.constant]} if isinstance(field, fields.Constant) else {}

    def pattern(_self: Any, field: fields.Field, ret: dict[str, Any]) -> dict[str, Any]:
        own = field.pattern if isinstance(field, Text | schemas.Time) else None
        return {"pattern": own} if own and "pattern" not in ret else {}

    def example(_self: Any, field: fields.Field, ret: dict[str, Any]) -> dict[str, Any]:
        found = None if ret.keys() & {"enum", "$ref", "allOf", "anyOf"} else examples.of_field(field)
        return {} if found is None else {"examples": [found]}

    def of_kind(self: Any, field: fields.Field, **_: Any) -> dict[str, Any]:
        if isinstance(field, kinds.Channel):
            return {"enum": field.names}
        if not isinstance(field, kinds.OfKind):
            return {}
        found = [self.resolve_nested_schema(schema) for schema in field.schemas]
        return {"anyOf": [*found, {"type": "null"}] if field.allow_none else found}

    for learned in (constant, pattern, of_kind, example):
        spec.plugins[0].converter.add_attribute_function(learned)  # type: ignore[attr-defined]


def json_schema(schema: type[Schema]) -> dict[str, Any]:
    """The JSON Schema of what a schema takes."""
    plugin: Any = MarshmallowPlugin()
    spec = APISpec(title="", version="", openapi_version="3.1.0", plugins=[plugin])
    _teach(spec)
    return dict(plugin.converter.schema2jsonschema(schema()))
