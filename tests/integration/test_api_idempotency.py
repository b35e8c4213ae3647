"""Idempotency-Key: asking again is safe, whatever happened meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from tests.conftest import ALICE
from workers.bootstrap import Adapters
from workers.domain.filters import MessageFilter
from workers.services.dispatch import Dispatcher
from workers.store import queries

ROOT = "/api/onlyfans/messaging"
Send = Callable[..., TestResponse]


@pytest.fixture
def send(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Send:
    """Send under a key; name only what matters."""

    def do(key: str = "key-1", *, subject: str = "alice", claim: tuple[str, ...] = (), **fields: Any) -> TestResponse:
        body = {"recipientId": "fan-1", "content": "Hello"} | fields
        headers = bearer("operator", *claim, subject=subject) | {"Idempotency-Key": key}
        return client.post(f"{ROOT}/send", json=body, headers=headers)

    return do


def queued(adapters: Adapters) -> int:
    return len(queries.messages(adapters.db, MessageFilter(), None, 200))


def test_the_same_again_is_the_same_message(send: Send, adapters: Adapters) -> None:
    first, again = send(), send()
    assert (first.status_code, again.status_code) == (202, 202)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    told = [{k: v for k, v in answer.json.items() if k != "estimatedSendTime"} for answer in (first, again)]
    assert told[0] == told[1]
    assert first.headers["Location"] == again.headers["Location"]
    assert queued(adapters) == 1


def test_another_body_under_the_same_key_is_409(send: Send, adapters: Adapters) -> None:
    send()
    answer = send(content="Goodbye")
    assert (answer.status_code, answer.json["code"]) == (409, "idempotency_key_reused")
    assert queued(adapters) == 1


def test_two_callers_may_use_the_same_key(send: Send, adapters: Adapters) -> None:
    ids = {send(subject=subject).json["messageId"] for subject in ("alice", "bob")}
    assert len(ids) == 2
    assert queued(adapters) == 2


def test_a_caller_moved_to_another_account_learns_nothing_of_the_old_one(
    send: Send, make_account: Callable[..., str]
) -> None:
    for name in ("a", "b"):
        make_account(name)
    assert send(claim=("a",)).json["accountId"] == "a"
    assert send(claim=("b",)).status_code == 409


def test_two_first_uses_at_once_queue_one_message(adapters: Adapters, bearer: Callable[..., dict[str, str]]) -> None:
    app, body = create_app(adapters), {"recipientId": "fan-1", "content": "Hello"}
    together = threading.Barrier(4)

    def use(key: str) -> TestResponse:
        together.wait()
        return app.test_client().post(f"{ROOT}/send", json=body, headers=bearer() | {"Idempotency-Key": key})

    with ThreadPoolExecutor(4) as callers:
        for round_ in range(10):
            answers = list(callers.map(use, [f"key-{round_}"] * 4))
            assert {answer.status_code for answer in answers} == {202}
            assert len({answer.json["messageId"] for answer in answers}) == 1
            assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 3
    assert queued(adapters) == 10


@pytest.mark.parametrize("key", ["x", "x" * 255, "8e03978e-40d5-43e8-bc93-6894a57f9324", '"quoted, with spaces"'])
def test_keys_are_1_to_255_printable_characters(send: Send, key: str) -> None:
    assert send(key).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tbed", "nul\0", "caf\xe9", "\x7f"])
def test_other_keys_are_400(send: Send, adapters: Adapters, key: str) -> None:
    answer = send(key)
    assert (answer.status_code, list(answer.json["details"])) == (400, ["Idempotency-Key"])
    assert queued(adapters) == 0


def test_a_replay_is_answered_though_the_queue_is_full(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    client = create_app(with_settings(max_queue_depth=1)).test_client()

    def send(key: str) -> TestResponse:
        body = {"recipientId": "fan-1", "content": "Hello"}
        return client.post(f"{ROOT}/send", json=body, headers=bearer() | {"Idempotency-Key": key})

    first, again, other = send("key-1"), send("key-1"), send("key-2")
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 429)
    assert again.json["messageId"] == first.json["messageId"]


def test_a_replay_says_how_the_message_stands(send: Send, adapters: Adapters, dispatcher: Dispatcher) -> None:
    for n in range(3):
        send(f"key-{n}", recipientId=f"fan-{n}")
    last = send("key-last", recipientId="fan-last").json
    assert send("key-last", recipientId="fan-last").json["position"] == last["position"] == 4
    adapters.canceller().cancel(send("key-0", recipientId="fan-0").json["messageId"], scope=None, by=ALICE)
    assert send("key-last", recipientId="fan-last").json["position"] == 3
    dispatcher.drain("default")
    over = send("key-last", recipientId="fan-last")
    assert (over.status_code, over.json["messageId"]) == (202, last["messageId"])
    assert [over.json[name] for name in ("position", "estimatedSendTime", "blockedBy")] == [None, None, None]


def test_a_replay_is_answered_though_its_expiry_has_passed(send: Send, adapters: Adapters) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    first = send(expiresAt=soon)
    while datetime.now(UTC).isoformat() <= soon:
        threading.Event().wait(0.05)
    again = send(expiresAt=soon)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json["messageId"] == first.json["messageId"]
    assert send("key-2", expiresAt=soon).status_code == 400
