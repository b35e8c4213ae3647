"""PATCH /messages/<id>: what still waits can be changed, and moves to where it belongs then."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from deploy.sandbox import Sandbox
from tests.integration.test_api_batches import doubt
from workers.bootstrap import Adapters
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import queries

LIST = "/api/onlyfans/messaging/messages"
Submit = Callable[..., Receipt]
Patch = Callable[..., TestResponse]


@pytest.fixture
def patch(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Patch:
    def do(receipt: Receipt, **body: Any) -> TestResponse:
        return client.patch(f"{LIST}/{receipt.message_id}", json=body, headers=bearer("operator"))

    return do


def at(**away: float) -> str:
    moment = datetime.now(UTC) + timedelta(**away)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def states(adapters: Adapters) -> list[str]:
    return [row["state"] for row in adapters.db.all("SELECT state FROM messages ORDER BY seq")]


def sent(upstream: Sandbox) -> list[str]:
    return [entry.arrival.message.text for entry in upstream.ledger.entries]


def test_what_is_named_changes_and_all_else_stays(patch: Patch, submit: Submit, client: FlaskClient) -> None:
    receipt = submit(content="Helo", batch_id="b", metadata={"a": 1}, media_ids=("m-1",))
    answer = patch(receipt, content="Hello")
    assert answer.status_code == 200
    assert (answer.json["messageId"], answer.json["content"]) == (receipt.message_id, "Hello")
    kept = {name: answer.json[name] for name in ("batchId", "metadata", "mediaIds", "priority", "status", "position")}
    assert kept == {
        "batchId": "b", "metadata": {"a": 1}, "mediaIds": ["m-1"], "priority": 5, "status": "queued", "position": 1,
    }  # fmt: skip


def test_what_is_sent_is_what_it_was_changed_to(
    patch: Patch, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    patch(submit(content="Helo"), content="Hello")
    dispatcher.drain("default")
    assert sent(upstream) == ["Hello"]


def test_null_clears_a_time(patch: Patch, submit: Submit, adapters: Adapters, dispatcher: Dispatcher) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    receipt = submit(send_at=later, expires_at=later + timedelta(hours=1))
    answer = patch(receipt, sendAt=None, expiresAt=None)
    assert (answer.json["sendAt"], answer.json["expiresAt"], answer.json["blockedBy"]) == (None, None, None)
    assert states(adapters) == ["queued"]
    dispatcher.drain("default")
    assert states(adapters) == ["sent"]


def test_a_new_send_at_puts_it_off_and_whoever_stood_behind_goes(
    patch: Patch, submit: Submit, adapters: Adapters, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    first = submit(content="first")
    submit(content="second")
    tomorrow = at(days=1)
    answer = patch(first, sendAt=tomorrow)
    assert (answer.json["sendAt"], answer.json["blockedBy"]) == (tomorrow, "schedule")
    assert states(adapters) == ["scheduled", "queued"]
    dispatcher.drain("default")
    assert sent(upstream) == ["second"]
    assert patch(first, sendAt=at(days=2)).status_code == 200
    assert states(adapters) == ["scheduled", "sent"]


def test_a_new_priority_moves_it_to_another_line_which_may_have_a_head(
    patch: Patch, submit: Submit, adapters: Adapters, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    """Of each line exactly one member is its head, whatever moves."""
    low = [submit(content=f"low-{n}") for n in range(3)]
    high = submit(content="high", priority=9)
    assert states(adapters) == ["queued", "held", "held", "queued"]
    assert patch(low[0], priority=9).json["blockedBy"] == "ordering"  # behind `high`, which is head of that line
    assert states(adapters) == ["held", "queued", "held", "queued"]
    assert patch(high, priority=5).json["priority"] == 5
    assert states(adapters) == ["queued", "queued", "held", "held"]
    assert queries.counts(adapters.db, None) == {"default": {"queued": 2, "held": 2}}
    for _ in range(3):
        dispatcher.drain("default")
    assert [text for text in sent(upstream) if text != "low-0"] == ["low-1", "low-2", "high"]  # within a line by age
    assert len(sent(upstream)) == 4
    assert queries.counts(adapters.db, None) == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"content": ""}, "content"), ({"content": None}, "content"), ({"priority": 11}, "priority"),
        ({"priority": None}, "priority"), ({"recipientId": "fan-2"}, "recipientId"), ({"mediaIds": []}, "mediaIds"),
        ({"sendAt": "2030-01-01T00:00:00"}, "sendAt"), ({"sendAt": "2020-01-01T00:00:00Z"}, "sendAt"),
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt"), ({"content": "a\0b"}, "content"),
        ({"sendAt": "2030-01-02T00:00:00Z", "expiresAt": "2030-01-01T00:00:00Z"}, "expiresAt"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_400_and_changes_nothing(
    patch: Patch, submit: Submit, adapters: Adapters, body: dict[str, Any], field: str
) -> None:
    receipt = submit()
    before = adapters.db.all("SELECT * FROM messages")
    answer = patch(receipt, **body)
    assert (answer.status_code, list(answer.json["details"])) == (400, [field])
    assert adapters.db.all("SELECT * FROM messages") == before


def test_a_time_is_held_against_the_one_that_stays(patch: Patch, submit: Submit) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    receipt = submit(send_at=soon, expires_at=soon + timedelta(hours=1))
    assert patch(receipt, sendAt=at(hours=3)).json["details"] == {"expiresAt": ["Must be after sendAt."]}
    assert patch(receipt, expiresAt=at(minutes=30)).json["details"] == {"expiresAt": ["Must be after sendAt."]}
    assert patch(receipt, sendAt=at(hours=3), expiresAt=at(hours=4)).status_code == 200


def test_words_can_be_empty_beside_media(patch: Patch, submit: Submit) -> None:
    assert patch(submit(media_ids=("m-1",)), content="").json["content"] == ""


def test_what_does_not_wait_is_409(
    patch: Patch, submit: Submit, dispatcher: Dispatcher, adapters: Adapters, client: FlaskClient,
    bearer: Callable[..., dict[str, str]],
) -> None:  # fmt: skip
    gone, cancelled = submit(), submit("fan-2", send_at=datetime.now(UTC) + timedelta(hours=1))
    dispatcher.drain("default")
    client.delete(f"{LIST}/{cancelled.message_id}", headers=bearer())
    doubtful = submit("fan-3")
    doubt(adapters, doubtful.message_id)
    refused = {receipt: patch(receipt, content="x") for receipt in (gone, cancelled, doubtful)}
    assert {answer.status_code for answer in refused.values()} == {409}
    assert refused[gone].json["error"] == "Only waiting messages can be changed; this one is sent"
    assert refused[doubtful].json["error"].startswith("It may have been sent already")
    assert "x" not in {row["content"] for row in adapters.db.all("SELECT content FROM messages")}


def test_words_that_may_have_arrived_stay_also_after_an_admin_has_queued_them_again(
    patch: Patch, submit: Submit, adapters: Adapters
) -> None:
    """The upstream may know these words by the idempotency key that the next attempt has as well."""
    receipt = submit()
    doubt(adapters, receipt.message_id)
    adapters.db.all("UPDATE messages SET tries = 0")  # as a retry does
    refused = patch(receipt, content="x")
    assert (refused.status_code, refused.json["code"]) == (409, "conflict")
    assert patch(receipt, priority=9).status_code == 200


def test_a_change_is_audited_without_its_words(patch: Patch, submit: Submit, adapters: Adapters) -> None:
    receipt = submit()
    patch(receipt, content="secret words", priority=7)
    patch(receipt, content="secret words", priority=7)  # which changes nothing
    patch(receipt)
    [entry] = adapters.db.all("SELECT * FROM audit WHERE action = 'amend'")
    assert (entry["message_id"], entry["subject"]) == (receipt.message_id, "alice")
    assert entry["details"] == {"changed": ["content", "priority"]}


def test_a_retry_that_is_to_come_keeps_its_time(patch: Patch, submit: Submit, adapters: Adapters) -> None:
    receipt = submit()
    adapters.db.all("UPDATE messages SET due_at = now() + interval '1 hour', tries = 1, attempts = 1")
    assert patch(receipt, priority=9).json["blockedBy"] == "retry"
    [row] = adapters.db.all("SELECT due_at > now() + interval '50 minutes' AS waits, state FROM messages")
    assert row == {"waits": True, "state": "queued"}


def test_many_who_change_and_send_at_once_leave_each_line_one_head(
    adapters: Adapters, bearer: Callable[..., dict[str, str]], submit: Submit
) -> None:
    app = create_app(adapters)
    receipts = [submit("fan-1", priority=5 + n % 2) for n in range(12)]
    together = threading.Barrier(6)

    def change(n: int) -> set[int]:
        client = app.test_client()
        together.wait()
        found = set()
        for k, receipt in enumerate(receipts[n::3]):
            later = {"sendAt": at(hours=1)} if (n + k) % 3 == 0 else {"priority": 5 + (n + k) % 2}
            found.add(client.patch(f"{LIST}/{receipt.message_id}", json=later, headers=bearer()).status_code)
            submit("fan-1", priority=5 + k % 2)
        return found

    with ThreadPoolExecutor(6) as pool:
        assert set.union(*pool.map(change, range(6))) == {200}
    lines = adapters.db.all(
        "SELECT priority, count(*) FILTER (WHERE state = 'queued') AS heads FROM messages"
        " WHERE state IN ('held', 'queued') GROUP BY priority"
    )
    assert [line["heads"] for line in lines] == [1] * len(lines)
    tallied = queries.counts(adapters.db, None)["default"]
    counted = {
        row["state"]: row["n"] for row in adapters.db.all("SELECT state, count(*) AS n FROM messages GROUP BY 1")
    }
    assert tallied == counted
