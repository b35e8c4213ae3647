"""The documentation: valid, complete, from this house alone, and true of what is really answered."""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator
from werkzeug.test import TestResponse

from api import openapi
from api.app import create_app
from api.endpoint import declaration_of
from deploy.sandbox import Fault, Sandbox
from tests.architecture.test_routes import APP
from workers.bootstrap import Adapters
from workers.services.dispatch import Dispatcher

ROOT = "/api/onlyfans/messaging"
DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    return answer.json


def test_it_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_declared_route_is_in_it(adapters: Adapters, document: dict[str, Any]) -> None:
    app = create_app(adapters)
    declared = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if declaration_of(app.view_functions[rule.endpoint])
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    documented = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert documented == declared
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(
        operation["security"] == [] or "401" in operation["responses"] for operation in map(_secured, operations)
    )


def _secured(operation: dict[str, Any]) -> dict[str, Any]:
    return {"security": None} | operation


def test_it_says_what_a_send_takes(document: dict[str, Any]) -> None:
    send = document["components"]["schemas"]["Send"]
    assert sorted(send["required"]) == ["content", "recipientId"]
    assert send["additionalProperties"] is False
    properties = send["properties"]
    assert set(properties) == {
        "recipientId", "content", "priority", "accountId", "mediaIds", "sendAt", "expiresAt", "batchId", "metadata",
    }  # fmt: skip
    assert (properties["recipientId"]["minLength"], properties["recipientId"]["maxLength"]) == (1, 255)
    assert properties["content"]["maxLength"] == 10_000
    assert [properties["priority"][key] for key in ("type", "minimum", "maximum", "default")] == ["integer", 1, 10, 5]
    assert set(properties["sendAt"]["type"]) == {"string", "null"}


def test_the_page_fetches_nothing_from_outside(client: FlaskClient) -> None:
    for path in ("/docs", "/docs/"):
        page = client.get(path)
        assert page.status_code == 200
        assert page.content_type.startswith("text/html")
        assert not re.search(r"(?:https?:)?//\w", page.text)
        needed = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(needed) >= 4
        for asset in needed:
            assert client.get(asset).status_code == 200, asset


@pytest.fixture
def ask(adapters: Adapters, document: dict[str, Any], bearer: Callable[..., dict[str, str]]) -> Callable[..., Any]:
    """Ask, hold the answer to the document, and give its JSON."""
    app: Flask = create_app(adapters)

    def do(method: str, path: str, headers: dict[str, str] | None = None, **request: Any) -> Any:
        answer = app.test_client().open(
            f"{ROOT}/{path}", method=method, headers=bearer("admin") if headers is None else headers, **request
        )
        with app.test_request_context(f"{ROOT}/{path}", method=method, **request) as context:
            rule = context.request.url_rule
        assert rule is not None
        operation = document["paths"][re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)][method.lower()]
        _conforms(document, operation["responses"][str(answer.status_code)], answer)
        return answer.json

    return do


def _conforms(document: dict[str, Any], response: dict[str, Any], answer: TestResponse) -> None:
    schema = response["content"]["application/json"]["schema"]
    strict = {"components": document["components"], **schema, "unevaluatedProperties": False}
    checker = FormatChecker()
    checker.checks("date-time")(lambda text: not isinstance(text, str) or bool(DATE_TIME.fullmatch(text)))
    Draft202012Validator(strict, format_checker=checker).validate(answer.json)


def test_what_is_answered_is_what_is_documented(
    ask: Callable[..., Any],
    dispatcher: Dispatcher,
    upstream: Sandbox,
    bearer: Callable[..., dict[str, str]],
) -> None:
    upstream.faults.add(Fault("status", status=503, chat_id="fan-flaky"))
    upstream.faults.add(Fault("status", status=429, retry_after_s=0.1, chat_id="fan-throttled"))

    def send(recipient_id: str, **more: Any) -> str:
        return ask("POST", "send", json={"recipientId": recipient_id, "content": "Hello"} | more)["messageId"]

    ids = [
        send(recipient_id, metadata={"any": ["thing", None]}, batchId="b", mediaIds=["m-1"])
        for recipient_id in ("fan-throttled", "fan-1", "fan-flaky", "bounce-1")
    ]
    waiting = [send("fan-2", sendAt="2040-01-01T00:00:00Z", expiresAt="2041-01-01T00:00:00Z") for _ in range(2)]
    while ask("GET", "status")["queue"]["depth"] > len(waiting):
        dispatcher.drain("default")

    shown = [ask("GET", f"messages/{message_id}") for message_id in [*ids, *waiting]]
    assert {message["status"] for message in shown} == {"sent", "failed", "queued"}
    assert any(message["deferrals"] for message in shown)
    assert any(len(message["attempts"]) > 1 for message in shown)
    assert any(message["failures"] for message in shown)

    assert ask("GET", "messages", query_string={"limit": 2})["nextCursor"]
    assert ask("GET", "failed")["total"] == 1
    ask("DELETE", f"messages/{waiting[0]}")
    ask("DELETE", f"messages/{waiting[0]}")
    ask("POST", f"{ids[-1]}/retry")
    ask("POST", f"{ids[-1]}/retry")
    ask("GET", "status")
    ask("GET", "test", headers={})

    ask("GET", "status", headers={})
    ask("POST", "send", headers=bearer("ops"))
    ask("POST", "send", json={"nonsense": True})
    ask("POST", "send", data=b"{", content_type="text/plain")
    ask("GET", "messages", query_string={"limit": 0})
    ask("GET", "messages/msg_unknown")


# --- examples -------------------------------------------------------------------------------------------------------

OPERATIONS = [
    (method, path, operation)
    for path, methods in openapi.document(APP)["paths"].items()
    for method, operation in methods.items()
]
"""Of the application without a database: the document is the same."""
every_operation = pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=[f"{method} {path}" for method, path, _ in OPERATIONS]
)
NOT_ACCEPTED = {400, 405, 413, 415, 422, 500}


@pytest.fixture
def try_out(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., int]:
    """Send an operation as the documentation would with these examples."""

    def do(method: str, path: str, operation: dict[str, Any], **request: Any) -> int:
        for parameter in operation["parameters"]:
            if parameter.get("in") == "path":
                path = path.replace(f"{{{parameter['name']}}}", quote(parameter["example"], safe=""))
        headers = bearer("admin") | request.pop("headers", {})
        return client.open(path, method=method.upper(), headers=headers, **request).status_code

    return do


def bodies(operation: dict[str, Any]) -> list[tuple[str, Any]]:
    content = operation.get("requestBody", {}).get("content", {})
    return [(kind, media["example"]) for kind, media in content.items()]


@every_operation
def test_every_example_is_accepted_as_it_stands(
    try_out: Callable[..., int], method: str, path: str, operation: dict[str, Any]
) -> None:
    bare = bodies(operation) or [(None, None)]
    for kind, body in bare:
        sent = {} if kind is None else {"data": json.dumps(body), "content_type": kind}
        assert try_out(method, path, operation, **sent) not in NOT_ACCEPTED
        for parameter in operation["parameters"]:
            given = parameter.get("schema", {}).get("examples", [None])[0]
            if parameter.get("in") == "query":
                assert given is not None or "enum" in parameter["schema"], parameter["name"]
                value = parameter["schema"]["enum"][0] if given is None else given
                assert try_out(method, path, operation, query_string={parameter["name"]: value}) not in NOT_ACCEPTED
            elif parameter.get("in") == "header":
                assert try_out(method, path, operation, headers={parameter["name"]: given}, **sent) not in NOT_ACCEPTED


@every_operation
def test_a_body_of_every_fields_example_is_accepted(
    try_out: Callable[..., int], document: dict[str, Any], method: str, path: str, operation: dict[str, Any]
) -> None:
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        body = of_examples(document, media["schema"])
        assert set(body) == set(document["components"]["schemas"][name_of(media["schema"])]["properties"])
        sent = {"data": json.dumps(body), "content_type": kind}
        assert try_out(method, path, operation, **sent) not in NOT_ACCEPTED, body


def name_of(schema: dict[str, Any]) -> str:
    return schema["$ref"].rpartition("/")[2]


def of_examples(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """A value of this schema, made of examples alone."""
    for alternative in (schema.get("anyOf") or schema.get("allOf") or [])[:1]:
        return of_examples(document, alternative)
    if "$ref" in schema:
        shape = document["components"]["schemas"][name_of(schema)]
        return {name: of_examples(document, inner) for name, inner in shape["properties"].items()}
    if "examples" in schema:
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    assert schema["type"] == "array", schema
    return [of_examples(document, schema["items"])]


def test_every_field_has_an_example(document: dict[str, Any]) -> None:
    for name, shape in document["components"]["schemas"].items():
        value = of_examples(document, {"$ref": f"#/components/schemas/{name}"})
        assert set(value) == set(shape["properties"])
        Draft202012Validator({"components": document["components"], **shape}).validate(value)


@every_operation
def test_every_route_says_in_a_sentence_what_it_is_for(method: str, path: str, operation: dict[str, Any]) -> None:
    sentence = operation["description"].partition("\n\nFor ")[0]
    assert re.fullmatch(r"[A-Z`].{20,}\.", sentence, re.DOTALL), (method, path)


def test_it_says_how_to_get_a_token(document: dict[str, Any]) -> None:
    for text in (document["info"]["description"], document["components"]["securitySchemes"]["bearer"]["description"]):
        assert "`paceline token --role admin --sub you`" in text


def test_routes_stand_in_the_order_in_which_one_uses_them(document: dict[str, Any]) -> None:
    told = [tag["name"] for tag in document["tags"]]
    assert told[:3] == ["Sending", "Messages", "Batches"]
    assert all(tag["description"] for tag in document["tags"])
    assert {tag for _, _, operation in OPERATIONS for tag in operation["tags"]} == set(told)
    paths = [path.removeprefix("/api/{channel}/messaging") for path in document["paths"]]
    ordered = ["/send", "/send/bulk", "/messages", "/messages/{message_id}", "/failed", "/{message_id}/retry"]
    assert [path for path in paths if path in ordered] == ordered
    accounts = [operation for operation in OPERATIONS if operation[2]["tags"] == ["Accounts"]]
    assert len(accounts) >= 6


def test_the_root_leads_to_the_documentation(client: FlaskClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Location"], answer.data) == (302, "/docs/", b"")
    assert "Content-Type" not in answer.headers
    assert client.get(answer.headers["Location"]).status_code == 200
