"""What a caller with a token may put into a request: refused in our own words, or taken and harmless."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from deploy.sandbox import Fault, Sandbox
from tests.architecture.test_routes import BODIES, ROUTES, Route
from tests.defence.conftest import Process
from workers.bootstrap import Adapters
from workers.channels.base import Sender
from workers.channels.onlyfans import OnlyFans
from workers.domain.lookup import History
from workers.domain.message import Claim
from workers.domain.outcome import OutcomeKind
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt

ROOT = "/api/onlyfans/messaging"
MESSAGE = {"recipientId": "fan-1", "content": "Hello"}
Bearer = Callable[..., dict[str, str]]

BODIES_THAT_ARE_NONE = {
    "a hundred thousand arrays": b"[" * 100_000,
    "a hundred thousand objects": b'{"metadata":' * 100_000,
    "closed again": b'{"metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "UTF-16": json.dumps(MESSAGE).encode("utf-16"),
    "UTF-32": json.dumps(MESSAGE).encode("utf-32-le"),
    "a byte order mark": json.dumps(MESSAGE).encode("utf-8-sig"),
    "not UTF-8": b'{"recipientId":"\xff","content":"x"}',
    "a surrogate in UTF-8": b'{"recipientId":"\xed\xa0\x80","content":"x"}',
    "overlong UTF-8": b'{"recipientId":"\xc0\xaf","content":"x"}',
    "a name twice": b'{"recipientId":"fan-1","content":"x","content":"y"}',
    "a name twice, further in": b'{"recipientId":"fan-1","content":"x","metadata":{"a":{"b":1,"b":2}}}',
    "a name twice, written in two ways": b'{"recipientId":"fan-1","content":"x","c\\u006fntent":"y"}',
    "not a number": b'{"recipientId":"fan-1","content":"x","metadata":{"a":NaN}}',
    "minus infinity": b'{"recipientId":"fan-1","content":"x","metadata":{"a":-Infinity}}',
    "beyond every float": b'{"recipientId":"fan-1","content":"x","metadata":{"a":1e400}}',
    "an integer of 5,000 digits": b'{"recipientId":"fan-1","content":"x","priority":' + b"9" * 5000 + b"}",
    "a priority beyond every float": b'{"recipientId":"fan-1","content":"x","priority":1e400}',
    "something behind it": b'{"recipientId":"fan-1","content":"x"} {}',
    "a comment": b'{"recipientId":"fan-1",/**/"content":"x"}',
    "single quotes": b"{'recipientId':'fan-1','content':'x'}",
    "a control character": b'{"recipientId":"fan-1","content":"\x01"}',
    "NUL behind it": b'{"recipientId":"fan-1","content":"x"}\0',
    "a prototype": b'{"recipientId":"fan-1","content":"x","__proto__":{"role":"admin"}}',
    "a form": b"recipientId=fan-1&content=x",
    "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
}


@pytest.mark.parametrize("body", BODIES_THAT_ARE_NONE.values(), ids=BODIES_THAT_ARE_NONE)
def test_a_body_that_is_none_is_400_and_queues_nothing(
    client: FlaskClient, bearer: Bearer, adapters: Adapters, body: bytes
) -> None:
    answer = client.post(f"{ROOT}/send", data=body, content_type="application/json", headers=bearer())
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")
    assert len(answer.data) < 1000
    assert adapters.db.all("SELECT id FROM messages") == []


@pytest.mark.parametrize("route", [route for route in ROUTES if route.declared.body], ids=str)
def test_no_route_reads_a_body_more_kindly(route: Route, client: FlaskClient, bearer: Bearer) -> None:
    valid = json.dumps(BODIES[route.name])
    for body, type_ in (
        ("[" * 100_000, "application/json"),
        (f'{{"x":1,"x":2,{valid[1:]}', "application/json"),
        (valid.encode("utf-16"), "application/json"),
    ):
        assert route.call(client, data=body, content_type=type_, headers=bearer("admin")).status_code == 400
    for type_ in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/xml", ""):
        assert route.call(client, data=valid, content_type=type_, headers=bearer("admin")).status_code == 415


def test_no_pattern_takes_long_over_what_it_refuses(client: FlaskClient, bearer: Bearer) -> None:
    """Linear ones take milliseconds for these; one that tries every way outlasts every time-out."""
    hostile = "1/" + " " * 4_000_000
    for path, body in (
        ("accounts/a", {"limits": hostile}),
        ("accounts/a", {"limits": "1/s," * 1_000_000}),
        ("accounts/a", {"credentials": {"apiKey": "!" * 4_000_000 + "\n"}}),
        ("accounts/" + "a" * 50_000 + "!", {}),
    ):
        assert client.put(f"{ROOT}/{path}", json=body, headers=bearer("admin")).status_code == 400
    for text in (hostile, "0" * 4_000_000, "2030-01-01T00:00:00." + "0" * 4_000_000 + "!"):
        answer = client.post(f"{ROOT}/send", json=MESSAGE | {"sendAt": text}, headers=bearer())
        assert answer.status_code == 400
        assert len(answer.data) < 1000  # and it is not repeated to whoever sent it


# --- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["key\n", "key\r\nX-Evil: 1", "key ", " key", "clé", "key\x7f", "\x00", "a\tb"])
def test_a_key_that_would_break_a_header_is_refused(client: FlaskClient, bearer: Bearer, key: str) -> None:
    answer = client.put(f"{ROOT}/accounts/a", json={"credentials": {"apiKey": key}}, headers=bearer("admin"))
    assert (answer.status_code, list(answer.json["details"])) == (400, ["credentials"])


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", f"{ROOT}/status", "/openapi.json", "/metrics"])
def test_a_browser_may_do_nothing_with_an_answer(client: FlaskClient, path: str) -> None:
    answer = client.get(path, headers={"Origin": "https://evil.example"})
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert not [name for name in dict(answer.headers) if name.lower().startswith("access-control-")]


def test_another_origin_is_not_let_in(client: FlaskClient) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options(f"{ROOT}/send", headers=asked | {"Access-Control-Request-Headers": "authorization"})
    assert not [name for name in dict(answer.headers) if name.lower().startswith("access-control-")]


def test_the_documentation_runs_its_own_scripts_and_no_others(client: FlaskClient) -> None:
    page = client.get("/docs/")
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert "unsafe" not in policy["script-src"]
    assert re.findall(r"\son\w+=|javascript:", page.text) == []


# --- into the upstream's ears, and out of its mouth -----------------------------------------------------------------


def claim(recipient_id: str) -> Claim:
    return Claim(
        message_id="msg_1", account_id="default", recipient_id=recipient_id, priority=5, content="Hello", media_ids=(),
        attempt=1, tries=1, token="t",
    )  # fmt: skip


@pytest.mark.parametrize(
    "recipient_id",
    ["../me", "..", ".", "a/../../me", "a?limit=1", "a#b", "a%2f..", "a\r\nX-Evil: 1", "//evil.example", "@"],
)
def test_a_recipient_is_one_piece_of_a_path(
    upstream: Sandbox, recipient_id: str, submit: Callable[..., Receipt]
) -> None:
    channel = OnlyFans(upstream.url, api_key="k")
    history = channel.history(recipient_id, Sender(), since_s=1, timeout_s=5)
    channel.close()
    if recipient_id in (".", ".."):
        assert history.error == "no path can name this chat"
    else:
        assert history == History()  # of that very chat, which is empty


def test_what_the_upstream_says_is_one_line_of_plain_text(
    client: FlaskClient, bearer: Bearer, dispatcher: Dispatcher, upstream: Sandbox, submit: Callable[..., Receipt]
) -> None:
    upstream.faults.add(Fault("status", status=400, error="no\r\nX-Evil: 1\x1b[2J\0<script>" + "x" * 100_000))
    message_id = submit().message_id
    dispatcher.drain("default")
    (failed,) = client.get(f"{ROOT}/failed", headers=bearer()).json["messages"]
    assert failed["messageId"] == message_id
    assert len(failed["error"]) <= 500
    assert failed["error"].isprintable()


def test_an_account_is_always_one_label(client: FlaskClient, bearer: Bearer) -> None:
    for account_id in ('a"} 1\nevil{x="', "a\nevil", "a\\", "a b", "a\u2028b", "{}", "a\n", "\na"):
        answer = client.put(f"{ROOT}/accounts/{quote(account_id)}", json={}, headers=bearer("admin"))
        assert answer.status_code in (400, 404)
    client.put(f"{ROOT}/accounts/A.b_c:d@e-1", json={}, headers=bearer("admin"))
    client.get('/evil"}\n1')
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    assert {family.name for family in families if not family.name.startswith("paceline_")} <= {
        family.name for family in families if family.name.startswith(("python_", "process_"))
    }
    found = {sample.labels["account"] for family in families for sample in family.samples if "account" in sample.labels}
    assert found == {"default", "A.b_c:d@e-1"}


# --- into the log ---------------------------------------------------------------------------------------------------

FORGED = 'x\r\n2001-01-01T00:00:00Z [info     ] forged\n{"event": "forged"}\x1b[2J\x1b[1A\u2028forged\x85forged\\"\\n'


SAY = """
import logging, sys
import structlog
from workers.telemetry.logs import configure_logging

configure_logging(sys.argv[1])
forged, content = sys.argv[2], "words that are nobody's business"
ours = structlog.stdlib.get_logger("ours")
ours.warning(forged, said=forged, by={"a": forged}, error=ValueError(forged))
logging.getLogger("some.library").warning("it said: %s", forged)
try:
    raise ValueError(forged) from KeyError(forged)
except ValueError:
    ours.exception("unhandled_error")
    logging.getLogger("some.library").exception("it failed: %s", forged)
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_nothing_that_is_logged_begins_a_line_of_its_own(log_format: str) -> None:
    said = subprocess.run([sys.executable, "-c", SAY, log_format, FORGED], capture_output=True, text=True, check=True)
    assert one_event_a_line(said.stderr, log_format) == 4
    assert "nobody's business" not in said.stderr  # no local variables with a traceback


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_nothing_that_is_asked_begins_a_line_of_its_own(
    log_format: str, adapters: Adapters, start_api: Callable[..., Process]
) -> None:
    api = start_api(LOG_FORMAT=log_format)
    headers = {"Authorization": f"Bearer {api.token()}", "Content-Type": "application/json"}
    headers |= {
        "User-Agent": "\u2028\x85forged".encode().decode("latin-1"),
        "X-Request-Id": '{"event":"forged"}',
        "Idempotency-Key": '","event":"forged',
    }
    body = {"recipientId": FORGED, "content": FORGED, "batchId": FORGED, "metadata": {FORGED: FORGED}}
    for method, path, asked in (
        ("POST", "send", body),
        ("POST", "accounts/default/pause", {"reason": FORGED}),
        ("POST", "accounts/default/resume", None),
        ("PUT", "accounts/default", {"displayName": FORGED}),
        ("GET", f"messages?recipientId={quote(FORGED)}", None),
    ):
        data = None if asked is None else json.dumps(asked).encode()
        with urlopen(Request(f"{api.url}{ROOT}/{path}", data, headers, method=method), timeout=60) as answer:
            assert answer.status in (200, 202)
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{api.url}/{quote(FORGED)}", timeout=60)
    assert one_event_a_line(api.log.read_text(), log_format) >= 4


def one_event_a_line(log: str, log_format: str) -> int:
    """How many events there are, all of them begun by us. A traceback may follow one on a terminal, indented."""
    assert "\x1b" not in log
    lines = log.splitlines()
    if log_format == "json":
        assert "forged" not in [json.loads(line)["event"] for line in lines]
        return len(lines)
    events = [line for line in lines if not line.startswith("    ")]
    assert all(re.match(r"20\d\d-\d\d-\d\dT\S+Z \[\w+ *\] ", line) for line in events), events
    assert not [line for line in events if line.startswith("2001")]
    return len(events)


def test_an_upstream_that_sends_us_elsewhere_is_not_followed(upstream: Sandbox) -> None:
    upstream.faults.add(Fault("status", status=307, error="elsewhere"))
    channel = OnlyFans(upstream.url, api_key="k")
    outcome = asyncio.run(channel.send(claim("fan-1"), Sender(), start_by_s=float("inf"), timeout_s=5))
    channel.close()
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert len(upstream.ledger.entries) <= 1
