"""What is written down: a message's whole story under its request's id, and never a secret or what a message says."""

import base64
import json
import secrets
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from api.app import create_app
from deploy.stack import Stack
from tests.acceptance.conftest import Api, upstream
from workers.bootstrap import build

pytestmark = pytest.mark.acceptance

MakeStack = Callable[..., Stack]


def mark(of: str) -> str:
    """Something that is found wherever it turns up, by its end alone."""
    return f"marked-{of}-{secrets.token_hex(12)}"


def written(stack: Stack, *patterns: str) -> Iterator[tuple[Path, bytes]]:
    for pattern in patterns:
        for path in stack.data_dir.glob(pattern):
            if path.is_file():
                yield path, path.read_bytes()


def lines(stack: Stack) -> list[dict[str, Any]]:
    """Every line of our own processes' logs, in the order of their times."""
    found = [
        json.loads(line)
        for path, text in written(stack, "logs/api.log", "logs/worker*.log", "logs/pacer*.log")
        for line in text.decode().splitlines()
    ]
    return sorted(found, key=lambda line: line["timestamp"])


def call(url: str, method: str, body: bytes | None, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.read()
    except HTTPError as error:
        with suppress(ConnectionResetError):  # the server hangs up on a body that it does not want
            return error.read()
        return b""


def test_one_messages_story_is_found_by_its_request(make_stack: MakeStack) -> None:
    stack = make_stack(RATE_LIMIT="100/second")
    api = Api(stack)
    headers = {"Authorization": f"Bearer {api.token}", "X-Request-Id": "the-story"}
    wanted = json.dumps({"recipientId": "flaky-1", "content": "Hello"}).encode()  # the sandbox fails it twice
    receipt = json.loads(call(f"{api.base}/send", "POST", wanted, headers))
    api.send("somebody-else")
    api.await_over(30)
    story = [line for line in lines(stack) if line.get("request_id") == "the-story"]
    assert [(line["event"], line.get("attempt")) for line in story] == [
        ("message_accepted", None),
        ("message_sending", 1),
        ("message_retry_scheduled", 1),
        ("message_sending", 2),
        ("message_retry_scheduled", 2),
        ("message_sending", 3),
        ("message_sent", 3),
    ]
    assert {(line["message_id"], line["account_id"]) for line in story} == {(receipt["messageId"], "default")}


def test_no_secret_and_no_content_is_ever_written(make_stack: MakeStack) -> None:
    content, account_key = mark("content"), mark("account-key")
    ours = {
        "JWT_SECRET_KEY": mark("jwt-secret"),
        "ONLYFANS_API_KEY": mark("house-key"),
        "METRICS_TOKEN": mark("metrics-token"),
        "CREDENTIALS_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }
    stack = make_stack(RATE_LIMIT="1000/second", MAX_ATTEMPTS="2", **ours)
    api = Api(stack)
    tokens = [api.token, Api(stack, "operator").token, mark("bearer")]
    private = {"content": content, "metadata": {content: content}, "mediaIds": [content]}
    bodies: list[bytes] = [
        json.dumps({"recipientId": recipient, **private}).encode()
        for recipient in ("fan-1", "bounce-1", "flaky-1", "throttle-1", "cut-1")
    ]
    bodies += [
        json.dumps({"messages": [{"recipientId": "fan-2", **private}, {"recipientId": 5, **private}]}).encode(),
        json.dumps({"credentials": {"apiKey": account_key}}).encode(),
        json.dumps({"credentials": {"apiKey": account_key, account_key: account_key}, "limits": account_key}).encode(),
        json.dumps({"recipientId": "fan-1", "content": {content: content}, content: content}).encode(),
        json.dumps({"reason": "because"}).encode(),
        json.dumps({"as": content}).encode(),
        b'{"content": "' + content.encode(),
    ]
    for url, method in routes(stack):
        for token in tokens:
            for body in bodies if method in ("POST", "PUT") else [None]:
                call(url, method, body, {"Authorization": f"Bearer {token}"})
        call(f"{url}?content={content}&cursor={content}", method, bodies[0], {"Authorization": f"Basic {tokens[-1]}"})
    api("POST", "/accounts/default/resume")
    api("PUT", "/accounts/default", {"credentials": {"apiKey": account_key}, "limits": "1000/second"})
    api.send("fan-3", content)
    api.await_over(60)
    assert account_key in {entry["key"] for entry in upstream(stack, "/ledger")["entries"]}, "it was used"

    logs = dict(written(stack, "logs/*.log"))
    assert {"api.log", "worker1.log", "pacer1.log"} <= {path.name for path in logs}
    assert sum(b"message_sent" in text for text in logs.values()), "there is something to look through"
    scrape = call(f"{stack.url}/metrics", "GET", None, {"Authorization": f"Bearer {ours['METRICS_TOKEN']}"})
    assert b"paceline_messages_accepted_total" in scrape
    for name, secret in [("content", content), ("account key", account_key), *ours.items(), *enumerate(tokens)]:
        for path, text in [*logs.items(), (Path("/metrics"), scrape), *written(stack, "metrics/*", "valkey/**/*")]:
            assert secret.encode() not in text, f"{name} in {path}"
    if stack.servers is not None:
        at_rest = dict(written(stack, "postgres/**/*"))
        assert any(content.encode() in text for text in at_rest.values()), "messages are there, so this looks right"
        for path, text in at_rest.items():
            assert account_key.encode() not in text, f"an account's key in {path}"


def routes(stack: Stack) -> list[tuple[str, str]]:
    """(URL, method) of every route there is, as the application itself lists them; the last ones first, so that
    accounts have been paused and the like before messages come."""
    app = create_app(build(stack.settings))
    known = {"channel": "onlyfans", "message_id": "msg_01ARZ3NDEKTSV4RRFFQ69G5FAV", "account_id": "default"}
    adapter = app.url_map.bind("localhost")
    return [
        (stack.url + adapter.build(rule.endpoint, {a: known.get(a, "x") for a in rule.arguments}, method), method)
        for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule, reverse=True)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]
