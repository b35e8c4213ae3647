"""What is told of the future: positions against the order of claims, estimates against what follows."""

import time
from collections.abc import Callable
from dataclasses import dataclass
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
from workers.domain.filters import FailureFilter
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import accounts, closures, queries
from workers.store.claims import CLAIMED_AT_ONCE, claim_next

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


def in_s(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def bury(adapters: Adapters, account_id: str) -> None:
    """All that waits on the account has failed."""
    adapters.db.all(
        "WITH dead AS (UPDATE messages SET state = 'failed', ended_at = now() WHERE account_id = %(id)s"
        "              AND state IN ('queued', 'held') RETURNING id, account_id)"
        " INSERT INTO dead_letters (message_id, account_id, reason) SELECT id, account_id, 'rejected' FROM dead",
        {"id": account_id},
    )


def put_off(adapters: Adapters, message_id: str, until: datetime) -> None:
    """It was tried, and is tried again at this time."""
    adapters.db.all(
        "UPDATE messages SET attempts = 1, tries = 1, due_at = %(until)s WHERE id = %(id)s",
        {"id": message_id, "until": until},
    )


def claimed_in_order(adapters: Adapters, account_id: str) -> list[str]:
    """The ids of what would be claimed now, in this order. Nothing is: the claim is rolled back."""
    tokens = [f"t{n}" for n in range(CLAIMED_AT_ONCE)]
    found: dict[str, str] = {}

    class Undo(Exception):
        pass

    def look(c: Any) -> None:
        for claim in claim_next(c, account_id, tokens, worker=1, lease_s=10, origin=origin(adapters)):
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


PRIORITIES = st.sampled_from([1, 5, 5, 9])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), PRIORITIES),
        st.tuples(st.just("retry"), PRIORITIES),
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
            if step == "retry":
                put_off(adapters, receipt.message_id, in_s(60))
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


moments = st.tuples(st.sampled_from([0, 0, 60, 120]), PRIORITIES)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(moments, max_size=6), wanted=st.lists(moments, min_size=1, max_size=8))
def test_who_is_scheduled_stands_behind_all_that_may_go_by_then(
    before: list[Any], wanted: list[Any], adapters: Adapters, make_account: Callable[..., str]
) -> None:
    account, submitter, now = make_account(), adapters.submitter(), datetime.now(UTC)

    def fields(n: int, in_s: int, priority: int) -> dict[str, Any]:
        later = {"send_at": now + timedelta(seconds=in_s)} if in_s else {}
        return {"recipient_id": f"fan-{n}", "priority": priority, "content": "x", "account_id": account, **later}

    if before:
        submitter.submit_many([fields(n, *one) for n, one in enumerate(before)], by=ALICE)
    receipts = submitter.submit_many([fields(100 + n, *one) for n, one in enumerate(wanted)], by=ALICE).receipts
    all_of_them = [(n, *one) for n, one in enumerate([*before, *wanted])]
    expected = [
        1 + sum(t <= in_s and (-p, t, m) < (-priority, in_s, n) for m, t, p in all_of_them)
        for n, in_s, priority in all_of_them[len(before) :]
    ]
    assert [receipt.position for receipt in receipts] == expected
    ahead = queries.ahead_of(adapters.db, [receipt.message_id for receipt in receipts])
    assert [ahead[receipt.message_id] + 1 for receipt in receipts] == expected


def test_a_message_behind_a_redriven_one_to_the_same_recipient_goes_with_it(adapters: Adapters, submit: Submit) -> None:
    submit("fan-1")
    bury(adapters, "default")
    adapters.failures().redrive(FailureFilter(), scope=None, by=ALICE)
    for n in range(2, 5):
        submit(f"fan-{n}")
    behind = [submit("fan-1") for _ in range(2)]
    assert [(one.position, one.blocked_by) for one in behind] == [(5, "ordering"), (6, "ordering")]
    waiting = [adapters.reader().message(one.message_id, None).waiting for one in behind]
    assert [one and one.position for one in waiting] == [5, 6]


def test_accounts_that_share_a_budget_take_turns(
    ask: Ask, adapters: Adapters, submit: Submit, make_account: Callable[..., str]
) -> None:
    one, other = make_account(limits="1/minute"), make_account(limits="1/minute")
    adapters.db.all(
        "UPDATE accounts SET budget = %(one)s WHERE id IN (%(one)s, %(other)s)", {"one": one, "other": other}
    )
    for n in range(2):
        submit(f"fan-{n}", account_id=other)
    waits_s = []
    for n in range(4):
        estimated_at = submit(f"fan-{n}", account_id=one).estimated_at
        assert estimated_at
        waits_s.append((estimated_at - datetime.now(UTC)).total_seconds())
    assert waits_s == pytest.approx([60, 180, 240, 300], abs=2)
    _, found = ask("GET", f"/status?accountId={one}")
    assert found["processing"]["estimatedTimeSeconds"] >= 180


def test_the_estimate_of_all_reaches_to_the_last_that_waits_for_a_time(
    ask: Ask, adapters: Adapters, submit: Submit
) -> None:
    def done_s() -> float:
        return ask("GET", "/status")[1]["processing"]["estimatedTimeSeconds"]

    put_off(adapters, submit("fan-1").message_id, in_s(900))
    assert done_s() == pytest.approx(900, abs=5)
    submit("fan-2", send_at=datetime.now(UTC) + timedelta(hours=1))
    assert done_s() == pytest.approx(3600, abs=5)


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
    closures.pause(adapters.db, account, "for tests", until=datetime.fromisoformat(END))
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
    closures.pause(adapters.db, "far-away", "for tests", until=datetime.fromisoformat(END))
    many = [{"recipientId": f"fan-{n}", "content": "Hello", "accountId": "far-away"} for n in range(13)]
    answers = [client.post(f"{ROOT}/send/bulk", json={"messages": many}, headers=bearer()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert int(answers[1].headers["Retry-After"]) > 1


# --- against a real drain ---

TOLERATED_S = 0.9
"""Five a second, and so less than one round: who is told the wrong round is found out, a busy machine is not."""


@dataclass
class Scene:
    """An account of five a second, whose upstream takes 30 ms. It is paused until `start`, when all has been queued and
    asked for: so it does not matter how long that takes."""

    adapters: Adapters
    upstream: Sandbox
    send: Submit
    start: datetime

    def redrive(self) -> None:
        bury(self.adapters, "five")
        self.adapters.failures().redrive(FailureFilter(), scope=None, by=ALICE)

    def many(self, n: int, name: str = "fan", **more: Any) -> list[str]:
        return [self.send(f"{name}-{i}", account_id="five", **more).message_id for i in range(n)]

    def after(self, seconds: float) -> datetime:
        return self.start + timedelta(seconds=seconds)


def paused(scene: Scene) -> None:
    scene.many(12)


def cooled_down(scene: Scene) -> None:
    scene.adapters.tokens.cool_down("five", (scene.after(2) - datetime.now(UTC)).total_seconds())
    scene.many(12)


def all_scheduled_for_one_moment(scene: Scene) -> None:
    scene.many(12, send_at=scene.after(1))


def overtaken_by_urgent_ones_later(scene: Scene) -> None:
    scene.many(8, "urgent", priority=9, send_at=scene.after(1.5))
    scene.many(14)


def behind_what_was_redriven(scene: Scene) -> None:
    scene.many(12, "redriven")
    scene.redrive()
    scene.many(6)


def behind_what_is_tried_again_later(scene: Scene) -> None:
    for message_id in scene.many(12, "tried"):
        put_off(scene.adapters, message_id, scene.after(2.5))
    scene.many(6)


def many_to_one_recipient(scene: Scene) -> None:
    scene.adapters.db.all("UPDATE accounts SET limits = '1000/s' WHERE id = 'five'")
    scene.upstream.latency_ms = 700
    scene.adapters.wakeups.end_drain("five", "a-drain", latency_s=0.7)
    for _ in range(4):
        scene.many(1)


def behind_one_to_the_same_recipient_that_is_tried_again(scene: Scene) -> None:
    [first] = scene.many(1)
    put_off(scene.adapters, first, scene.after(3))
    scene.many(1)


SCENES = [
    paused,
    cooled_down,
    all_scheduled_for_one_moment,
    overtaken_by_urgent_ones_later,
    behind_what_was_redriven,
    behind_what_is_tried_again_later,
    many_to_one_recipient,
    behind_one_to_the_same_recipient_that_is_tried_again,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_everything_goes_when_it_was_told(
    scene: Callable[[Scene], None],
    adapters: Adapters,
    submit: Submit,
    make_account: Callable[..., str],
    dispatcher: Dispatcher,
    upstream: Sandbox,
) -> None:
    make_account("five", limits="5/s")
    upstream.latency_ms = 30
    adapters.wakeups.end_drain("five", "a-drain", latency_s=0.03)
    start = in_s(3)
    closures.pause(adapters.db, "five", "for tests", until=start)
    scene(Scene(adapters, upstream, submit, start))
    told = {row["id"]: adapters.reader().message(row["id"], None) for row in adapters.db.all("SELECT id FROM messages")}
    assert datetime.now(UTC) < start, "too busy a machine"
    began = time.monotonic()
    while adapters.reader().status(None).depth and time.monotonic() - began < 30:
        next_s = dispatcher.drain("five").next_s
        time.sleep(min(0.05, next_s or 0.05))
    errors_s = {}
    for row in adapters.db.all("SELECT message_id, started_at FROM attempts"):
        waiting = told[row["message_id"]].waiting
        assert waiting
        assert waiting.estimate.at
        errors_s[row["message_id"]] = (row["started_at"] - waiting.estimate.at).total_seconds()
    assert max(map(abs, errors_s.values())) < TOLERATED_S, errors_s
