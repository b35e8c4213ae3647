"""POST /send: what is accepted, what is not, and what the receipt says."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from ratelimit import Limits
from tests.conftest import origin
from workers.bootstrap import Adapters
from workers.domain.decisions import DeferralReason
from workers.domain.outcome import Outcome, OutcomeKind
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import closures, outcomes, queries
from workers.store.claims import claim_next

SEND = "/api/onlyfans/messaging/send"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
Send = Callable[..., TestResponse]


@pytest.fixture
def send(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Send:
    """Send to fan-1; name only what matters."""
    return lambda **fields: client.post(
        SEND, json={"recipientId": "fan-1", "content": "Hello"} | fields, headers=bearer("operator")
    )


@pytest.fixture
def send_raw(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Send:
    """Send these very bytes."""
    return lambda body, content_type="application/json": client.post(
        SEND, data=body, content_type=content_type, headers=bearer("operator")
    )


def stored(adapters: Adapters, answer: TestResponse) -> dict[str, Any]:
    assert answer.status_code == 202, answer.json
    row = queries.message(adapters.db, answer.json["messageId"], None)
    assert row is not None
    return row


def wrong(answer: TestResponse) -> dict[str, Any]:
    """What a 400 says of the fields."""
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request"), answer.json
    return answer.json["details"]


def at(**away: float) -> str:
    return (datetime.now(UTC) + timedelta(**away)).isoformat()


def test_the_receipt_is_the_contracts(send: Send) -> None:
    answer = send()
    receipt = answer.json
    assert answer.status_code == 202
    assert re.fullmatch(r"msg_[0-9A-HJKMNP-TV-Z]{26}", receipt["messageId"])
    assert TIME.fullmatch(receipt["queuedAt"])
    assert TIME.fullmatch(receipt["estimatedSendTime"])
    assert receipt == {
        "messageId": receipt["messageId"],
        "status": "queued",
        "queuedAt": receipt["queuedAt"],
        "estimatedSendTime": receipt["estimatedSendTime"],
        "message": "Message queued successfully",
        "accountId": "default",
        "position": 1,
        "blockedBy": None,
    }
    assert answer.headers["Location"] == f"/api/onlyfans/messaging/messages/{receipt['messageId']}"


def test_what_is_not_said_has_its_default(send: Send, adapters: Adapters) -> None:
    row = stored(adapters, send())
    assert (row["account_id"], row["priority"], row["media_ids"]) == ("default", 5, [])
    assert all(row[name] is None for name in ("send_at", "expires_at", "batch_id", "metadata"))


def test_what_is_said_is_kept(send: Send, adapters: Adapters) -> None:
    said = {"a": [1, None, True, 0.5, {"ä": "\u2028 😀 \\u0000"}], "": ""}
    row = stored(adapters, send(content="Ahoy 😀", priority=10, mediaIds=["m-1", "m-2"], batchId="b", metadata=said))
    assert (row["content"], row["priority"], row["batch_id"]) == ("Ahoy 😀", 10, "b")
    assert (row["media_ids"], row["metadata"]) == (["m-1", "m-2"], said)


def test_the_account_is_the_claims_only_one_or_default(
    client: FlaskClient, bearer: Callable[..., dict[str, str]], make_account: Callable[..., str]
) -> None:
    for name in ("a", "b"):
        make_account(name)

    def account_of(claim: tuple[str, ...], **fields: str) -> str:
        body = {"recipientId": "fan-1", "content": "Hello"} | fields
        answer = client.post(SEND, json=body, headers=bearer("operator", *claim)).json
        return answer.get("accountId") or answer["error"]

    assert account_of(("a",)) == "a"
    assert account_of(("*",)) == "default"
    assert account_of(("a", "default")) == "default"
    assert account_of(("a", "b")) == "No account default"
    assert account_of(("a", "b"), accountId="b") == "b"
    assert account_of(("*",), accountId="b") == "b"
    assert account_of(("a",), accountId="b") == "No account b"
    assert account_of(("*",), accountId="missing") == "No account missing"


@pytest.mark.parametrize(
    "fields",
    [
        {"recipientId": "x"},
        {"recipientId": "😀" * 255},
        {"content": "x"},
        {"content": "😀" * 10_000},
        {"content": "", "mediaIds": ["m-1"]},
        {"priority": 1},
        {"priority": 10},
        {"batchId": "b" * 255},
        {"mediaIds": []},
        {"metadata": {}},
        {"metadata": {"a": "x" * (4096 - len('{"a":""}'))}},
        {"metadata": {"a": "é" * ((4096 - len('{"a":""}')) // 2)}},
        {"metadata": {"big": 10**300, "small": -1e-300}},
        {"sendAt": None, "expiresAt": None, "batchId": None, "metadata": None},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_up_to_the_edge_it_is_accepted(send: Send, fields: dict[str, Any]) -> None:
    assert send(**fields).status_code == 202


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("recipientId", value) for value in ("", "x" * 256, 5, None, True, ["fan"], {"id": "fan"})),
        *(("content", value) for value in ("", "x" * 10_001, 5, None)),
        *(("priority", value) for value in (5.5, "5", True, False, 0, 11, -1, 10**30, None, [5])),
        *(("accountId", value) for value in ("", "x" * 65, 5, None)),
        *(("mediaIds", value) for value in ("m-1", [""], [5], [None], ["m"] * 101, {}, None)),
        *(("batchId", value) for value in ("", "x" * 256, 5)),
        *(("metadata", value) for value in ("x", [], 5, True, {"a": "x" * (4097 - len('{"a":""}'))})),
        *((field, "a\0b") for field in ("recipientId", "content", "accountId", "batchId")),
        *((field, "a\ud800b") for field in ("recipientId", "content", "accountId", "batchId")),
        ("mediaIds", ["a\0b"]),
        ("mediaIds", ["a\ud800b"]),
        ("metadata", {"a\0b": 1}),
        ("metadata", {"a\ud800b": 1}),
        ("metadata", {"a": [{"b": "\0"}]}),
        ("metadata", {"a": [{"\0": "b"}]}),
        ("metadata", {"a": [{"b": "\udfff"}]}),
        *(("sendAt", value) for value in ("", "soon", 5, True, "2030-02-30T00:00:00Z", "2030-01-01T00:00:00+25:00")),
        *(("sendAt", value) for value in ("9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59Z", "10000-01-01T00:00Z")),
        *(("sendAt", value) for value in ("0001-01-01T00:00:00+01:00", "0000-01-01T00:00:00Z", "1e10", "now")),
        ("expiresAt", "2020-01-01T00:00:00Z"),
        ("recipient", "fan-1"),
        ("account_id", "default"),
        ("a\0\ud800", "odd"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_beyond_the_edge_the_field_is_named(send: Send, adapters: Adapters, field: str, value: Any) -> None:
    assert list(wrong(send(**{field: value}))) == [field]
    assert queries.counts(adapters.db, None) == {}


def test_all_that_is_wrong_is_said_at_once(send_raw: Send) -> None:
    assert wrong(send_raw('{"priority": 11, "extra": 1}')) == {
        "recipientId": ["Missing data for required field."],
        "content": ["Missing data for required field."],
        "priority": ["Must be greater than or equal to 1 and less than or equal to 10."],
        "extra": ["Unknown field."],
    }


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b'{"recipientId"}', b"[]", b"null", b"5", b'"text"', b"\xff\xfe\xfd", b'{"content": "\xff"}',
        b'{"priority": NaN}', b'{"metadata": {"a": NaN}}', b'{"metadata": {"a": Infinity}}', b'{"priority": -Infinity}',
        b'{"priority": ' + b"9" * 5000 + b"}", b'{"content": "a\0b"}', b"[" * 100_000, b'{"a":' * 100_000,
    ],
    ids=lambda body: ascii(body)[:40],
)  # fmt: skip
def test_what_is_not_a_json_object_is_400(send_raw: Send, body: bytes) -> None:
    assert list(wrong(send_raw(body))) == ["body"]


@pytest.mark.parametrize("number", ["1e400", "-1e400"])
def test_a_number_beyond_all_numbers_is_400(send_raw: Send, number: str) -> None:
    body = f'{{"recipientId": "fan-1", "content": "Hello", "metadata": {{"a": {number}}}}}'
    assert list(wrong(send_raw(body))) == ["metadata"]


@pytest.mark.parametrize("depth", [63, 64, 65, 500, *range(900, 1000, 5)])
def test_metadata_nests_as_deep_as_can_be_read_again(
    send_raw: Send, client: FlaskClient, bearer: Callable[..., dict[str, str]], depth: int
) -> None:
    nested = "[" * (depth - 1) + "]" * (depth - 1)
    answer = send_raw(f'{{"recipientId": "fan-1", "content": "Hello", "metadata": {{"a": {nested}}}}}')
    assert answer.status_code == (202 if depth <= 64 else 400)
    page = client.get("/api/onlyfans/messaging/messages", headers=bearer()).json
    assert len(page["messages"]) == (depth <= 64)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 202), ("application/json; charset=utf-8", 202), ("Application/JSON", 202),
        ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("multipart/form-data", 415), ("", 415),
    ],
)  # fmt: skip
def test_the_body_must_be_declared_as_json(send_raw: Send, content_type: str, status: int) -> None:
    assert send_raw('{"recipientId": "fan-1", "content": "Hello"}', content_type).status_code == status


def test_more_than_8_mib_is_413(send_raw: Send) -> None:
    frame = json.dumps({"recipientId": "fan-1", "content": "Hello", "more": ""})
    most = frame.replace('""', '"' + "x" * (8 * 1024 * 1024 - len(frame)) + '"')
    assert list(wrong(send_raw(most))) == ["more"]
    answer = send_raw(most + " ")
    assert (answer.status_code, answer.json["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2040-05-06T07:08:09Z", "2040-05-06T07:08:09+00:00"),
        ("2040-05-06T07:08:09.123456Z", "2040-05-06T07:08:09.123456+00:00"),
        ("2040-05-06T07:08+05:30", "2040-05-06T01:38:00+00:00"),
        ("9998-12-31T23:59:59.999-12:00", "9999-01-01T11:59:59.999+00:00"),
    ],
)
def test_times_are_kept_as_the_moment_that_they_name(send: Send, adapters: Adapters, given: str, meant: str) -> None:
    assert stored(adapters, send(sendAt=given))["send_at"] == datetime.fromisoformat(meant)


@pytest.mark.parametrize("name", ["sendAt", "expiresAt"])
@pytest.mark.parametrize("given", ["2040-05-06T07:08:09", "2040-05-06 07:08", "2040-05-06"])
def test_a_time_without_an_offset_is_refused_with_the_remedy(send: Send, name: str, given: str) -> None:
    assert wrong(send(**{name: given})) == {
        name: ["Has no offset. End it with Z for UTC, or with an offset such as +02:00."]
    }


@pytest.mark.parametrize("given", ["an hour and a bit", "2025-12-01T09:00:00Z", "0002-01-01T00:00:00Z"])
def test_a_send_at_that_is_long_past_is_refused_with_the_remedy(send: Send, given: str) -> None:
    assert wrong(send(sendAt=at(hours=-1, seconds=-5) if given.startswith("an hour") else given)) == {
        "sendAt": ["Is more than an hour past. Leave it out to send at once, or check the year and the offset."]
    }


def test_a_send_at_that_is_just_past_means_now(send: Send, adapters: Adapters, dispatcher: Dispatcher) -> None:
    answer = send(sendAt=at(minutes=-59))
    assert (answer.json["blockedBy"], answer.json["position"]) == (None, 1)
    dispatcher.drain("default")
    assert stored(adapters, answer)["state"] == "sent"


def test_expires_at_must_leave_time_to_send(send: Send) -> None:
    assert wrong(send(expiresAt=at(seconds=-1))) == {
        "expiresAt": ["Is in the past; leave it out or choose a later time."]
    }
    moment = at(hours=1)
    assert wrong(send(sendAt=moment, expiresAt=moment)) == {"expiresAt": ["Must be after sendAt."]}
    assert send(sendAt=moment, expiresAt=at(hours=2)).status_code == 202


def test_blocked_by_names_what_would_have_to_change(
    send: Send, submit: Callable[..., Receipt], adapters: Adapters, make_account: Callable[..., str]
) -> None:
    def blocked(account_id: str, **fields: Any) -> str | None:
        return send(accountId=account_id, recipientId="fan-new", **fields).json["blockedBy"]

    for reason in ("rate", "ordering", "both", "paused", "cooldown", "schedule"):
        make_account(reason, limits="1/hour" if reason in ("rate", "both") else "10/minute")
    for account_id, recipient_id in (("rate", "fan-1"), ("ordering", "fan-new"), ("both", "fan-new")):
        submit(recipient_id, account_id=account_id)
    closures.pause(adapters.db, "paused", "for tests")
    adapters.tokens.cool_down("cooldown", 60)

    assert blocked("rate") == "rate"
    assert blocked("ordering") == "ordering"
    assert blocked("both") == "ordering"
    assert blocked("paused") == "paused"
    assert blocked("cooldown") == "cooldown"
    assert blocked("schedule", sendAt=at(hours=1)) == "schedule"
    assert blocked("schedule") is None


def test_what_waits_for_its_next_try_is_blocked_by_that(
    send: Send, adapters: Adapters, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    def blocked(message_id: str) -> str | None:
        return client.get(f"/api/onlyfans/messaging/messages/{message_id}", headers=bearer()).json["blockedBy"]

    tried = send().json["messageId"]
    claims = claim_next(adapters.db, "default", ["t"], worker=1, lease_s=10, origin=origin(adapters))
    failed = Outcome(OutcomeKind.FAILED, http_status=503)
    adapters.db.transaction(lambda c: outcomes.schedule_retry(c, claims[0], failed, 60.0))
    assert blocked(tried) == "retry"
    throttled = send(recipientId="fan-2").json["messageId"]
    claims = claim_next(adapters.db, "default", ["t2"], worker=1, lease_s=10, origin=origin(adapters))
    outcome = Outcome(OutcomeKind.THROTTLED, http_status=429)
    adapters.db.transaction(
        lambda c: outcomes.defer(c, claims[0], outcome, DeferralReason.THROTTLED, channel="onlyfans", delay_s=60.0)
    )
    assert blocked(throttled) == "cooldown"
    assert blocked(send(sendAt=at(hours=1)).json["messageId"]) == "schedule"
    closures.pause(adapters.db, "default", "for tests")
    assert blocked(tried) == "paused"


def test_position_counts_who_goes_first(send: Send) -> None:
    assert [send(recipientId=f"fan-{n}").json["position"] for n in range(3)] == [1, 2, 3]
    assert send(recipientId="fan-urgent", priority=10).json["position"] == 1
    assert send(recipientId="fan-patient", priority=1).json["position"] == 5


def test_the_estimate_knows_limits_schedule_and_pauses(
    send: Send, submit: Callable[..., Receipt], adapters: Adapters
) -> None:
    def wait_s(**fields: Any) -> float | None:
        estimate = send(recipientId=f"fan-{datetime.now()}", **fields).json["estimatedSendTime"]
        return estimate and (datetime.fromisoformat(estimate) - datetime.now(UTC)).total_seconds()

    assert -5 < wait_s() < 1
    assert 3500 < wait_s(sendAt=at(hours=1)) <= 3600
    for n in range(9):
        submit(f"fan-{n}")
    assert 55 < wait_s() < 62
    closures.pause(adapters.db, "default", "for a while", until=datetime.now(UTC) + timedelta(minutes=10))
    assert 590 < wait_s() < 670
    closures.pause(adapters.db, "default", "without an end")
    assert wait_s() is None


def test_a_full_queue_is_429_with_retry_after(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    full = with_settings(max_queue_depth=2, rate_limit=Limits.parse("1/hour"))
    client, body = create_app(full).test_client(), {"recipientId": "fan-1", "content": "Hello"}
    answers = [client.post(SEND, json=body, headers=bearer()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[2].json["code"] == "queue_full"
    assert int(answers[2].headers["Retry-After"]) >= 1
    assert answers[2].headers["RateLimit"].startswith('"queue";r=0;t=')
    assert queries.counts(full.db, None) == {"default": {"queued": 1, "held": 1}}


def test_a_full_queue_of_a_paused_account_says_so(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    full = with_settings(max_queue_depth=1)
    client, body = create_app(full).test_client(), {"recipientId": "fan-1", "content": "Hello"}

    def refused() -> tuple[str, int]:
        answer = client.post(SEND, json=body, headers=bearer())
        assert (answer.status_code, answer.json["code"]) == (429, "queue_full")
        assert f";t={answer.headers['Retry-After']}" in answer.headers["RateLimit"]
        return answer.json["error"], int(answer.headers["Retry-After"])

    assert client.post(SEND, json=body, headers=bearer()).status_code == 202
    closures.pause(full.db, "default", "the key is wrong")
    words, retry_after_s = refused()
    assert "It is paused (the key is wrong): there will be no room before somebody resumes it" in words
    assert retry_after_s == 300
    closures.pause(full.db, "default", "lunch", until=datetime.now(UTC) + timedelta(minutes=30))
    words, retry_after_s = refused()
    assert "paused" not in words
    assert 1700 < retry_after_s <= 1800
    closures.resume(full.db, "default")
    full.redis.flushall()
    words, retry_after_s = refused()
    assert "Nobody can say when there will be room" in words
    assert retry_after_s == 300


def test_a_full_queue_whose_upstream_is_unavailable_says_so(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    full = with_settings(max_queue_depth=1)
    client, body = create_app(full).test_client(), {"recipientId": "fan-1", "content": "Hello"}
    assert client.post(SEND, json=body, headers=bearer()).status_code == 202
    full.db.transaction(lambda c: closures.rest(c, "default", "unavailable", "connection refused", 60.0, probed=False))
    answer = client.post(SEND, json=body, headers=bearer())
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "300")
    assert "Its upstream is unavailable: there will be no room before that answers again" in answer.json["error"]
