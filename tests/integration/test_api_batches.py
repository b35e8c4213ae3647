"""Batches: how one stands, and cancelling what still waits of it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from deploy.sandbox import Sandbox
from workers.bootstrap import Adapters
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import closures, queries

ROOT = "/api/onlyfans/messaging"
NONE = dict.fromkeys(("queued", "sending", "sent", "failed", "cancelled", "expired"), 0)
Submit = Callable[..., Receipt]
Ask = Callable[..., TestResponse]


@pytest.fixture
def batch(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Ask:
    """GET or DELETE of a batch, by an operator with these accounts."""

    def ask(method: str, batch_id: str, *claim: str) -> TestResponse:
        path = f"{ROOT}/batches/{quote(batch_id, safe='')}"
        return client.open(path, method=method, headers=bearer("operator", *claim))

    return ask


def newsletter(submit: Submit, n: int, batch_id: str = "may", **more: Any) -> list[str]:
    return [submit(f"fan-{k}", batch_id=batch_id, **more).message_id for k in range(n)]


def doubt(adapters: Adapters, message_id: str) -> None:
    """It waits to be tried again after an attempt that got no answer."""
    adapters.db.all("UPDATE messages SET attempts = 1, tries = 1 WHERE id = %(id)s", {"id": message_id})
    adapters.db.all(
        "INSERT INTO attempts (message_id, account_id, number, token, worker, deadline_at, outcome, ended_at)"
        " SELECT id, account_id, 1, 't', 1, now(), 'unknown', now() FROM messages WHERE id = %(id)s",
        {"id": message_id},
    )


def test_a_batch_is_counted_by_status(batch: Ask, submit: Submit, dispatcher: Dispatcher, adapters: Adapters) -> None:
    newsletter(submit, 3)
    submit("bounce-1", batch_id="may")
    dispatcher.drain("default")
    submit("fan-1", batch_id="may")
    later = submit("fan-1", batch_id="may", send_at=datetime.now(UTC) + timedelta(hours=3))
    submit("fan-1", batch_id="june")
    shown = batch("GET", "may")
    assert shown.status_code == 200
    assert shown.json == {
        "batchId": "may",
        "total": 6,
        "counts": NONE | {"sent": 3, "failed": 1, "queued": 2},
        "estimatedCompletionTime": shown.json["estimatedCompletionTime"],
    }
    ends = datetime.fromisoformat(shown.json["estimatedCompletionTime"])
    assert abs(ends - (datetime.now(UTC) + timedelta(hours=3))) < timedelta(seconds=10)
    assert later.message_id


def test_the_end_of_a_batch_is_that_of_its_last_message_on_whatever_account(
    batch: Ask, submit: Submit, make_account: Callable[..., str], client: FlaskClient, bearer: Callable[..., Any]
) -> None:
    quick, slow = make_account(limits="10/minute"), make_account(limits="1/hour")
    for account_id in (quick, slow):
        newsletter(submit, 3, account_id=account_id)
    listed = client.get(f"{ROOT}/messages?batchId=may", headers=bearer()).json["messages"]
    ends = batch("GET", "may").json["estimatedCompletionTime"]
    last = max(message["estimatedSendTime"] for message in listed)
    assert abs(datetime.fromisoformat(ends) - datetime.fromisoformat(last)) < timedelta(seconds=2)
    assert batch("GET", "may", quick).json["total"] == 3
    assert batch("GET", "may", quick).json["estimatedCompletionTime"] < ends


def test_nobody_can_say_when_a_paused_batch_ends(batch: Ask, submit: Submit, adapters: Adapters) -> None:
    newsletter(submit, 2)
    closures.pause(adapters.db, "default", "for tests")
    assert batch("GET", "may").json["estimatedCompletionTime"] is None
    assert batch("DELETE", "may").json == {"cancelled": 2}
    assert batch("GET", "may").json["estimatedCompletionTime"] is None


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_batch_is_404(batch: Ask, submit: Submit, make_account: Callable[..., str], method: str) -> None:
    make_account("a")
    newsletter(submit, 1)
    for answer in (batch(method, "june"), batch(method, "may", "a"), batch(method, "may\0")):
        assert (answer.status_code, answer.json["code"]) == (404, "not_found")
    assert batch("GET", "may").json["counts"]["queued"] == 1


@pytest.mark.parametrize("batch_id", ["2026/05/news letter", "a/", "ünï", "%41", "x?y#z", "..", "x" * 255])
def test_a_batch_may_have_any_name(batch: Ask, submit: Submit, batch_id: str) -> None:
    newsletter(submit, 2, batch_id)
    shown = batch("GET", batch_id)
    assert (shown.status_code, shown.json["batchId"]) == (200, batch_id)
    assert batch("DELETE", batch_id).json == {"cancelled": 2}


def test_a_wrong_newsletter_of_5000_is_cancelled_by_one_request(
    batch: Ask, client: FlaskClient, bearer: Callable[..., dict[str, str]], adapters: Adapters, submit: Submit
) -> None:
    other = submit("fan-0").message_id
    listed = [{"recipientId": f"fan-{n % 4000}", "content": "Oops", "batchId": "may"} for n in range(5000)]
    assert client.post(f"{ROOT}/send/bulk", json={"messages": listed}, headers=bearer()).status_code == 202
    before = client.get("/metrics").text
    assert batch("DELETE", "may").json == {"cancelled": 5000}
    assert batch("GET", "may").json["counts"] == NONE | {"cancelled": 5000}
    assert queries.counts(adapters.db, None) == {"default": {"queued": 1}}
    [waiting] = adapters.db.all("SELECT id FROM messages WHERE state = 'queued'")
    assert waiting["id"] == other
    entries = adapters.db.all("SELECT subject, details FROM audit WHERE action = 'cancel_batch'")
    assert sum(entry["details"]["messages"] for entry in entries) == 5000
    assert {(entry["subject"], entry["details"]["batchId"]) for entry in entries} == {("alice", "may")}
    assert cancelled(client.get("/metrics").text) - cancelled(before) == 5000
    assert batch("DELETE", "may").json == {"cancelled": 0}


def cancelled(metrics: str) -> float:
    name = 'paceline_messages_processed_total{outcome="cancelled"} '
    return sum(float(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name))


def test_only_what_waits_and_is_certain_is_cancelled(
    batch: Ask, submit: Submit, dispatcher: Dispatcher, adapters: Adapters
) -> None:
    [sent] = newsletter(submit, 1)
    dispatcher.drain("default")
    doubtful = submit("fan-2", batch_id="may").message_id
    doubt(adapters, doubtful)
    scheduled = submit("fan-3", batch_id="may", send_at=datetime.now(UTC) + timedelta(hours=1)).message_id
    assert batch("DELETE", "may").json == {"cancelled": 1}
    states = {row["id"]: row["state"] for row in adapters.db.all("SELECT id, state FROM messages")}
    assert states == {sent: "sent", doubtful: "queued", scheduled: "cancelled"}


def test_whoever_stood_behind_a_cancelled_one_goes(
    batch: Ask, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    for _ in range(3):
        submit("fan-1", content="wrong", batch_id="may")
    submit("fan-1", content="right")
    assert batch("DELETE", "may").json == {"cancelled": 3}
    dispatcher.drain("default")
    assert [entry.arrival.message.text for entry in upstream.ledger.entries] == ["right"]


def test_a_batch_of_several_tenants_is_cancelled_for_each_alone(
    batch: Ask, submit: Submit, make_account: Callable[..., str]
) -> None:
    for account_id in ("a", "b"):
        make_account(account_id)
        newsletter(submit, 2, account_id=account_id)
    assert batch("DELETE", "may", "a").json == {"cancelled": 2}
    assert batch("GET", "may", "b").json["counts"] == NONE | {"queued": 2}
    assert batch("GET", "may").json["counts"] == NONE | {"queued": 2, "cancelled": 2}
