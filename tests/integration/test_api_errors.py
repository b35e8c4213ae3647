"""Errors: always the contract's JSON, never a page, a trace or somebody else's words; and the caller's own limit."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from ratelimit import Limits
from workers.bootstrap import Adapters, build
from workers.settings import Settings
from workers.store import queries

ROOT = "/api/onlyfans/messaging"
MESSAGE = {"recipientId": "fan-1", "content": "Hello"}
UNKNOWN_ID = "msg_01ARZ3NDEKTSV4RRFFQ69G5FAV"
Bearer = Callable[..., dict[str, str]]


def assert_error(answer: TestResponse, status: int, code: str) -> None:
    assert answer.status_code == status
    assert answer.content_type == "application/json"
    assert set(answer.json) == {"error", "code", "details", "requestId"}
    assert (answer.json["code"], answer.json["requestId"]) == (code, answer.headers["X-Request-Id"])
    assert "<" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere", "/api", "/static/x", "/api/onlyfans", ROOT, f"{ROOT}/nowhere", "/docs/nowhere.js",
        "/docs/../x", "/api/twitter/messaging/test", "/api/twitter/messaging/status", "/api/%00/messaging/test",
        f"{ROOT}//test", "/%ff", "/<script>alert(1)</script>", "/%0d%0aX-Evil:1",
    ],
)  # fmt: skip
def test_an_unknown_route_is_404(client: FlaskClient, path: str) -> None:
    assert_error(client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", f"{ROOT}/status", {"GET", "HEAD", "OPTIONS"}),
        ("GET", f"{ROOT}/send", {"POST", "OPTIONS"}),
        ("PUT", f"{ROOT}/messages/{UNKNOWN_ID}", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
        ("DELETE", "/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("TRACE", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(
    client: FlaskClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = client.open(path, method=method)
    assert_error(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_a_trailing_slash_is_forgiven_without_a_redirect(client: FlaskClient, bearer: Bearer) -> None:
    assert client.get(f"{ROOT}/test/").status_code == 200
    answer = client.post(f"{ROOT}/send/", json=MESSAGE, headers=bearer())
    assert answer.headers["Location"] == f"{ROOT}/messages/{answer.json['messageId']}"


def test_what_we_did_not_expect_says_nothing_of_itself(adapters: Adapters, bearer: Bearer) -> None:
    app = create_app(adapters)

    def broken(**_: Any) -> None:
        raise RuntimeError("the password is hunter2")

    app.view_functions["messaging.test"] = broken
    answer = app.test_client().get(f"{ROOT}/test")
    assert_error(answer, 500, "internal_error")
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "accounts/%00/pause"), ("POST", "accounts/a%00b/resume"), ("PUT", "accounts/%00"),
        ("GET", "messages/%00"), ("DELETE", "messages/msg_%00"), ("POST", "%00/retry"), ("POST", "%00/resolve"),
    ],
)  # fmt: skip
def test_a_path_with_nul_leads_nowhere(client: FlaskClient, bearer: Bearer, method: str, path: str) -> None:
    body = {"reason": "because"} if path.endswith("pause") else {}
    assert_error(client.open(f"{ROOT}/{path}", method=method, headers=bearer("admin"), json=body), 404, "not_found")


# --- request ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["x", "A-1_b.c:d", "x" * 128])
def test_a_sane_request_id_is_echoed(client: FlaskClient, given: str) -> None:
    for path in ("/healthz", "/nowhere", "/api/twitter/messaging/test", f"{ROOT}/status"):
        assert client.get(path, headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "a\0b", "a,b", "<b>", '"', "\xe9", "a;b", "\x1b[31m"])
def test_another_is_replaced(client: FlaskClient, given: str) -> None:
    answer = client.get("/nowhere", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9A-Z]{26}", answer.headers["X-Request-Id"])
    assert_error(answer, 404, "not_found")


def test_every_answer_has_one_of_its_own(client: FlaskClient) -> None:
    assert len({client.get("/healthz").headers["X-Request-Id"] for _ in range(5)}) == 5


# --- without Redis, without PostgreSQL ------------------------------------------------------------------------------


@pytest.fixture
def without_redis(adapters: Adapters, settings: Settings) -> Flask:
    """The same database, and nothing where Redis was. The callers' limit is on."""
    away = replace(settings, redis_url="redis://127.0.0.1:1", api_rate_limit=Limits.parse("1/minute"))
    return create_app(build(away))


@pytest.fixture
def without_postgres(adapters: Adapters, settings: Settings) -> Flask:
    return create_app(build(replace(settings, database_url="postgresql://user:hunter2@127.0.0.1:1/x")))


def test_without_redis_sends_are_accepted_and_nobody_knows_when_they_go(
    without_redis: Flask, adapters: Adapters, bearer: Bearer
) -> None:
    client = without_redis.test_client()
    answers = [client.post(f"{ROOT}/send", json=MESSAGE, headers=bearer()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert [answer.json["estimatedSendTime"] for answer in answers] == [None] * 3
    assert [answer.json["position"] for answer in answers] == [1, 2, 3]
    assert queries.counts(adapters.db, None) == {"default": {"queued": 1, "held": 2}}

    one = client.get(f"{ROOT}/messages/{answers[0].json['messageId']}", headers=bearer()).json
    assert (one["position"], one["estimatedSendTime"]) == (1, None)
    status = client.get(f"{ROOT}/status", headers=bearer()).json
    assert (status["queue"]["depth"], status["accounts"][0]["tokensAvailable"]) == (3, None)
    assert status["health"]["status"] == "down"
    assert "Redis is unavailable" in status["health"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "send"), ("GET", "messages"), ("GET", f"messages/{UNKNOWN_ID}"), ("DELETE", f"messages/{UNKNOWN_ID}"),
        ("GET", "failed"), ("POST", f"{UNKNOWN_ID}/retry"), ("GET", "status"),
    ],
)  # fmt: skip
def test_without_postgres_it_is_503_and_says_when_to_try_again(
    without_postgres: Flask, bearer: Bearer, method: str, path: str
) -> None:
    body = {"json": MESSAGE} if path == "send" else {}
    answer = without_postgres.test_client().open(f"{ROOT}/{path}", method=method, headers=bearer("admin"), **body)
    assert_error(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "hunter2" not in answer.text
    assert "127.0.0.1" not in answer.text


def test_without_postgres_metrics_still_count(without_postgres: Flask) -> None:
    answer = without_postgres.test_client().get("/metrics")
    assert answer.status_code == 200
    assert "paceline_http_requests_total" in answer.text


# --- the caller's own limit -----------------------------------------------------------------------------------------


def test_the_fourth_of_three_requests_a_minute_is_429(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    adapters = with_settings(api_rate_limit=Limits.parse("3/minute"))
    client = create_app(adapters).test_client()
    answers = [client.post(f"{ROOT}/send", json=MESSAGE, headers=bearer()) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert_error(answers[3], 429, "rate_limited")
    assert [answer.headers["RateLimit"].split(";")[1] for answer in answers] == ["r=2", "r=1", "r=0", "r=0"]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"caller1";q=3;w=60'}
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 60
    assert answers[3].headers["RateLimit"] == f'"caller1";r=0;t={answers[3].headers["Retry-After"]}'
    assert queries.counts(adapters.db, None) == {"default": {"queued": 1, "held": 2}}


def test_callers_do_not_share_and_the_refused_do_not_count(
    with_settings: Callable[..., Adapters], bearer: Bearer
) -> None:
    client = create_app(with_settings(api_rate_limit=Limits.parse("1/minute"))).test_client()

    def status(headers: dict[str, str]) -> int:
        return client.post(f"{ROOT}/send", json=MESSAGE, headers=headers).status_code

    assert [status({}), status(bearer("ops"))] == [401, 403]
    assert [status(bearer()), status(bearer("admin")), status(bearer(subject="bob"))] == [202, 429, 202]
    assert client.get(f"{ROOT}/test").status_code == 200


def test_reads_have_a_budget_of_their_own(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    """100 looks at the queue keep nobody from sending, and the other way round."""
    one, three = Limits.parse("1/minute"), Limits.parse("3/minute")
    client = create_app(with_settings(api_rate_limit=one, api_read_limit=three)).test_client()

    def send() -> TestResponse:
        return client.post(f"{ROOT}/send", json=MESSAGE, headers=bearer())

    reads = [client.get(f"{ROOT}/messages", headers=bearer()) for _ in range(4)]
    assert [answer.status_code for answer in reads] == [200, 200, 200, 429]
    assert [answer.headers["RateLimit"].split(";t")[0] for answer in reads[:3]] == [
        f'"reader1";r={n}' for n in (2, 1, 0)
    ]
    assert {answer.headers["RateLimit-Policy"] for answer in reads} == {'"reader1";q=3;w=60'}
    assert_error(reads[3], 429, "rate_limited")
    assert reads[3].json["error"].startswith("More than 3/minute reads; try again in ")
    writes = [send(), send()]
    assert [answer.status_code for answer in writes] == [202, 429]
    assert {answer.headers["RateLimit-Policy"] for answer in writes} == {'"caller1";q=1;w=60'}


def test_either_budget_can_be_off(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    client = create_app(with_settings(api_rate_limit=Limits.parse("1/minute"))).test_client()
    answers = [client.get(f"{ROOT}/status", headers=bearer()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert "RateLimit" not in answers[0].headers
    assert Settings.from_env({"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x"}).api_read_limit == (
        Limits.parse("600/minute")
    )


def test_a_request_that_makes_no_sense_counts(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    client = create_app(with_settings(api_rate_limit=Limits.parse("1/minute"))).test_client()
    answers = [client.post(f"{ROOT}/send", json={}, headers=bearer()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 429]
    assert "RateLimit" in answers[0].headers
