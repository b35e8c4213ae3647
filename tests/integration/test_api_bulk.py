"""POST /send/bulk: a list of messages is queued as it stands, or not at all."""

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import structlog
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from api import schemas
from api.app import create_app
from deploy.sandbox import Sandbox
from ratelimit import Limits
from tests.conftest import ALICE, origin
from workers.bootstrap import Adapters
from workers.domain.filters import AuditFilter
from workers.services.dispatch import Dispatcher
from workers.services.estimate import BlockedBy
from workers.services.submit import Receipt
from workers.store import accept, audit, closures, lines, queries
from workers.store.claims import claim_next
from workers.store.session import Row

ROOT = "/api/onlyfans/messaging"
Send = Callable[..., TestResponse]
Submit = Callable[..., Receipt]


@pytest.fixture
def bulk(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Send:
    """Send these; a message that is a string is one to that recipient."""

    def do(*wanted: Any, key: str | None = None, claim: tuple[str, ...] = (), **headers: str) -> TestResponse:
        listed = [{"recipientId": m, "content": f"Hello {m}"} if isinstance(m, str) else m for m in wanted]
        keyed = {} if key is None else {"Idempotency-Key": key}
        return client.post(
            f"{ROOT}/send/bulk", json={"messages": listed}, headers=bearer("operator", *claim) | keyed | headers
        )

    return do


def rows(adapters: Adapters) -> list[Row]:
    """Everything there is, in the order of acceptance."""
    return adapters.db.all("SELECT * FROM messages ORDER BY seq")


def ids(answer: TestResponse) -> list[str]:
    assert answer.status_code == 202, answer.json
    return [message["messageId"] for message in answer.json["messages"]]


def wrong(answer: TestResponse) -> dict[str, Any]:
    """What a 400 says of which message."""
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request"), answer.json
    return answer.json["details"]["messages"]


def at(**away: float) -> str:
    return (datetime.now(UTC) + timedelta(**away)).isoformat()


def message(recipient_id: str = "fan-1", **fields: Any) -> dict[str, Any]:
    return {"recipientId": recipient_id, "content": "Hello"} | fields


# --- what is answered ---


def test_every_message_has_a_receipt_in_the_order_of_the_list(bulk: Send, adapters: Adapters) -> None:
    answer = bulk("fan-c", "fan-a", "fan-b")
    found = rows(adapters)
    assert [row["recipient_id"] for row in found] == ["fan-c", "fan-a", "fan-b"]
    assert ids(answer) == [row["id"] for row in found] == sorted(row["id"] for row in found)
    assert [receipt["position"] for receipt in answer.json["messages"]] == [1, 2, 3]
    assert answer.json["queued"] == 3
    assert answer.json["estimatedCompletionTime"] == max(m["estimatedSendTime"] for m in answer.json["messages"])
    assert len({row["queued_at"] for row in found}) == 1


@pytest.mark.parametrize("blocked_by", [None, *BlockedBy])
@pytest.mark.parametrize("estimated_at", [None, datetime(2030, 1, 2, 3, 4, 5, 678901, UTC)])
def test_a_receipt_is_what_send_would_have_answered(blocked_by: BlockedBy | None, estimated_at: Any) -> None:
    receipt = Receipt(
        message_id="msg_01ARZ3NDEKTSV4RRFFQ69G5FAV", account_id="a", queued_at=datetime.now(UTC), position=3,
        estimated_at=estimated_at, blocked_by=blocked_by,
    )  # fmt: skip
    [shown] = schemas.Receipts().serialize("receipts", {"receipts": [receipt]})
    assert json.dumps(shown) == json.dumps(schemas.Receipt().dump(receipt))


def test_what_is_said_is_kept_as_by_send(
    bulk: Send, client: FlaskClient, bearer: Callable[..., dict[str, str]], adapters: Adapters
) -> None:
    said = {"a": [1, None, True, 0.5, 10**300, {"ä": "\u2028 😀 \\u0000 \x01"}], "": "{NULL}"}
    wanted = [
        message(),
        message(content="", mediaIds=["m-1", '{"}\\,', "NULL", ""[:0] or " "]),
        message(content="Ahoy 😀 {NULL} \\N\n\x01", priority=10, batchId='b"', metadata=said, sendAt=at(hours=1)),
        message(sendAt=at(minutes=-5), expiresAt="9998-12-31T23:59:59.999999-12:00", metadata={}),
        message(sendAt=None, expiresAt=None, batchId=None, metadata=None, mediaIds=[]),
    ]
    for one in wanted:
        assert client.post(f"{ROOT}/send", json=one, headers=bearer()).status_code == 202
    assert bulk(*wanted).status_code == 202
    passing = {"id", "seq", "queued_at", "due_at", "estimated_at", "request_id"}
    kept = [{k: v for k, v in row.items() if k not in passing} for row in rows(adapters)]
    for alone, together in zip(kept[:5], kept[5:], strict=True):
        assert together == alone | {"state": together["state"]}
    assert [row["state"] for row in kept[5:]] == ["held", "held", "scheduled", "held", "held"]


def test_ten_thousand_go_in_at_once(bulk: Send, adapters: Adapters) -> None:
    answer = bulk(*(f"fan-{n}" for n in range(10_000)))
    assert ids(answer) == [row["id"] for row in rows(adapters)]
    assert [receipt["position"] for receipt in answer.json["messages"]] == list(range(1, 10_001))
    assert queries.counts(adapters.db, None) == {"default": {"queued": 10_000}}


@pytest.mark.parametrize("n", [0, 10_001])
def test_no_message_and_too_many_are_400(bulk: Send, adapters: Adapters, n: int) -> None:
    assert wrong(bulk(*["fan-1"] * n)) == ["Length must be between 1 and 10000."]
    assert rows(adapters) == []


# --- what is refused ---


def test_what_is_wrong_is_said_of_each_message_and_none_is_queued(bulk: Send, adapters: Adapters) -> None:
    assert wrong(bulk("fan-1", {"content": "x"}, message(priority=11, more=1), message(content="a\0b"), 5)) == {
        "1": {"recipientId": ["Missing data for required field."]},
        "2": {
            "priority": ["Must be greater than or equal to 1 and less than or equal to 10."],
            "more": ["Unknown field."],
        },
        "3": {"content": ["Must not contain NUL characters."]},
        "4": {"_schema": ["Invalid input type."]},
    }
    assert rows(adapters) == []


def test_times_that_leave_no_time_are_said_of_each_message(bulk: Send, adapters: Adapters) -> None:
    moment = at(hours=1)
    past, never = message(expiresAt=at(seconds=-1)), message(sendAt=moment, expiresAt=moment)
    assert wrong(bulk("fan-1", past, never)) == {
        "1": {"expiresAt": ["Is in the past; leave it out or choose a later time."]},
        "2": {"expiresAt": ["Must be after sendAt."]},
    }
    assert rows(adapters) == []


def test_a_send_at_that_is_long_past_is_said_of_each_message(bulk: Send, adapters: Adapters) -> None:
    words = "Is more than an hour past. Leave it out to send at once, or check the year and the offset."
    assert wrong(bulk("fan-1", message(sendAt=at(hours=-2)))) == {"1": {"sendAt": [words]}}
    assert rows(adapters) == []


def test_of_very_many_errors_the_first_hundred_are_told(bulk: Send) -> None:
    answer = bulk("fan-1", *[{}] * 150)
    assert list(wrong(answer)) == [str(n) for n in range(1, 101)]
    assert answer.json["details"]["more"] == ["50 messages after these were not looked at."]


def test_of_very_many_times_that_are_wrong_the_first_hundred_are_told(bulk: Send) -> None:
    answer = bulk("fan-1", *[message(expiresAt=at(seconds=-1))] * 150)
    assert list(wrong(answer)) == [str(n) for n in range(1, 101)]
    assert answer.json["details"]["more"] == ["50 more errors are not listed."]


def test_an_account_that_is_not_the_callers_is_as_good_as_none(
    bulk: Send, adapters: Adapters, make_account: Callable[..., str]
) -> None:
    for name in ("a", "b"):
        make_account(name)

    def refused(*named: str | None, claim: tuple[str, ...] = ("a",)) -> dict[str, Any]:
        answer = bulk(*(message() if name is None else message(accountId=name) for name in named), claim=claim)
        assert answer.status_code == 404
        return {key: answer.json[key] for key in ("error", "code", "details")}

    assert refused("a", "b", "b") == {
        "error": "No account b",
        "code": "not_found",
        "details": {"messages": {n: {"accountId": ["No account b"]} for n in ("1", "2")}},
    }
    foreign, missing = json.dumps(refused("a", "b")), json.dumps(refused("a", "missing"))
    assert foreign.replace("account b", "account missing") == missing
    assert json.dumps(refused("a", "missing", claim=("*",))) == missing
    assert refused(None, claim=("a", "b"))["error"] == "No account default"
    assert rows(adapters) == []


def test_each_message_goes_to_the_account_it_means(bulk: Send, make_account: Callable[..., str]) -> None:
    for name in ("a", "b"):
        make_account(name)
    answer = bulk(message(accountId="a"), message(accountId="b"), message(accountId="a"), claim=("a", "b"))
    assert [receipt["accountId"] for receipt in answer.json["messages"]] == ["a", "b", "a"]
    assert [receipt["position"] for receipt in answer.json["messages"]] == [1, 1, 2]
    assert bulk("fan-9", claim=("b",)).json["messages"][0]["accountId"] == "b"


def test_what_the_database_refuses_takes_all_with_it(adapters: Adapters) -> None:
    listed = [
        {"id": f"msg_{n}", "account_id": "default", "recipient_id": f"fan-{n}", "priority": n, "content": "x"}
        for n in (9, 10, 11)
    ]
    with pytest.raises(psycopg.errors.CheckViolation):
        accept.accept_many(adapters.db, listed, by=ALICE, last_to_go="msg_9", key="key-1", fingerprint="f")
    assert rows(adapters) == []
    assert not accept.key_used(adapters.db, ALICE.subject, "key-1")
    assert queries.counts(adapters.db, None) == {}


def test_a_queue_that_has_no_room_for_all_takes_none(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    full = with_settings(max_queue_depth=5, rate_limit=Limits.parse("1/hour"))
    client = create_app(full).test_client()

    def send(n: int) -> TestResponse:
        return client.post(f"{ROOT}/send/bulk", json={"messages": [message()] * n}, headers=bearer())

    assert [send(3).status_code, send(2).status_code] == [202, 202]
    refused = send(3)
    assert (refused.status_code, refused.json["code"]) == (429, "queue_full")
    assert refused.json["error"] == "Account default has 5 messages waiting, and may have 5: 3 more do not fit"
    # The first may go at once, the second in an hour, the third in two: then there is room.
    assert 7190 < int(refused.headers["Retry-After"]) < 7210
    assert len(rows(full)) == 5


def test_a_bulk_is_one_request_to_the_callers_limit(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    client = create_app(with_settings(api_rate_limit=Limits.parse("2/minute"))).test_client()
    body = {"messages": [message()] * 50}
    answers = [client.post(f"{ROOT}/send/bulk", json=body, headers=bearer()).status_code for _ in range(3)]
    assert answers == [202, 202, 429]


# --- lines ---


def test_to_one_recipient_only_the_first_is_not_held(bulk: Send, submit: Submit, adapters: Adapters) -> None:
    submit("fan-old")
    answer = bulk(
        "fan-new", "fan-old", "fan-new", message("fan-new", priority=9), message("fan-new", sendAt=at(hours=1))
    )
    states = [row["state"] for row in rows(adapters)][1:]
    assert states == ["queued", "held", "held", "queued", "scheduled"]
    blocked = [receipt["blockedBy"] for receipt in answer.json["messages"]]
    assert blocked == [None, "ordering", "ordering", None, "schedule"]


def test_a_list_of_heads_that_are_all_taken_is_held(bulk: Send, adapters: Adapters) -> None:
    fans = [f"fan-{n}" for n in range(500)]
    assert len(set(ids(bulk(*fans)))) == 500
    bulk(*reversed(fans))
    assert queries.counts(adapters.db, None) == {"default": {"queued": 500, "held": 500}}


def test_lists_and_single_messages_come_in_crosswise_while_others_leave(
    adapters: Adapters, make_account: Callable[..., str], upstream: Sandbox
) -> None:
    """Many callers, a few recipients, a worker that takes out what they put in: every line has one head at most, none
    is without one, and everybody gets what they were sent in the order in which each caller sent it."""
    account, fans = make_account(limits="5000/minute"), [f"fan-{n}" for n in range(12)]
    submitter, stop = adapters.submitter(), threading.Event()

    def one(content: str, fan: str) -> dict[str, Any]:
        return {"account_id": account, "recipient_id": fan, "content": content, "priority": 5}

    def send(caller: int) -> None:
        for turn in range(6):
            mine = fans[caller:] + fans[:caller]  # everybody begins with another one
            if caller % 3:
                listed = [one(f"{caller} {turn} {n}", fan) for n in range(4) for fan in mine]
                submitter.submit_many(listed, by=ALICE)
            else:
                wanted = {k: v for k, v in one(f"{caller} {turn} 0", mine[turn]).items() if k != "account_id"}
                submitter.submit(wanted, account, by=ALICE)

    def drain() -> None:
        dispatcher = adapters.dispatcher(worker=1)
        while not stop.is_set():
            dispatcher.drain(account)

    with ThreadPoolExecutor(7) as threads:
        drained = threads.submit(drain)
        try:
            for caller in [threads.submit(send, caller) for caller in range(6)]:
                caller.result()
        finally:
            stop.set()
        drained.result()

    assert lines.mend_headless_lines(adapters.db) == 0
    dispatcher = adapters.dispatcher(worker=1)
    while queries.counts(adapters.db, [account]).get(account):
        dispatcher.drain(account)
    arrived: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for entry in upstream.ledger.entries:
        caller, turn, n = entry.arrival.message.text.split()
        arrived.setdefault((entry.arrival.message.chat_id, caller), []).append((int(turn), int(n)))
    assert sum(map(len, arrived.values())) == 4 * 6 * 4 * len(fans) + 2 * 6
    assert all(order == sorted(order) for order in arrived.values())


def test_who_has_lost_the_race_for_a_head_holds_on_to_the_others(adapters: Adapters, submit: Submit) -> None:
    """Between the look at a line and the insert the line's head changes: seen once, then all heads stay as they are."""
    for _ in range(2):
        submit("fan-1")
    [first] = claim_next(adapters.db, "default", ["t"], worker=1, lease_s=10, origin=origin(adapters))
    listed = [{"id": f"msg_{n}", "account_id": "default", "recipient_id": "fan-1", "priority": 5, "content": "x"}
              for n in range(3)]  # fmt: skip
    taken_out, may_commit = threading.Event(), threading.Event()

    def take_out_the_head() -> None:
        def work(c: Any) -> None:
            c.all("UPDATE messages SET state = 'sent', sent_at = now(), ended_at = now() WHERE id = %(id)s",
                  {"id": first.message_id})  # fmt: skip
            lines.elect_heads(c, [first.line])
            taken_out.set()
            assert may_commit.wait(10)

        adapters.db.transaction(work)

    with ThreadPoolExecutor(2) as threads:
        out = threads.submit(take_out_the_head)
        assert taken_out.wait(10)
        coming_in = threads.submit(
            accept.accept_many, adapters.db, listed, by=ALICE, last_to_go="msg_0", key=None, fingerprint=None
        )
        while not adapters.db.all("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            pass
        may_commit.set()
        out.result()
        assert coming_in.result().held == {"msg_0", "msg_1", "msg_2"}
    assert lines.mend_headless_lines(adapters.db) == 0


# --- when they will go ---

some_messages = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([3, 5, 9]), st.sampled_from([0, 0, 0, 600])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=some_messages, wanted=some_messages)
def test_every_estimate_is_the_one_that_a_single_message_would_have_got(
    before: list[Any], wanted: list[Any], adapters: Adapters, make_account: Callable[..., str]
) -> None:
    """Sent one by one, that is, the most urgent first and those for later last."""
    together, alone = make_account(limits="2/10s,3/minute"), make_account(limits="2/10s,3/minute")
    submitter, now = adapters.submitter(), datetime.now(UTC)

    def fields(recipient_id: str, priority: int, in_s: int) -> dict[str, Any]:
        later = {"send_at": now + timedelta(seconds=in_s)} if in_s else {}
        return {"recipient_id": recipient_id, "priority": priority, "content": "x", **later}

    for one, account in itertools.product(before, (together, alone)):
        submitter.submit(fields(*one), account, by=ALICE)
    bulk = submitter.submit_many([fields(*one) | {"account_id": together} for one in wanted], by=ALICE).receipts
    order = sorted(range(len(wanted)), key=lambda n: (bool(wanted[n][2]), -wanted[n][1], n))
    single = {n: submitter.submit(fields(*wanted[n]), alone, by=ALICE) for n in order}
    for n, told in enumerate(bulk):
        assert (told.position, told.blocked_by) == (single[n].position, single[n].blocked_by)
        assert told.estimated_at is not None
        assert single[n].estimated_at is not None
        # The one was told a moment after the other, and tokens return ten seconds apart.
        assert abs((told.estimated_at - single[n].estimated_at).total_seconds()) < 5


def test_without_an_end_in_sight_there_is_no_completion_time(bulk: Send, adapters: Adapters) -> None:
    closures.pause(adapters.db, "default", "for tests")
    answer = bulk("fan-1", "fan-2").json
    assert answer["estimatedCompletionTime"] is None
    assert [receipt["blockedBy"] for receipt in answer["messages"]] == ["paused", "paused"]


# --- what follows ---


def test_they_are_sent_in_the_order_of_the_list(
    adapters: Adapters, bulk: Send, make_account: Callable[..., str], dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    account = make_account(limits="1/ms")
    fans = [f"fan-{n * 7 % 20}" for n in range(20)]
    bulk(*(message(fan, accountId=account, content=fan) for fan in fans))
    while queries.counts(adapters.db, [account]).get(account):
        dispatcher.drain(account)
    assert [entry.arrival.message.text for entry in upstream.ledger.entries] == fans


def test_each_account_is_woken_once(bulk: Send, adapters: Adapters, make_account: Callable[..., str]) -> None:
    for name in ("a", "b", "c"):
        make_account(name)
    closures.pause(adapters.db, "c", "for tests")
    bulk(*(message(accountId=name) for name in "abcabc"))
    assert sorted(adapters.wakeups.take_due().accounts) == ["a", "b"]


def test_one_line_and_one_entry_per_account_stand_for_them_all(
    bulk: Send, adapters: Adapters, make_account: Callable[..., str]
) -> None:
    make_account("a")
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        first, second, third = ids(bulk("fan-1", "fan-2", message(accountId="a"), **{"X-Request-Id": "r-1"}))
    [line] = [line for line in logged if line["event"] == "messages_accepted"]
    assert (line["count"], line["accounts"], line["request_id"]) == (3, 2, "r-1")
    assert (line["first_id"], line["last_id"]) == (first, third)
    noted = audit.entries(adapters.db, AuditFilter(), None, 10)
    assert {(n["action"], n["subject"], n["request_id"]) for n in noted} == {("send_bulk", "alice", "r-1")}
    assert {n["account_id"]: n["details"] for n in noted} == {
        "default": {"messages": 2, "first": first, "last": second},
        "a": {"messages": 1, "first": third, "last": third},
    }
    assert {row["request_id"] for row in rows(adapters)} == {"r-1"}


# --- asking again ---


def test_the_same_again_is_the_same_messages(bulk: Send, adapters: Adapters) -> None:
    first, again = bulk("fan-1", "fan-2", key="key-1"), bulk("fan-1", "fan-2", key="key-1")
    assert ids(again) == ids(first)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json["queued"] == 2
    assert {(m["position"], m["estimatedSendTime"], m["blockedBy"]) for m in again.json["messages"]} == {(None,) * 3}
    assert [m["queuedAt"] for m in again.json["messages"]] == [m["queuedAt"] for m in first.json["messages"]]
    assert len(rows(adapters)) == 2


def test_another_list_under_the_same_key_is_409(
    bulk: Send, adapters: Adapters, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    bulk("fan-1", key="key-1")
    assert bulk("fan-2", key="key-1").json["code"] == "idempotency_key_reused"
    assert bulk("fan-1", "fan-1", key="key-1").json["code"] == "idempotency_key_reused"
    headers = bearer() | {"Idempotency-Key": "key-1"}
    assert client.post(f"{ROOT}/send", json=message(), headers=headers).json["code"] == "idempotency_key_reused"
    assert len(rows(adapters)) == 1


def test_a_caller_moved_to_another_account_learns_nothing_of_the_old_one(
    bulk: Send, make_account: Callable[..., str]
) -> None:
    for name in ("a", "b"):
        make_account(name)
    assert bulk("fan-1", key="key-1", claim=("a",)).status_code == 202
    assert bulk("fan-1", key="key-1", claim=("b",)).status_code == 409


def test_two_first_uses_at_once_queue_one_list(adapters: Adapters, bearer: Callable[..., dict[str, str]]) -> None:
    app, together = create_app(adapters), threading.Barrier(4)
    body = {"messages": [message(f"fan-{n}") for n in range(50)]}

    def use(key: str) -> TestResponse:
        together.wait()
        headers = bearer() | {"Idempotency-Key": key}
        return app.test_client().post(f"{ROOT}/send/bulk", json=body, headers=headers)

    with ThreadPoolExecutor(4) as callers:
        for round_ in range(5):
            answers = list(callers.map(use, [f"key-{round_}"] * 4))
            assert len({tuple(ids(answer)) for answer in answers}) == 1
            assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 3
    assert len(rows(adapters)) == 5 * 50


def test_a_list_is_remembered_until_the_last_of_it_is_forgotten(
    bulk: Send, adapters: Adapters, dispatcher: Dispatcher
) -> None:
    wanted = (message("fan-1", priority=1), message("fan-2", priority=9), message("fan-3"))
    first = bulk(*wanted, key="key-1")
    dispatcher.drain("default")
    last, *others = ids(first)

    def forget(*gone: str) -> None:
        aged = "UPDATE messages SET ended_at = now() - interval '9 days', id = id WHERE id = ANY(%(ids)s)"
        adapters.db.all(aged, {"ids": list(gone)})
        assert len(adapters.db.all("DELETE FROM messages WHERE id = ANY(%(ids)s) RETURNING id", {"ids": list(gone)}))

    forget(*others)
    assert ids(bulk(*wanted, key="key-1")) == ids(first)
    forget(last)
    assert set(ids(bulk(*wanted, key="key-1"))).isdisjoint(ids(first))


def test_a_list_that_never_fits_is_400_with_the_remedy(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    client = create_app(with_settings(max_queue_depth=2)).test_client()
    answer = client.post(f"{ROOT}/send/bulk", json={"messages": [message()] * 3}, headers=bearer())
    assert wrong(answer) == [
        "3 messages are for account default, which may have 2 waiting (MAX_QUEUE_DEPTH). Send at most 2 at once."
    ]
    assert "Retry-After" not in answer.headers


def test_a_replay_is_answered_though_the_queue_is_full_or_the_time_is_past(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    client = create_app(with_settings(max_queue_depth=2)).test_client()
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()

    def send(key: str) -> TestResponse:
        body = {"messages": [message(), message(expiresAt=soon)]}
        return client.post(f"{ROOT}/send/bulk", json=body, headers=bearer() | {"Idempotency-Key": key})

    first, again, other = send("key-1"), send("key-1"), send("key-2")
    assert (ids(again), other.status_code) == (ids(first), 429)
    while datetime.now(UTC).isoformat() <= soon:
        threading.Event().wait(0.05)
    assert ids(send("key-1")) == ids(first)
    assert send("key-2").status_code == 400
