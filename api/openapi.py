"""The OpenAPI 3.1 document, read off the routes themselves, and the pages that show it."""

import re
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask
from marshmallow import Schema, fields

from api import schemas
from api.endpoint import Declaration, declaration_of

_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
_ERRORS = {
    400: "The request is not valid; `details` says so field by field",
    401: "Not authenticated",
    403: "The token's role may not do this",
    404: "No such thing, or none that the caller may know of",
    405: "This route does not take that method",
    409: "Its state does not allow this",
    413: "The body is larger than 8 MiB",
    415: "The body is not declared to be JSON",
    429: "Over the caller's own limit, or the queue is full",
    503: "Nothing can be accepted durably right now",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}}
_ERROR_HEADERS = {429: _RETRY_AFTER, 503: _RETRY_AFTER}
_ANSWERS = {200: "Here it is", 202: "Queued: committed to the database"}


def document(app: Flask) -> dict[str, Any]:
    """The document of every declared route of this application."""
    spec = APISpec(
        title="Paceline",
        version=version("paceline"),
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin(schema_name_resolver=lambda schema: _name(schema))],
        info={
            "description": "Queues outbound messages and sends them exactly as fast as the upstream platform allows.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        security=[{"bearer": []}],
        servers=[{"url": "/"}],
    )
    _fix_constants(spec)
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    spec.components.schema("Error", schema=schemas.Error)
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: (rule.rule, sorted(rule.methods or ()))):
        declaration = declaration_of(app.view_functions[rule.endpoint])
        if declaration is None:
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            path = _PARAMETER.sub(r"{\1}", rule.rule)
            spec.path(path, operations={method.lower(): _operation(rule.endpoint, rule.rule, declaration)})
    return spec.to_dict()


def _operation(name: str, rule: str, declared: Declaration) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": found, "in": "path", "required": True, "schema": _path_schema(found)}
        for found in _PARAMETER.findall(rule)
    ]
    if declared.query:
        parameters.append({"in": "query", "schema": declared.query})
    for header, description in declared.headers.items():
        text = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"}
        parameters.append({"name": header, "in": "header", "description": description, "schema": text})
    errors = set(declared.errors) | ({400} if declared.body or declared.query else set())
    if declared.roles is not None:
        errors |= {401, 403, 429, 503}
    responses: dict[str, Any] = {}
    for status, schema in declared.answers.items():
        responses[str(status)] = {
            "description": _ANSWERS.get(status, "Done"),
            "content": {"application/json": {"schema": schema}},
        }
    for status in sorted(errors):
        responses[str(status)] = {
            "description": _ERRORS[status],
            "headers": _ERROR_HEADERS.get(status, {}),
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    operation: dict[str, Any] = {
        "operationId": name.replace(".", "_"),
        "summary": declared.summary,
        "tags": [name.split(".")[0]],
        "parameters": parameters,
        "responses": responses,
    }
    if declared.roles is None:
        operation["security"] = []
    else:
        operation["description"] = "For " + ", ".join(declared.roles)
    if declared.body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": declared.body}},
        }
    return operation


def _path_schema(parameter: str) -> dict[str, Any]:
    return {"type": "string", "enum": ["onlyfans"]} if parameter == "channel" else {"type": "string"}


def _name(schema: Any) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    assert issubclass(kind, Schema)
    return kind.__name__


def _fix_constants(spec: APISpec) -> None:
    """Constants are one-value enums; apispec does not say so by itself."""

    def constant(_self: Any, field: fields.Field, **_: Any) -> dict[str, Any]:
        return {"enum": [field.constant]} if isinstance(field, fields.Constant) else {}

    plugin = spec.plugins[0]
    plugin.converter.add_attribute_function(constant)  # type: ignore[attr-defined]
