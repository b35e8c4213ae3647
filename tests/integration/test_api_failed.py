"""Dead letters: what failed, and sending it again."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from ulid import ULID
from werkzeug.test import TestResponse

from api.app import create_app
from deploy.sandbox import Fault, Sandbox
from workers.bootstrap import Adapters
from workers.domain.state import State
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import queries, upkeep

ROOT = "/api/onlyfans/messaging"
Fail = Callable[..., str]


@pytest.fixture
def fail(submit: Callable[..., Receipt], adapters: Adapters) -> Fail:
    """A message that was given up after one attempt, without the trouble of sending it; name only what matters."""

    def do(
        recipient_id: str = "fan-1",
        account_id: str = "default",
        *,
        reason: str = "rejected",
        at: str = "now",
        error: str | None = "Not you again",
        http_status: int | None = 422,
        **more: Any,
    ) -> str:
        message_id = submit(recipient_id, account_id=account_id, **more).message_id
        adapters.db.all(
            "WITH dead AS (UPDATE messages SET state = 'failed', ended_at = now(), attempts = 1 WHERE id = %(id)s)"
            " INSERT INTO dead_letters (message_id, account_id, reason, error, http_status, failed_at)"
            " VALUES (%(id)s, %(account)s, %(reason)s, %(error)s, %(status)s, %(at)s)",
            {
                "id": message_id,
                "account": account_id,
                "reason": reason,
                "at": at,
                "error": error,
                "status": http_status,
            },
        )
        return message_id

    return do


@pytest.fixture
def failed(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., TestResponse]:
    return lambda *claim, **query: client.get(f"{ROOT}/failed", query_string=query, headers=bearer("operator", *claim))


@pytest.fixture
def retry(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., TestResponse]:
    return lambda message_id, **body: client.post(
        f"{ROOT}/{message_id}/retry", headers=bearer("admin"), **({"json": body} if body else {})
    )


@pytest.fixture
def redrive(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., dict[str, Any]]:
    def do(**body: Any) -> dict[str, Any]:
        answer = client.post(f"{ROOT}/failed/retry", headers=bearer("admin"), json=body)
        assert answer.status_code == 202, answer.json
        return {name: value for name, value in answer.json.items() if name != "estimatedCompletionTime"}

    return do


@pytest.fixture
def dismiss(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., TestResponse]:
    return lambda message_id, reason="Left us": client.post(
        f"{ROOT}/{message_id}/dismiss", headers=bearer("admin"), json={"reason": reason}
    )


@pytest.fixture
def expired(fail: Fail, adapters: Adapters) -> Callable[..., str]:
    """A failure whose expiresAt has passed since."""

    def do(*args: Any, **more: Any) -> str:
        message_id = fail(*args, expires_at=datetime.now(UTC) + timedelta(hours=1), **more)
        past = "UPDATE messages SET expires_at = now() - interval '1 minute' WHERE id = %(id)s"
        adapters.db.all(past, {"id": message_id})
        return message_id

    return do


def ids(answer: TestResponse) -> list[str]:
    assert answer.status_code == 200, answer.json
    return [message["messageId"] for message in answer.json["messages"]]


def test_without_failures_the_list_is_empty(failed: Callable[..., TestResponse]) -> None:
    assert failed().json == {"messages": [], "total": 0, "limit": 50, "offset": 0, "nextCursor": None}


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


def test_batch_status_and_words_narrow_as_well(failed: Callable[..., TestResponse], fail: Fail) -> None:
    blocked = fail("fan-1", error="This user has BLOCKED you (code 17)", http_status=403, batch_id="may")
    percent = fail("fan-2", error="100% full; try_later", http_status=507, batch_id="may")
    silent = fail("fan-3", error=None, http_status=None, batch_id="june")
    assert ids(failed(batchId="may")) == [percent, blocked]
    assert ids(failed(batchId="june")) == [silent]
    assert ids(failed(httpStatus=403)) == [blocked]
    assert ids(failed(words="blocked")) == ids(failed(words="  you  Blocked ")) == ids(failed(words="17)")) == [blocked]
    assert ids(failed(words="blocked full")) == []
    assert ids(failed(words="%")) == ids(failed(words="0% y_l")) == [percent]  # no wildcards
    assert failed(words="blocked", batchId="may").json["total"] == 1


def test_redrive_takes_the_same_filters(redrive: Callable[..., dict[str, Any]], fail: Fail) -> None:
    fail("fan-1", error="Blocked", http_status=403, batch_id="may")
    fail("fan-2", error="Full", http_status=507, batch_id="may")
    matched = [
        redrive(**wanted, dryRun=True)["matched"]
        for wanted in ({"batchId": "may"}, {"batchId": "may", "httpStatus": 403}, {"words": "FULL"}, {"batchId": "x"})
    ]
    assert matched == [2, 1, 1, 0]
    assert redrive(words="full") == {"matched": 1, "expired": 0, "queued": 1}


def test_by_cursor_nothing_is_left_out_while_somebody_retries(
    failed: Callable[..., TestResponse], fail: Fail, retry: Callable[..., TestResponse]
) -> None:
    """By offset half of them would be: whatever is retried moves all others up by one."""
    dead = [fail(f"fan-{n}") for n in range(7)][::-1]
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = failed(limit=2, **cursor)
        for message_id in ids(page):
            assert retry(message_id).status_code == 202
        fail("fan-new")  # which goes to the front
        seen += ids(page)
        if page.json["nextCursor"] is None:
            break
        cursor = {"cursor": page.json["nextCursor"]}
    assert seen == dead


def test_the_last_page_has_no_cursor(failed: Callable[..., TestResponse], fail: Fail) -> None:
    dead = [fail(f"fan-{n}") for n in range(4)][::-1]
    first = failed(limit=2)
    last = failed(limit=2, cursor=first.json["nextCursor"])
    assert (ids(last), last.json["nextCursor"], last.json["total"]) == (dead[2:], None, 4)
    assert ids(failed(offset=1, cursor=first.json["nextCursor"])) == dead[3:]


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
        ("since", "yesterday"), ("until", "9999-12-31T23:59:59-01:00"), ("recipientId", ""), ("batchId", ""),
        ("cursor", "x"), ("cursor", "0"), ("httpStatus", 99), ("httpStatus", "x"), ("since", "2026-01-01T00:00:00"),
        ("words", ""), ("words", " "), ("words", "a b c d e f g h i j k"), ("words", "x" * 256), ("words", "a\0b"),
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


# --- expired since --------------------------------------------------------------------------------------------------


def test_a_retry_of_what_has_expired_needs_a_new_time(
    retry: Callable[..., TestResponse], expired: Callable[..., str], adapters: Adapters
) -> None:
    message_id = expired()
    refused = retry(message_id)
    assert (refused.status_code, refused.json["code"]) == (409, "conflict")
    assert refused.json["error"] == 'Its expiresAt has passed; give it a new one: {"expiresAt": "…"}'
    past = retry(message_id, expiresAt=(datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    assert (past.status_code, list(past.json["details"])) == (400, ["expiresAt"])
    assert queries.counts(adapters.db, None) == {"default": {"failed": 1}}

    new = datetime.now(UTC) + timedelta(hours=1)
    assert retry(message_id, expiresAt=new.isoformat()).status_code == 202
    [row] = adapters.db.all("SELECT state, expires_at FROM messages")
    assert (row["state"], row["expires_at"]) == ("queued", new)


def test_an_expiry_that_is_to_come_survives_a_retry(
    retry: Callable[..., TestResponse], fail: Fail, adapters: Adapters
) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    assert retry(fail(expires_at=later)).status_code == 202
    [row] = adapters.db.all("SELECT expires_at FROM messages")
    assert row["expires_at"] == later


def test_a_redrive_leaves_out_what_has_expired_and_says_how_many(
    redrive: Callable[..., dict[str, Any]], expired: Callable[..., str], fail: Fail, adapters: Adapters
) -> None:
    dead = {expired("fan-1"), expired("fan-2")}
    fail("fan-3")
    fail("fan-4", expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert redrive(dryRun=True) == {"matched": 4, "expired": 2, "queued": 0}
    assert redrive() == {"matched": 4, "expired": 2, "queued": 2}
    assert {row["id"] for row in adapters.db.all("SELECT id FROM messages WHERE state = 'failed'")} == dead
    assert redrive() == {"matched": 2, "expired": 2, "queued": 0}


@pytest.mark.parametrize("body", [b"", b"{}"])
@pytest.mark.parametrize("content_type", ["application/json", None])
def test_a_retry_needs_no_body(
    client: FlaskClient, bearer: Callable[..., dict[str, str]], fail: Fail, body: bytes, content_type: str | None
) -> None:
    answer = client.post(f"{ROOT}/{fail()}/retry", headers=bearer("admin"), data=body, content_type=content_type)
    assert answer.status_code == (415 if body and not content_type else 202)


def test_a_redrive_of_many_takes_them_some_at_a_time_and_each_once(
    redrive: Callable[..., dict[str, Any]], adapters: Adapters
) -> None:
    adapters.db.all("""
        WITH dead AS (
            INSERT INTO messages (id, account_id, recipient_id, priority, state, content, due_at, ended_at)
            SELECT 'msg_' || lpad(n::text, 26, '0'), 'default', 'fan-' || n, 5, 'failed', 'x', now(), now()
            FROM generate_series(1, 1234) n RETURNING id
        )
        INSERT INTO dead_letters (message_id, account_id, reason, error)
        SELECT id, 'default', 'rejected', 'Not you again' FROM dead""")
    assert redrive(dryRun=True) == {"matched": 1234, "expired": 0, "queued": 0}
    assert redrive(words="again") == {"matched": 1234, "expired": 0, "queued": 1234}
    assert queries.counts(adapters.db, None) == {"default": {"queued": 1234}}
    assert redrive() == {"matched": 0, "expired": 0, "queued": 0}


# --- dismissed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["rejected", "retries_exhausted", "outcome_unknown"])
def test_a_failure_of_any_kind_can_be_dismissed(
    client: FlaskClient, bearer: Callable[..., dict[str, str]], fail: Fail, dismiss: Callable[..., TestResponse],
    failed: Callable[..., TestResponse], retry: Callable[..., TestResponse], reason: str,
) -> None:  # fmt: skip
    message_id = fail(reason=reason)
    answer = dismiss(message_id, "She left us")
    assert (answer.status_code, answer.json) == (200, {"messageId": message_id, "status": "cancelled"})
    assert failed().json["total"] == 0
    assert client.get(f"{ROOT}/status", headers=bearer()).json["queue"]["dlqCount"] == 0
    shown = client.get(f"{ROOT}/messages/{message_id}", headers=bearer()).json
    assert shown["status"] == "cancelled"
    [failure] = shown["failures"]
    assert (failure["reason"], failure["closedAs"], failure["closedBy"]) == (reason, "dismissed", "alice")
    [entry] = client.get(f"{ROOT}/audit?action=dismiss", headers=bearer("admin")).json["entries"]
    assert (entry["messageId"], entry["details"], entry["subject"]) == (message_id, {"reason": "She left us"}, "alice")
    assert [dismiss(message_id).status_code, retry(message_id).status_code] == [409, 409]


def test_what_has_not_failed_cannot_be_dismissed(
    submit: Callable[..., Receipt], dismiss: Callable[..., TestResponse], adapters: Adapters
) -> None:
    answer = dismiss(submit().message_id)
    assert answer.status_code == 409
    assert answer.json["error"] == "Only failed messages can be dismissed; this one is queued"
    assert adapters.db.all("SELECT id FROM audit WHERE action = 'dismiss'") == []


def test_a_reason_is_needed(client: FlaskClient, bearer: Callable[..., dict[str, str]], fail: Fail) -> None:
    message_id = fail()
    bodies: tuple[dict[str, Any], ...] = ({}, {"reason": ""}, {"reason": None})
    for body in bodies:
        answer = client.post(f"{ROOT}/{message_id}/dismiss", headers=bearer("admin"), json=body)
        assert (answer.status_code, list(answer.json["details"])) == (400, ["reason"])


def test_dismissed_ones_are_pruned_like_finished_ones_and_failures_stay(
    fail: Fail, dismiss: Callable[..., TestResponse], adapters: Adapters
) -> None:
    old = str(ULID.from_timestamp(time.time() - 40 * 86_400))[:10]
    dismissed, kept = fail("fan-1"), fail("fan-2")
    assert dismiss(dismissed).status_code == 200
    for n, message_id in enumerate((dismissed, kept)):
        adapters.db.all(
            "WITH letter AS (DELETE FROM dead_letters WHERE message_id = %(id)s) "
            "UPDATE messages SET id = %(new)s, ended_at = now() - interval '40 days' WHERE id = %(id)s",
            {"id": message_id, "new": f"msg_{old}{n:016d}"},
        )
    assert upkeep.prune(adapters.db, 30 * 86_400.0, most=10) == 1
    assert [row["state"] for row in adapters.db.all("SELECT state FROM messages")] == ["failed"]


def test_two_at_once_one_dismisses_or_one_retries(
    adapters: Adapters, bearer: Callable[..., dict[str, str]], fail: Fail
) -> None:
    app = create_app(adapters)
    together = threading.Barrier(2)

    def decide(message_id: str, path: str, body: dict[str, str]) -> int:
        together.wait()
        return app.test_client().post(f"{ROOT}/{message_id}/{path}", headers=bearer("admin"), json=body).status_code

    with ThreadPoolExecutor(2) as admins:
        for n in range(10):
            dead = fail(f"fan-{n}")
            answers = list(admins.map(decide, [dead] * 2, ["retry", "dismiss"], [{}, {"reason": "x"}]))
            assert sorted(answers) in ([200, 409], [202, 409])
    assert State.FAILED not in queries.counts(adapters.db, None).get("default", {})
