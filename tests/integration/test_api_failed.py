"""Dead letters: what failed, and sending it again."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from deploy.sandbox import Fault, Sandbox
from workers.bootstrap import Adapters
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import queries

ROOT = "/api/onlyfans/messaging"
Fail = Callable[..., str]


@pytest.fixture
def fail(submit: Callable[..., Receipt], adapters: Adapters) -> Fail:
    """A message that was given up after one attempt, without the trouble of sending it; name only what matters."""

    def do(
        recipient_id: str = "fan-1", account_id: str = "default", *, reason: str = "rejected", at: str = "now"
    ) -> str:
        message_id = submit(recipient_id, account_id=account_id).message_id
        adapters.db.all(
            "WITH dead AS (UPDATE messages SET state = 'failed', ended_at = now(), attempts = 1 WHERE id = %(id)s)"
            " INSERT INTO dead_letters (message_id, account_id, reason, error, http_status, failed_at)"
            " VALUES (%(id)s, %(account)s, %(reason)s, 'Not you again', 422, %(at)s)",
            {"id": message_id, "account": account_id, "reason": reason, "at": at},
        )
        return message_id

    return do


@pytest.fixture
def failed(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., TestResponse]:
    return lambda *claim, **query: client.get(f"{ROOT}/failed", query_string=query, headers=bearer("operator", *claim))


@pytest.fixture
def retry(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[[str], TestResponse]:
    return lambda message_id: client.post(f"{ROOT}/{message_id}/retry", headers=bearer("admin"))


def ids(answer: TestResponse) -> list[str]:
    assert answer.status_code == 200, answer.json
    return [message["messageId"] for message in answer.json["messages"]]


def test_without_failures_the_list_is_empty(failed: Callable[..., TestResponse]) -> None:
    assert failed().json == {"messages": [], "total": 0, "limit": 50, "offset": 0}


def test_a_failure_says_when_and_why(
    failed: Callable[..., TestResponse], submit: Callable[..., Receipt], dispatcher: Dispatcher
) -> None:
    receipt = submit("bounce-1", metadata={"campaign": 7})
    dispatcher.drain("default")
    (shown,) = failed().json["messages"]
    assert shown["messageId"] == receipt.message_id
    assert (shown["reason"], shown["error"]) == ("rejected", "This user does not accept messages")
    assert (shown["status"], shown["attemptCount"], shown["metadata"]) == ("failed", 1, {"campaign": 7})
    assert 400 <= shown["httpStatus"] < 500
    assert shown["failedAt"].endswith("Z")


def test_latest_first_and_every_filter_narrows(
    failed: Callable[..., TestResponse], fail: Fail, make_account: Callable[..., str]
) -> None:
    make_account("a")
    old = fail("fan-1", at="2026-01-01T00:00Z", reason="retries_exhausted")
    middle = fail("fan-2", at="2026-02-01T00:00Z", reason="outcome_unknown")
    other = fail("fan-1", "a", at="2026-03-01T00:00Z")

    assert ids(failed()) == [other, middle, old]
    assert ids(failed(reason="outcome_unknown")) == [middle]
    assert ids(failed(recipientId="fan-1")) == [other, old]
    assert ids(failed(accountId="default")) == [middle, old]
    assert ids(failed(since="2026-02-01T00:00:00Z")) == [other, middle]
    assert ids(failed(until="2026-02-01T00:00:00Z")) == [old]
    assert ids(failed(since="2026-01-15T00:00:00Z", until="2026-02-15T01:00:00+01:00")) == [middle]
    assert ids(failed(recipientId="fan-1", accountId="default", reason="retries_exhausted")) == [old]
    assert failed(recipientId="fan-1").json["total"] == 2


def test_paging_counts_all(failed: Callable[..., TestResponse], fail: Fail) -> None:
    dead = [fail(f"fan-{n}") for n in range(5)][::-1]
    page = failed(limit=2, offset=2)
    assert ids(page) == dead[2:4]
    assert (page.json["total"], page.json["limit"], page.json["offset"]) == (5, 2, 2)
    assert (ids(failed(offset=5)), failed(offset=5).json["total"]) == ([], 5)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("reason", "bad_luck"), ("reason", ""), ("limit", 0), ("limit", 201), ("offset", -1), ("offset", "x"),
        ("since", "yesterday"), ("until", "9999-12-31T23:59:59-01:00"), ("recipientId", ""), ("cursor", "x"),
    ],
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_400(failed: Callable[..., TestResponse], parameter: str, value: Any) -> None:
    answer = failed(**{parameter: value})
    assert (answer.status_code, list(answer.json["details"])) == (400, [parameter])


def test_operators_see_the_failures_of_their_own_accounts(
    failed: Callable[..., TestResponse], fail: Fail, make_account: Callable[..., str]
) -> None:
    make_account("a")
    mine, foreign = fail(account_id="a"), fail()
    assert ids(failed("a")) == [mine]
    assert failed("a").json["total"] == 1
    assert ids(failed("a", "default")) == [foreign, mine]


def test_retried_it_goes_out_again_and_keeps_its_history(
    client: FlaskClient,
    bearer: Callable[..., dict[str, str]],
    submit: Callable[..., Receipt],
    dispatcher: Dispatcher,
    upstream: Sandbox,
    retry: Callable[[str], TestResponse],
    failed: Callable[..., TestResponse],
) -> None:
    upstream.faults.add(Fault("status", status=422, error="Not today"))
    message_id = submit().message_id
    dispatcher.drain("default")

    answer = retry(message_id)
    assert answer.status_code == 202
    assert answer.json == {
        "success": True,
        "messageId": message_id,
        "status": "queued",
        "queuedAt": answer.json["queuedAt"],
    }
    assert datetime.now(UTC) - datetime.fromisoformat(answer.json["queuedAt"]) < timedelta(minutes=1)
    assert failed().json["total"] == 0

    dispatcher.drain("default")
    shown = client.get(f"{ROOT}/messages/{message_id}", headers=bearer()).json
    assert shown["status"] == "sent"
    assert [(attempt["number"], attempt["outcome"]) for attempt in shown["attempts"]] == [
        (1, "rejected"),
        (2, "accepted"),
    ]
    (failure,) = shown["failures"]
    assert (failure["error"], failure["closedAs"], failure["closedBy"]) == ("Not today", "retried", "alice")


def test_a_retry_joins_the_end_of_its_line(
    fail: Fail,
    retry: Callable[[str], TestResponse],
    submit: Callable[..., Receipt],
    dispatcher: Dispatcher,
    upstream: Sandbox,
) -> None:
    dead = fail()
    submit(content="since then")
    assert retry(dead).status_code == 202
    dispatcher.drain("default")
    assert [entry.arrival.message.text for entry in upstream.ledger.entries] == ["since then", "Hello"]


def test_what_has_not_failed_is_409(
    submit: Callable[..., Receipt], fail: Fail, retry: Callable[[str], TestResponse]
) -> None:
    waiting, dead = submit("fan-2").message_id, fail()
    assert [retry(dead).status_code, retry(dead).status_code, retry(waiting).status_code] == [202, 409, 409]
    assert retry(waiting).json["code"] == "conflict"


def test_two_retries_at_once_queue_it_once(
    adapters: Adapters, bearer: Callable[..., dict[str, str]], fail: Fail
) -> None:
    app = create_app(adapters)
    together = threading.Barrier(4)

    def retry(message_id: str) -> int:
        together.wait()
        return app.test_client().post(f"{ROOT}/{message_id}/retry", headers=bearer("admin")).status_code

    with ThreadPoolExecutor(4) as admins:
        for n in range(10):
            dead = fail(f"fan-{n}")
            assert sorted(admins.map(retry, [dead] * 4)) == [202, 409, 409, 409]
    assert queries.counts(adapters.db, None) == {"default": {"queued": 10}}
