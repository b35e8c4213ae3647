"""What is told of the future: positions against the order of claims, estimates against what follows."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.app import create_app
from deploy.sandbox import Sandbox
from ratelimit import Limits
from tests.conftest import ALICE, origin
from workers.bootstrap import Adapters
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import accounts, messages, queries
from workers.store.queries import FailureFilter

ROOT = "/api/onlyfans/messaging"
Submit = Callable[..., Receipt]
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Ask:
    """An admin's request; the status, and the JSON of the answer."""

    def do(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = client.open(ROOT + path, method=method, json=body, headers=bearer("admin"))
        return answer.status_code, answer.json

    return do


def bury(adapters: Adapters, account_id: str) -> None:
    """All that waits on the account has failed."""
    adapters.db.all(
        "WITH dead AS (UPDATE messages SET state = 'failed', ended_at = now() WHERE account_id = %(id)s"
        "              AND state IN ('queued', 'held') RETURNING id, account_id)"
        " INSERT INTO dead_letters (message_id, account_id, reason) SELECT id, account_id, 'rejected' FROM dead",
        {"id": account_id},
    )


def claimed_in_order(adapters: Adapters, account_id: str) -> list[str]:
    """The ids of what would be claimed now, in this order. Nothing is: the claim is rolled back."""
    tokens = [f"t{n}" for n in range(messages.CLAIMED_AT_ONCE)]
    found: dict[str, str] = {}

    class Undo(Exception):
        pass

    def look(c: Any) -> None:
        for claim in messages.claim_next(c, account_id, tokens, worker=1, lease_s=10, origin=origin(adapters)):
            found[claim.token] = claim.message_id
        raise Undo

    with pytest.raises(Undo):
        adapters.db.transaction(look)
    return [found[token] for token in tokens if token in found]


# --- positions ---


def test_a_fresh_message_goes_before_two_thousand_redriven_ones_and_is_told_so(
    ask: Ask, adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    many = [{"recipientId": f"fan-{n}", "content": "Hello"} for n in range(2001)]
    assert ask("POST", "/send/bulk", {"messages": many})[0] == 202
    bury(adapters, "default")
    assert ask("POST", "/failed/retry", {})[1]["queued"] == 2001
    _, fresh = ask("POST", "/send", {"recipientId": "fan-fresh", "content": "fresh"})
    assert (fresh["position"], fresh["blockedBy"]) == (1, None)
    assert datetime.fromisoformat(fresh["estimatedSendTime"]) < datetime.now(UTC) + timedelta(seconds=1)
    assert ask("GET", f"/messages/{fresh['messageId']}")[1]["position"] == 1
    dispatcher.drain("default")
    accepted = [entry.arrival.message.chat_id for entry in upstream.ledger.entries]
    assert len(accepted) == 10
    assert "fan-fresh" in accepted


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([1, 5, 5, 9])),
        st.tuples(st.just("redrive"), st.just(0)),
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_every_position_is_the_place_in_the_order_of_claims(
    steps: list[tuple[str, int]], adapters: Adapters, submit: Submit, make_account: Callable[..., str]
) -> None:
    account = make_account()
    for n, (step, priority) in enumerate(steps):
        if step == "redrive":
            bury(adapters, account)
            adapters.failures().redrive(FailureFilter(account_id=account), scope=None, by=ALICE)
        else:
            receipt = submit(f"fan-{n}", account_id=account, priority=priority)
            assert claimed_in_order(adapters, account)[receipt.position - 1] == receipt.message_id
    order = claimed_in_order(adapters, account)
    places = {message_id: n for n, message_id in enumerate(order)}
    assert queries.ahead_of(adapters.db, order) == places
    for message_id, place in places.items():
        assert queries.ahead_of(adapters.db, [message_id]) == {message_id: place}


def test_a_bulk_goes_before_what_was_redriven(adapters: Adapters, submit: Submit) -> None:
    submit("fan-redriven")
    bury(adapters, "default")
    adapters.failures().redrive(FailureFilter(), scope=None, by=ALICE)
    wanted = [
        {"recipient_id": f"fan-{priority}", "priority": priority, "content": "x", "account_id": "default"}
        for priority in (5, 4, 6)
    ]
    receipts = adapters.submitter().submit_many(wanted, by=ALICE).receipts
    assert [receipt.position for receipt in receipts] == [2, 4, 1]
    order = claimed_in_order(adapters, "default")
    assert [order[receipt.position - 1] for receipt in receipts if receipt.position] == [r.message_id for r in receipts]


def test_a_redrive_goes_behind_what_is_fresh_and_before_what_is_less_urgent(
    ask: Ask, adapters: Adapters, submit: Submit, make_account: Callable[..., str]
) -> None:
    account = make_account(limits="1/minute")
    submit("fan-redriven", account_id=account)
    bury(adapters, account)
    submit("fan-fresh", account_id=account)
    for n in range(20):
        submit(f"fan-patient-{n}", account_id=account, priority=1)
    for dry_run in (True, False):
        _, told = ask("POST", "/failed/retry", {"dryRun": dry_run})
        done_s = (datetime.fromisoformat(told["estimatedCompletionTime"]) - datetime.now(UTC)).total_seconds()
        assert 55 < done_s < 65


def test_old_ones_are_found_at_every_rank(adapters: Adapters, submit: Submit) -> None:
    submit("fan-redriven")
    bury(adapters, "default")
    adapters.failures().redrive(FailureFilter(), scope=None, by=ALICE)
    adapters.db.all("UPDATE messages SET due_at = now() - interval '1 hour'")
    assert queries.oldest_ages_s(adapters.db)["default"] == pytest.approx(3600, abs=5)


# --- beyond the calendar ---

END = "9998-12-31T23:59:59Z"


@pytest.fixture
def far_away(adapters: Adapters, make_account: Callable[..., str]) -> str:
    """One token a month, and none before the last year there is."""
    account = make_account("far-away", limits="1/31d")
    accounts.pause(adapters.db, account, "for tests", until=datetime.fromisoformat(END))
    return account


@pytest.mark.parametrize("path", ["/send", "/send/bulk"])
def test_what_no_calendar_can_write_is_null(ask: Ask, far_away: str, path: str) -> None:
    def send(n: int) -> dict[str, Any]:
        message = {"recipientId": f"fan-{n}", "content": "Hello", "accountId": far_away}
        status, told = ask("POST", path, {"messages": [message]} if path == "/send/bulk" else message)
        assert status == 202, told
        return told["messages"][0] if path == "/send/bulk" else told

    receipts = [send(n) for n in range(13)]
    assert receipts[0]["estimatedSendTime"].startswith("9998-12-31T23:59:5")
    assert receipts[12]["estimatedSendTime"] is None
    assert (receipts[12]["position"], receipts[12]["blockedBy"]) == (13, "paused")
    assert ask("GET", f"/messages/{receipts[12]['messageId']}")[1]["estimatedSendTime"] is None
    assert ask("GET", f"/messages?accountId={far_away}")[0] == 200
    assert ask("GET", f"/status?accountId={far_away}")[0] == 200


def test_a_bulk_that_ends_beyond_the_calendar_has_no_completion_time(ask: Ask, far_away: str) -> None:
    many = [{"recipientId": f"fan-{n}", "content": "Hello", "accountId": far_away} for n in range(13)]
    status, told = ask("POST", "/send/bulk", {"messages": many})
    assert (status, told["estimatedCompletionTime"]) == (202, None)
    assert [message["estimatedSendTime"] is None for message in told["messages"]] == [False, *[True] * 12]


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_redrive_that_ends_beyond_the_calendar_has_no_completion_time(
    ask: Ask, adapters: Adapters, submit: Submit, far_away: str, dry_run: bool
) -> None:
    for n in range(13):
        submit(f"fan-{n}", account_id=far_away)
    bury(adapters, far_away)
    status, told = ask("POST", "/failed/retry", {"dryRun": dry_run})
    assert (status, told["matched"], told["estimatedCompletionTime"]) == (202, 13, None)


def test_a_full_queue_that_has_no_room_this_side_of_the_calendar_is_429(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    adapters = with_settings(max_queue_depth=13)
    client = create_app(adapters).test_client()
    accounts.put(adapters.db, "far-away", limits=Limits.parse("1/31d"))
    adapters.tokens.open_new("far-away")
    accounts.pause(adapters.db, "far-away", "for tests", until=datetime.fromisoformat(END))
    many = [{"recipientId": f"fan-{n}", "content": "Hello", "accountId": "far-away"} for n in range(13)]
    answers = [client.post(f"{ROOT}/send/bulk", json={"messages": many}, headers=bearer()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert int(answers[1].headers["Retry-After"]) > 1
