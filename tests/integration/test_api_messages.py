"""What became of messages: the list, one message whole, and cancelling one that still waits."""

from collections.abc import Callable
from dataclasses import replace
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
from workers.store import closures
from workers.store.session import Database

LIST = "/api/onlyfans/messaging/messages"
WHOLE = {
    "messageId", "accountId", "recipientId", "content", "mediaIds", "priority", "status", "batchId", "metadata",
    "queuedAt", "sendAt", "expiresAt", "sentAt", "endedAt", "attemptCount", "upstreamId",
    "attempts", "deferrals", "failures", "position", "estimatedSendTime", "blockedBy",
}  # fmt: skip
LISTED = WHOLE - {"attempts", "deferrals", "failures"}
Submit = Callable[..., Receipt]


@pytest.fixture
def get(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., TestResponse]:
    """The list, filtered, or one message, as a caller with these accounts sees it."""

    def do(message_id: str = "", claim: tuple[str, ...] = (), **query: Any) -> TestResponse:
        return client.get(
            f"{LIST}/{message_id}" if message_id else LIST, query_string=query, headers=bearer("operator", *claim)
        )

    return do


@pytest.fixture
def whole(get: Callable[..., TestResponse]) -> Callable[[Receipt], dict[str, Any]]:
    def do(receipt: Receipt) -> dict[str, Any]:
        answer = get(receipt.message_id)
        assert answer.status_code == 200
        return answer.json

    return do


@pytest.fixture
def delete(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[[Receipt], TestResponse]:
    return lambda receipt: client.delete(f"{LIST}/{receipt.message_id}", headers=bearer("operator"))


def ids(answer: TestResponse) -> list[str]:
    assert answer.status_code == 200, answer.json
    return [message["messageId"] for message in answer.json["messages"]]


# --- the list -------------------------------------------------------------------------------------------------------


def test_newest_first(get: Callable[..., TestResponse], submit: Submit) -> None:
    sent = [submit(f"fan-{n}").message_id for n in range(3)]
    assert ids(get()) == sent[::-1]
    assert get().json["nextCursor"] is None
    assert set(get().json["messages"][0]) == LISTED


def test_the_list_says_of_each_that_waits_what_the_message_itself_says(
    get: Callable[..., TestResponse], submit: Submit, make_account: Callable[..., str], dispatcher: Dispatcher,
    adapters: Adapters,
) -> None:  # fmt: skip
    submit("fan-0")
    dispatcher.drain("default")
    for account_id, limits in (("a", "1/hour"), ("b", "10/minute"), ("paused", "10/minute")):
        make_account(account_id, limits=limits)
        for n in range(4):
            submit(f"fan-{n % 2}", account_id=account_id, priority=5 + n // 3)
        submit("fan-9", account_id=account_id, send_at=datetime.now(UTC) + timedelta(hours=1))
    closures.pause(adapters.db, "paused", "for tests")
    listed = get().json["messages"]
    assert len(listed) == 16
    for message in listed:
        alone = get(message["messageId"]).json
        assert (message["position"], message["blockedBy"]) == (alone["position"], alone["blockedBy"])
        ends = [answer["estimatedSendTime"] for answer in (message, alone)]
        moments = [end and datetime.fromisoformat(end).timestamp() for end in ends]
        assert moments[0] == pytest.approx(moments[1], abs=3)
    assert {message["blockedBy"] for message in listed} == {None, "rate", "ordering", "schedule", "paused"}
    assert [message["position"] for message in listed if message["status"] == "sent"] == [None]


def test_a_page_of_200_takes_as_many_questions_as_one_of_4(
    adapters: Adapters, bearer: Callable[..., dict[str, str]], make_account: Callable[..., str]
) -> None:
    for n in range(4):
        make_account(f"a{n}")
    counting = Counting(adapters.db.url)
    client = create_app(replace(adapters, db=counting)).test_client()
    wanted = [{"recipientId": f"fan-{n}", "content": "x", "accountId": f"a{n % 4}"} for n in range(200)]
    path = "/api/onlyfans/messaging/send/bulk"
    assert client.post(path, json={"messages": wanted}, headers=bearer()).status_code == 202

    def questions(limit: int) -> tuple[int, int]:
        """Put to PostgreSQL and to Redis, whose own count includes the one that reads it."""
        statements, commands = counting.statements, adapters.redis.info("stats")["total_commands_processed"]
        page = client.get(LIST, query_string={"limit": limit}, headers=bearer()).json["messages"]
        assert len([message for message in page if message["position"]]) == limit
        return (
            counting.statements - statements,
            adapters.redis.info("stats")["total_commands_processed"] - commands,
        )

    few, many = questions(4), questions(200)
    counting.close()
    assert many == few
    assert few[0] <= 3


class Counting(Database):
    statements = 0

    def all(self, *args: Any, **more: Any) -> Any:
        self.statements += 1
        return super().all(*args, **more)

    def select(self, *args: Any, **more: Any) -> Any:
        self.statements += 1
        return super().select(*args, **more)


def test_every_filter_narrows(
    get: Callable[..., TestResponse], submit: Submit, make_account: Callable[..., str], dispatcher: Dispatcher
) -> None:
    make_account("a")
    sent = submit("fan-1")
    dispatcher.drain("default")
    held = [submit("fan-2", batch_id="b").message_id for _ in range(2)]
    later = submit("fan-1", send_at=datetime.now(UTC) + timedelta(hours=1))
    other = submit("fan-1", account_id="a", batch_id="b")

    assert ids(get(status="sent")) == [sent.message_id]
    assert ids(get(status="queued")) == [other.message_id, later.message_id, *held[::-1]]
    assert ids(get(status="failed")) == []
    assert ids(get(recipientId="fan-1")) == [other.message_id, later.message_id, sent.message_id]
    assert ids(get(accountId="a")) == [other.message_id]
    assert ids(get(batchId="b")) == [other.message_id, *held[::-1]]
    assert ids(get(batchId="b", accountId="default", recipientId="fan-2", status="queued", limit=1)) == [held[1]]


def test_the_cursor_leads_through_all_without_gap_or_repeat(get: Callable[..., TestResponse], submit: Submit) -> None:
    sent = [submit(f"fan-{n}").message_id for n in range(10)]
    found, cursor = [], {}
    while True:
        page = get(limit=3, **cursor)
        found += ids(page)
        submit("fan-new")
        if page.json["nextCursor"] is None:
            break
        cursor = {"cursor": page.json["nextCursor"]}
    assert found == sent[::-1]


def test_a_page_that_is_just_full_is_the_last(get: Callable[..., TestResponse], submit: Submit) -> None:
    for n in range(2):
        submit(f"fan-{n}")
    assert [get(limit=n).json["nextCursor"] is None for n in (1, 2, 3)] == [False, True, True]


@pytest.mark.parametrize("limit", [1, 200])
def test_limit_up_to_the_edge(get: Callable[..., TestResponse], limit: int) -> None:
    assert get(limit=limit).status_code == 200


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *(("limit", value) for value in (0, 201, -1, "x", "", "5.0", "1e2", "9" * 5000)),
        *(("cursor", value) for value in ("", "x", "msg_", "msg_01ARZ3NDEKTSV4RRFFQ69G5FAVX", "msg_' OR 1=1 --")),
        *(("status", value) for value in ("", "held", "Queued", "scheduled")),
        *((name, value) for name in ("recipientId", "batchId") for value in ("", "x" * 256, "a\0b")),
        ("accountId", "a\0b"),
        ("accountID", "default"),
        ("offset", 5),
        ("limit", ["5", "6"]),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_query_that_makes_no_sense_is_400(get: Callable[..., TestResponse], parameter: str, value: Any) -> None:
    answer = get(**{parameter: value})
    assert (answer.status_code, list(answer.json["details"])) == (400, [parameter])


def test_the_list_ends_where_the_claim_does(
    get: Callable[..., TestResponse], submit: Submit, make_account: Callable[..., str]
) -> None:
    for name in ("a", "b"):
        make_account(name)
    on = {name: submit(account_id=name, batch_id="shared").message_id for name in ("a", "b", "default")}
    for asked in (
        {},
        {"batchId": "shared"},
        {"recipientId": "fan-1"},
        {"status": "queued"},
        {"cursor": "msg_" + "Z" * 26},
    ):
        assert ids(get(claim=("a",), **asked)) == [on["a"]]
        assert ids(get(claim=("a", "default"), **asked)) == [on["default"], on["a"]]
        assert len(ids(get(**asked))) == 3


# --- one message ----------------------------------------------------------------------------------------------------


def test_while_it_waits_it_says_where_and_why(whole: Callable[..., Any], submit: Submit, adapters: Adapters) -> None:
    first, behind, later = submit(), submit(), submit("fan-2", send_at=datetime.now(UTC) + timedelta(hours=1))
    shown = whole(first)
    assert set(shown) == WHOLE
    assert (shown["status"], shown["position"], shown["blockedBy"]) == ("queued", 1, None)
    assert shown["estimatedSendTime"] is not None
    assert (shown["attempts"], shown["deferrals"], shown["failures"]) == ([], [], [])
    assert (whole(behind)["position"], whole(behind)["blockedBy"]) == (2, "ordering")
    assert (whole(later)["position"], whole(later)["blockedBy"]) == (3, "schedule")
    closures.pause(adapters.db, "default", "for tests")
    assert (whole(first)["blockedBy"], whole(first)["estimatedSendTime"]) == ("paused", None)


def test_once_sent_it_has_its_attempt_and_no_place(
    whole: Callable[..., Any], submit: Submit, dispatcher: Dispatcher
) -> None:
    receipt = submit()
    dispatcher.drain("default")
    shown = whole(receipt)
    assert (shown["status"], shown["attemptCount"]) == ("sent", 1)
    assert (shown["position"], shown["estimatedSendTime"], shown["blockedBy"]) == (None, None, None)
    assert None not in (shown["sentAt"], shown["endedAt"], shown["upstreamId"])
    (attempt,) = shown["attempts"]
    assert attempt == {
        "number": 1,
        "time": attempt["time"],
        "outcome": "accepted",
        "httpStatus": 200,
        "latencyMs": attempt["latencyMs"],
        "error": None,
    }
    assert attempt["time"].endswith("Z")
    assert attempt["latencyMs"] >= 0


def test_a_deferral_is_not_an_attempt(
    whole: Callable[..., Any], submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    upstream.faults.add(Fault("status", status=429, retry_after_s=30, error="Slow down"))
    receipt = submit()
    dispatcher.drain("default")
    shown = whole(receipt)
    assert (shown["status"], shown["attempts"], shown["blockedBy"]) == ("queued", [], "cooldown")
    (deferral,) = shown["deferrals"]
    assert deferral == {"time": deferral["time"], "reason": "throttled", "httpStatus": 429, "error": "Slow down"}


def test_a_failure_is_told_in_the_upstreams_words(
    whole: Callable[..., Any], submit: Submit, dispatcher: Dispatcher
) -> None:
    receipt = submit("bounce-1")
    dispatcher.drain("default")
    shown = whole(receipt)
    assert (shown["status"], shown["sentAt"], shown["position"]) == ("failed", None, None)
    (failure,) = shown["failures"]
    assert failure == {
        "failedAt": failure["failedAt"],
        "reason": "rejected",
        "error": "This user does not accept messages",
        "httpStatus": shown["attempts"][0]["httpStatus"],
        "closedAt": None,
        "closedAs": None,
        "closedBy": None,
    }


def test_while_it_is_being_sent_it_is_sending(whole: Callable[..., Any], submit: Submit, adapters: Adapters) -> None:
    receipt = submit()
    adapters.db.all("UPDATE messages SET state = 'verifying'")
    assert (whole(receipt)["status"], whole(receipt)["position"]) == ("sending", None)


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_what_waits_can_be_cancelled(
    delete: Callable[..., TestResponse],
    whole: Callable[..., Any],
    submit: Submit,
    dispatcher: Dispatcher,
    upstream: Sandbox,
) -> None:
    queued, held, scheduled = submit(), submit(), submit(send_at=datetime.now(UTC) + timedelta(hours=1))
    for receipt in (queued, held, scheduled):
        answer = delete(receipt)
        assert (answer.status_code, answer.json) == (200, {"messageId": receipt.message_id, "status": "cancelled"})
        assert whole(receipt)["status"] == "cancelled"
    dispatcher.drain("default")
    assert upstream.ledger.entries == []


def test_the_next_in_line_takes_over(
    delete: Callable[..., TestResponse], whole: Callable[..., Any], submit: Submit, dispatcher: Dispatcher
) -> None:
    first, second = submit(), submit()
    delete(first)
    assert (whole(second)["position"], whole(second)["blockedBy"]) == (1, None)
    dispatcher.drain("default")
    assert whole(second)["status"] == "sent"


@pytest.mark.parametrize("state", ["sending", "verifying", "cancelled", "expired", "failed", "sent"])
def test_what_is_on_its_way_or_over_is_409(
    delete: Callable[..., TestResponse], whole: Callable[..., Any], submit: Submit, adapters: Adapters, state: str
) -> None:
    receipt = submit()
    over = state not in ("sending", "verifying")
    adapters.db.all(
        "UPDATE messages SET state = %(state)s, ended_at = CASE WHEN %(over)s THEN now() END,"
        " sent_at = CASE WHEN %(state)s = 'sent' THEN now() END",
        {"state": state, "over": over},
    )
    answer = delete(receipt)
    assert (answer.status_code, answer.json["code"]) == (409, "conflict")
    assert whole(receipt)["status"] == (state if over else "sending")
