"""What puts things right after a fault, one mechanism at a time. Whole processes are killed in `tests/acceptance`."""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from cryptography.fernet import Fernet

from deploy.sandbox import Fault, Sandbox
from ratelimit import Grant, Limits, Tokens, TokensUnavailable, View
from ratelimit.tokens import START_WITHIN_S
from tests.conftest import ALICE, rebuild
from workers.bootstrap import Adapters
from workers.channels.base import Sender
from workers.channels.onlyfans import OnlyFans
from workers.credentials import Vault
from workers.domain.decisions import (
    LOOKUPS,
    VERIFY_AFTER_S,
    AwaitVerification,
    Bury,
    DeadLetterReason,
    Decision,
    Defer,
    DeferralReason,
    MarkSent,
    ScheduleRetry,
)
from workers.domain.errors import StoreUnavailable
from workers.domain.events import LateAnswer, Proved, Sent, Stale
from workers.domain.filters import MessageFilter
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Outcome, OutcomeKind
from workers.engine.presence import Presence
from workers.services.dispatch import Dispatcher, drain_name
from workers.services.drain.requests import WIDTH
from workers.services.recovery import (
    DEAD_FOR_S,
    DEAD_WHEN_BACK_S,
    Departures,
    Overlooked,
    expire,
    verify,
)
from workers.services.settle import Settlement, settle
from workers.services.submit import Receipt
from workers.store import accounts, budgets, closures, endings, queries, upkeep
from workers.store.claims import claim_next, take_back
from workers.store.glance import living
from workers.store.session import Connection, Database

Submit = Callable[..., Receipt]


def state(adapters: Adapters, receipt: Receipt) -> str:
    row = queries.message(adapters.db, receipt.message_id, None)
    assert row is not None
    return row["state"]


def claim_one(adapters: Adapters, worker: int = 1, lease_s: float = 13.0) -> Claim:
    grant = adapters.tokens.borrow("default", adapters.settings.rate_limit, lease_s=lease_s)
    (claim,) = claim_next(adapters.db, "default", grant.tokens, worker, lease_s, origin=grant.origin)
    return claim


def ended(claim: Claim, outcome: Outcome, decision: Decision) -> Settlement:
    return Settlement(claim=claim, outcome=outcome, decision=decision, channel="onlyfans")


def rescue_after(adapters: Adapters, seconds: float, **changes: float) -> int:
    """Rescue as a reconciler would that first saw the worker missing `seconds` ago."""
    rescuer = replace(adapters.rescuer(), **changes)  # type: ignore[arg-type]
    rescuer.rescue()
    rescuer.missing_since_s = {worker: since - seconds for worker, since in rescuer.missing_since_s.items()}
    return rescuer.rescue()


def test_a_dead_workers_claim_is_taken_over(adapters: Adapters, submit: Submit) -> None:
    receipt = submit()
    claim_one(adapters, worker=4711)
    assert rescue_after(adapters, DEAD_WHEN_BACK_S) == 1
    assert state(adapters, receipt) == "queued"
    (attempt,) = queries.attempts(adapters.db, receipt.message_id)
    assert attempt["outcome"] == "unknown"


@pytest.mark.parametrize(("back_for_s", "patience_s"), [(0.0, DEAD_FOR_S), (math.inf, DEAD_WHEN_BACK_S)])
def test_a_worker_just_gone_missing_gets_time_to_come_back_and_more_of_it_after_a_restart(
    adapters: Adapters, submit: Submit, back_for_s: float, patience_s: float
) -> None:
    receipt = submit()
    claim_one(adapters, worker=4711)
    assert rescue_after(adapters, patience_s / 2, back_for_s=back_for_s) == 0
    assert state(adapters, receipt) == "sending"
    assert rescue_after(adapters, patience_s, back_for_s=back_for_s) == 1


def test_an_outage_does_not_count_as_absence(
    adapters: Adapters, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing when the server went down, and not back yet: the time in between is the server's fault."""
    submit()
    claim_one(adapters, worker=4711)
    rescuer = adapters.rescuer()
    rescuer.missing_since_s = {4711: -math.inf}
    monkeypatch.setattr(upkeep, "find_orphans", restarted(upkeep.find_orphans, up_s=0.1))
    assert rescuer.rescue() == 0


def restarted(find: Callable[..., list[upkeep.Orphan]], up_s: float) -> Callable[..., list[upkeep.Orphan]]:
    return lambda *args, **kwargs: [replace(orphan, server_up_s=up_s) for orphan in find(*args, **kwargs)]


def await_nobody(adapters: Adapters) -> None:
    """PostgreSQL notices in its own time that a session has ended."""
    deadline_s = time.monotonic() + 30
    while living(adapters.db):
        assert time.monotonic() < deadline_s


def test_after_a_failover_everybody_gets_more_time(
    adapters: Adapters, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby has been up for days when it takes over, and nobody has a lock there yet."""
    await_nobody(adapters)
    monkeypatch.setattr(upkeep, "find_orphans", restarted(upkeep.find_orphans, up_s=86_400.0))
    submit()
    claim_one(adapters, worker=4711)
    assert rescue_after(adapters, DEAD_FOR_S) == 0
    pacer = Presence("pacer", adapters.db.url, adapters.wakeups)
    pacer.tick()
    try:
        assert rescue_after(adapters, DEAD_FOR_S) == 1
    finally:
        pacer.stop()


def test_a_death_noticed_while_redis_is_away_is_noticed_again(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Presence("worker", adapters.db.url, adapters.wakeups)
    gone.tick()
    departures = Departures(adapters.db, adapters.wakeups)
    departures.notice()
    gone.stop()
    await_nobody(adapters)
    adapters.redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(TokensUnavailable):
            departures.notice()
    finally:
        adapters.redis.config_set("min-replicas-to-write", 0)
    assert departures.notice() == 1


def test_a_look_up_waits_for_a_worker_that_has_the_accounts_key(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    accounts.put(adapters.db, "default", sealed_key=Vault([Fernet.generate_key().decode()]).seal("key-1"))
    adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    adapters.db.all("UPDATE messages SET state = 'verifying', attempts = 1, tries = 1")
    for _ in range(LOOKUPS + 2):
        assert look_up(adapters) == 0
    assert adapters.db.one("SELECT state FROM messages") == {"state": "verifying"}


def test_where_a_process_is_gone_there_is_room_at_once(adapters: Adapters, submit: Submit) -> None:
    submit()
    wakeups, gone, here = adapters.wakeups, *(Presence("worker", adapters.db.url, adapters.wakeups) for _ in range(2))
    try:
        gone.tick(), here.tick()
        departures = Departures(adapters.db, wakeups)
        assert departures.notice() == 0
        assert wakeups.take_due().accounts == ("default",)  # published, and popped by the one that dies
        wakeups.begin_drain("default", drain_name(gone.number), most=2)
        wakeups.begin_drain("default", drain_name(here.number), most=2)
        gone.stop()
        deadline_s = time.monotonic() + 30  # PostgreSQL notices in its own time that a session has ended
        while not (noticed := departures.notice()):
            assert time.monotonic() < deadline_s
        assert noticed == 1
        assert departures.notice() == 0
        assert wakeups.begin_drain("default", drain_name(here.number), most=2)
        assert not wakeups.begin_drain("default", drain_name(here.number), most=2)
        wakeups.wake("default")
        assert wakeups.take_due().accounts == ("default",)  # not held back by what was published to the dead one
    finally:
        here.stop()


def test_a_living_workers_claim_is_left_alone_until_its_deadline(adapters: Adapters, submit: Submit) -> None:
    presence = Presence("worker", adapters.settings.database_url, adapters.wakeups)
    presence.tick()
    try:
        receipt = submit()
        claim_one(adapters, worker=presence.number)
        assert rescue_after(adapters, 60) == 0
        adapters.db.all("UPDATE attempts SET deadline_at = now() - interval '1 minute'")
        assert adapters.rescuer().rescue() == 1
        assert state(adapters, receipt) == "queued"
    finally:
        presence.stop()


def test_a_rescued_message_may_be_claimed_at_once_and_the_first_ones_late_answer_still_counts(
    adapters: Adapters, submit: Submit
) -> None:
    receipt = submit()
    old = claim_one(adapters, worker=4711)
    rescue_after(adapters, DEAD_WHEN_BACK_S)
    new = claim_one(adapters, worker=1)
    assert (old.attempt, new.attempt) == (1, 2)
    late = ended(old, Outcome(OutcomeKind.ACCEPTED, upstream_id="u1"), MarkSent("u1"))
    settled = adapters.db.transaction(lambda c: settle(c, [late]))
    assert [type(event) for event in settled.events] == [LateAnswer]
    assert state(adapters, receipt) == "sending"
    refused = ended(new, Outcome(OutcomeKind.REJECTED, http_status=400), Bury(DeadLetterReason.REJECTED))
    settled = adapters.db.transaction(lambda c: settle(c, [refused]))
    assert [type(event) for event in settled.events] == [Proved]
    assert state(adapters, receipt) == "sent"
    assert [letter["closed_as"] for letter in queries.dead_letters(adapters.db, receipt.message_id)] == ["sent"]


def test_a_late_answer_counts_while_nobody_has_tried_again(adapters: Adapters, submit: Submit) -> None:
    receipt = submit()
    old = claim_one(adapters, worker=4711)
    rescue_after(adapters, DEAD_WHEN_BACK_S)
    late = ended(old, Outcome(OutcomeKind.ACCEPTED, upstream_id="u1"), MarkSent("u1"))
    settled = adapters.db.transaction(lambda c: settle(c, [late]))
    assert [type(event) for event in settled.events] == [Sent]
    assert state(adapters, receipt) == "sent"


def test_a_late_answer_closes_whatever_letter_is_open(adapters: Adapters, submit: Submit) -> None:
    """Rescued, sent again, refused: a dead letter. Then the first attempt's 2xx comes after all."""
    receipt = submit()
    old = claim_one(adapters, worker=4711)
    rescue_after(adapters, DEAD_WHEN_BACK_S)
    refused = ended(
        claim_one(adapters), Outcome(OutcomeKind.REJECTED, http_status=400), Bury(DeadLetterReason.REJECTED)
    )
    adapters.db.transaction(lambda c: settle(c, [refused]))
    late = ended(old, Outcome(OutcomeKind.ACCEPTED, upstream_id="u1"), MarkSent("u1"))
    adapters.db.transaction(lambda c: settle(c, [late]))
    assert state(adapters, receipt) == "sent"
    (letter,) = queries.dead_letters(adapters.db, receipt.message_id)
    assert (letter["reason"], letter["closed_as"], letter["closed_by"]) == ("rejected", "sent", "late answer")


@pytest.mark.parametrize(
    "since",
    [
        "UPDATE messages SET state = 'scheduled', tries = 0",  # queued again by an admin, and given a sendAt
        "UPDATE attempts SET outcome = 'failed'",  # looked up too early, and not found
    ],
)
def test_a_late_answer_counts_whatever_was_decided_since(adapters: Adapters, submit: Submit, since: str) -> None:
    receipt = submit()
    old = claim_one(adapters, worker=4711)
    rescue_after(adapters, DEAD_WHEN_BACK_S)
    adapters.db.all(since)
    late = ended(old, Outcome(OutcomeKind.ACCEPTED, upstream_id="u1"), MarkSent("u1"))
    settled = adapters.db.transaction(lambda c: settle(c, [late]))
    assert [type(event) for event in settled.events] == [Sent]
    assert state(adapters, receipt) == "sent"


def test_what_is_proved_to_have_arrived_is_sent_when_its_next_claim_is_taken_back(
    adapters: Adapters, submit: Submit
) -> None:
    """Its COMMIT was never confirmed, and meanwhile the attempt before it was answered."""
    receipt = submit()
    old = claim_one(adapters, worker=4711)
    rescue_after(adapters, DEAD_WHEN_BACK_S)
    new = claim_one(adapters, worker=1)
    late = ended(old, Outcome(OutcomeKind.ACCEPTED, upstream_id="u1"), MarkSent("u1"))
    adapters.db.transaction(lambda c: settle(c, [late]))
    assert adapters.db.transaction(lambda c: take_back(c, [new.token], 1)).count == 1
    assert state(adapters, receipt) == "sent"


def test_a_stale_claim_cannot_mark_sent(adapters: Adapters, submit: Submit) -> None:
    """A deferral gave the number back, and the attempt was never in doubt."""
    receipt = submit()
    old = claim_one(adapters)
    throttled = ended(old, Outcome(OutcomeKind.THROTTLED), Defer(DeferralReason.THROTTLED))
    adapters.db.transaction(lambda c: settle(c, [throttled]))
    claim_one(adapters)
    late = ended(old, Outcome(OutcomeKind.ACCEPTED, upstream_id="u1"), MarkSent("u1"))
    settled = adapters.db.transaction(lambda c: settle(c, [late]))
    assert settled.events == [Stale(message_id=receipt.message_id, attempt=1)]
    assert state(adapters, receipt) == "sending"


def test_a_use_with_a_late_answer_ended_with_that_answer(adapters: Adapters, submit: Submit) -> None:
    """Not when it was written off: rebuilt from the books, its token must not come back too early."""
    submit()
    old = claim_one(adapters, worker=4711)
    rescue_after(adapters, DEAD_WHEN_BACK_S)
    adapters.db.all("UPDATE attempts SET ended_at = ended_at - interval '9 s', deadline_at = now() - interval '5 s'")
    late = ended(old, Outcome(OutcomeKind.ACCEPTED, upstream_id="u1"), MarkSent("u1"))
    adapters.db.transaction(lambda c: settle(c, [late]))
    (use,) = budgets.token_uses(adapters.db, 60)
    assert use["ended_s"] > -1


def test_emptied_redis_gives_out_nothing_before_it_is_rebuilt(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    for n in range(11):
        submit(f"fan-{n}")
    dispatcher.drain("default")
    adapters.redis.flushall()
    dispatcher.drain("default")
    assert upstream.summary()["accepted"] == 10
    pauses: list[float] = []
    assert rebuild(adapters, pauses.append) == 1
    assert pauses == [START_WITHIN_S]
    report = dispatcher.drain("default")
    assert upstream.summary()["accepted"] == 10
    assert report.next_s is not None
    assert 50 < report.next_s <= 60


def test_a_rebuild_brings_back_open_loans_and_cooldowns_but_not_refunds(
    adapters: Adapters, submit: Submit, make_account: Callable[..., str]
) -> None:
    submit()
    claim_one(adapters)
    adapters.db.all("UPDATE accounts SET cooldown_until = now() + interval '20 seconds'")
    adapters.redis.flushall()
    rebuild(adapters, lambda _: None)
    view = adapters.tokens.view("default", adapters.settings.rate_limit)
    assert len(view.uses) == 1
    assert 10 < view.uses[0] < 14  # the loan's end lies ahead
    assert 15 < view.cooldown_s <= 20
    adapters.db.all("UPDATE attempts SET spent = false")
    adapters.redis.flushall()
    rebuild(adapters, lambda _: None)
    assert adapters.tokens.view("default", adapters.settings.rate_limit).uses == ()


def test_a_claim_made_while_the_books_are_read_is_void(adapters: Adapters, submit: Submit, upstream: Sandbox) -> None:
    """A token borrowed before the loss and put on the books after they were read: it must not be used."""
    submit()

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(adapters.tokens, name)

        def exchange(self, *args: Any, **kwargs: Any) -> Grant:
            grant = adapters.tokens.exchange(*args, **kwargs)
            if grant.tokens:
                threading.Event().wait(START_WITHIN_S + 0.1)
            return grant

    dispatcher = replace(adapters.dispatcher(worker=1), tokens=Slow())  # type: ignore[arg-type]
    timer = threading.Timer(START_WITHIN_S + 0.2, dispatcher.stopping.set)
    timer.start()
    dispatcher.drain("default")
    timer.cancel()
    found = queries.messages(adapters.db, MessageFilter(), None, 10)
    tried = queries.attempts(adapters.db, found[0]["id"])
    assert {attempt["deferral"] for attempt in tried} == {"interrupted"}
    assert upstream.summary()["arrivals"] == 0
    assert found[0]["state"] == "queued"


# --- overlooked


@dataclass
class Viewed:
    """Tokens that note every account that they are asked about."""

    tokens: Tokens
    accounts: list[str] = field(default_factory=list)

    def views(self, wanted: Sequence[tuple[str, Limits]]) -> list[View]:
        self.accounts.extend(account_id for account_id, _ in wanted)
        return self.tokens.views(wanted)


@pytest.fixture
def tokens_viewed(adapters: Adapters) -> Viewed:
    return Viewed(adapters.tokens)


@pytest.fixture
def viewed(tokens_viewed: Viewed) -> list[str]:
    """Grows by every account whose tokens are looked at."""
    return tokens_viewed.accounts


@pytest.fixture
def overlooked(adapters: Adapters, tokens_viewed: Viewed) -> Overlooked:
    return Overlooked(adapters.db, tokens_viewed, adapters.wakeups, adapters.settings.rate_limit)  # type: ignore[arg-type]


def sleeps_on(adapters: Adapters, submit: Submit) -> None:
    """A message is due, and the account's wake-up is an hour too late."""
    submit()
    adapters.wakeups.take_due()
    adapters.wakeups.publish_again()
    adapters.wakeups.wake("default", 3600)


def use_up(adapters: Adapters, limits: Limits) -> None:
    grant = adapters.tokens.borrow("default", limits, want=limits.most_at_once, lease_s=13)
    adapters.tokens.give_back("default", limits, grant.tokens)


def test_an_account_with_a_token_free_and_a_late_wake_up_is_woken(
    adapters: Adapters, overlooked: Overlooked, submit: Submit
) -> None:
    sleeps_on(adapters, submit)
    assert overlooked.wake() == 1
    assert adapters.wakeups.take_due().accounts == ("default",)


def test_an_account_without_a_token_is_not_looked_at_again_before_there_can_be_one(
    adapters: Adapters, overlooked: Overlooked, submit: Submit, viewed: list[str]
) -> None:
    limits = Limits.parse("3/2s")
    accounts.put(adapters.db, "default", limits=limits)
    sleeps_on(adapters, submit)
    use_up(adapters, limits)
    used_s = time.monotonic()
    del viewed[:]
    assert [overlooked.wake() for _ in range(3)] == [0, 0, 0]
    assert viewed == ["default"]
    time.sleep(used_s + 2.01 - time.monotonic())
    assert overlooked.wake() == 1


def test_a_new_limit_is_looked_at_at_once(adapters: Adapters, overlooked: Overlooked, submit: Submit) -> None:
    limits = Limits.parse("3/hour")
    accounts.put(adapters.db, "default", limits=limits)
    sleeps_on(adapters, submit)
    use_up(adapters, limits)
    assert overlooked.wake() == 0
    accounts.put(adapters.db, "default", limits=Limits.parse("4/hour"))
    assert overlooked.wake() == 1


def test_a_loan_may_be_refunded_at_any_time(adapters: Adapters, overlooked: Overlooked, submit: Submit) -> None:
    limits = Limits.parse("3/hour")
    accounts.put(adapters.db, "default", limits=limits)
    sleeps_on(adapters, submit)
    grant = adapters.tokens.borrow("default", limits, want=3, lease_s=13)
    adapters.tokens.give_back("default", limits, grant.tokens[:2])
    assert overlooked.wake() == 0
    adapters.tokens.refund("default", limits, grant.tokens[2:])
    assert overlooked.wake() == 1


def test_who_may_not_send_is_not_looked_at(
    adapters: Adapters, overlooked: Overlooked, submit: Submit, viewed: list[str]
) -> None:
    sleeps_on(adapters, submit)
    del viewed[:]
    closures.pause(adapters.db, "default", "holiday")
    overlooked.wake()
    closures.resume(adapters.db, "default")
    closures.cool_down(adapters.db, "default", 60)
    overlooked.wake()
    assert viewed == []


# --- past their expiresAt


def test_expired_messages_are_closed_and_make_way(adapters: Adapters, submit: Submit) -> None:
    first = submit("fan-1", expires_at=datetime.now(UTC) + timedelta(hours=1))
    second = submit("fan-1")
    assert expire(adapters.db, adapters.publisher) == 0
    adapters.db.all("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
    assert expire(adapters.db, adapters.publisher) == 1
    assert (state(adapters, first), state(adapters, second)) == ("expired", "queued")


def look_up(adapters: Adapters) -> int:
    adapters.db.all("UPDATE messages SET due_at = now() WHERE state = 'verifying'")
    a = adapters
    return verify(a.db, a.publisher, a.channels, a.vault, a.settings.retry_policy, threading.Event())


def test_without_idempotency_an_unknown_outcome_is_found_in_the_history(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.ledger.idempotent = False
    receipt = adapters.submitter().submit({"recipient_id": "cut-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    assert state(adapters, receipt) == "verifying"
    assert look_up(adapters) == 1
    assert state(adapters, receipt) == "sent"
    assert upstream.summary()["accepted"] == 1


def test_a_use_found_in_the_history_ended_with_its_deadline(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    """Written off when its worker seemed dead, it may have arrived at any time until then."""
    adapters = with_settings(onlyfans={"idempotent": False})
    adapters.submitter().submit({"recipient_id": "cut-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    adapters.db.all("UPDATE attempts SET ended_at = now() - interval '9 s', deadline_at = now() - interval '5 s'")
    assert look_up(adapters) == 1
    (use,) = budgets.token_uses(adapters.db, 60)
    assert -6 < use["ended_s"] < -4.9


def test_without_idempotency_what_the_history_does_not_show_goes_again(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.faults.add(Fault("cut_before"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    look_up(adapters)
    assert state(adapters, receipt) == "queued"
    adapters.dispatcher(worker=1).drain("default")
    assert state(adapters, receipt) == "sent"
    assert upstream.summary()["accepted"] == 1


def test_two_messages_of_the_same_text_are_two_messages(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.faults.add(Fault("delay", delay_s=0, text="same"))
    upstream.faults.add(Fault("cut_before", text="same"))
    wanted = {"recipient_id": "fan-1", "content": "same"}
    first, second = (adapters.submitter().submit(dict(wanted), "default", by=ALICE) for _ in range(2))
    adapters.dispatcher(worker=1).drain("default")
    assert (state(adapters, first), state(adapters, second)) == ("sent", "verifying")
    look_up(adapters)  # the first one's copy in the history is not taken for the second
    assert state(adapters, second) == "queued"


def test_one_of_the_same_text_still_on_its_way_is_not_taken_for_it(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    """The other one, of another priority, has arrived, and its answer is not on record yet."""
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.faults.add(Fault("cut_before"))
    wanted = {"recipient_id": "fan-1", "content": "same"}
    mine = adapters.submitter().submit({**wanted, "priority": 9}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    adapters.submitter().submit({**wanted, "priority": 1}, "default", by=ALICE)
    other = claim_one(adapters)
    with closing(OnlyFans(upstream.url, api_key=adapters.settings.channels["onlyfans"].api_key)) as channel:
        outcome = asyncio.run(channel.send(other, Sender(), start_by_s=float("inf"), timeout_s=2.0))
    look_up(adapters)
    assert state(adapters, mine) == "verifying"
    adapters.db.transaction(lambda c: settle(c, [ended(other, outcome, MarkSent(outcome.upstream_id))]))
    look_up(adapters)
    assert state(adapters, mine) == "queued"


def test_without_idempotency_and_history_a_person_must_decide(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.history = False
    receipt = adapters.submitter().submit({"recipient_id": "cut-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    while state(adapters, receipt) == "verifying":
        look_up(adapters)
    (dead,) = queries.dead_letters(adapters.db, receipt.message_id)
    assert dead["reason"] == "outcome_unknown"
    assert upstream.summary()["accepted"] == 1


@pytest.fixture(params=["refuses", "503", "429"])
def go_away(request: pytest.FixtureRequest, upstream: Sandbox) -> Iterator[Callable[[bool], None]]:
    """Takes the upstream away, in one of the ways in which it says so, and brings it back."""

    def go(away: bool) -> None:
        if request.param == "refuses":
            (upstream.stop if away else upstream.start)()
        else:
            upstream.away = Fault("status", status=int(request.param), retry_after_s=1) if away else None

    yield go
    if request.param == "refuses":
        upstream.stop()
        upstream.start()


def test_lookups_of_an_upstream_that_is_away_burn_nothing(
    with_settings: Callable[..., Adapters], upstream: Sandbox, go_away: Callable[[bool], None]
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    receipt = adapters.submitter().submit({"recipient_id": "cut-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    go_away(True)
    for _ in range(2 * LOOKUPS):
        assert look_up(adapters) == 1
        assert state(adapters, receipt) == "verifying"
    assert adapters.db.all("SELECT lookups FROM messages") == [{"lookups": 0}]
    go_away(False)
    look_up(adapters)
    assert state(adapters, receipt) == "sent"
    assert upstream.summary()["accepted"] == 1


def test_what_expires_is_not_looked_up_while_the_upstream_may_still_work_on_it(
    adapters: Adapters, submit: Submit
) -> None:
    """Its connection was cut at once; by the attempt's deadline, and two seconds later, the history must show it."""
    receipt = submit("fan-1", expires_at=datetime.now(UTC) + timedelta(hours=1))
    claim = claim_one(adapters)
    cut = Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM, error="cut")
    adapters.db.transaction(lambda c: settle(c, [ended(claim, cut, ScheduleRetry(0.0))]))
    adapters.db.all("UPDATE messages SET expires_at = now()")
    assert expire(adapters.db, adapters.publisher) == 0
    assert state(adapters, receipt) == "verifying"
    assert waits_for_the_deadline_s(adapters, receipt) == VERIFY_AFTER_S


def test_one_refused_after_a_cut_is_not_looked_up_while_the_upstream_may_still_work_on_the_first_request(
    adapters: Adapters, submit: Submit
) -> None:
    receipt = submit("fan-1")
    cut = Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM, error="cut")
    refused = Outcome(OutcomeKind.REJECTED, Blame.MESSAGE, http_status=400, error="no")
    for outcome, decision in ((cut, ScheduleRetry(0.0)), (refused, AwaitVerification(VERIFY_AFTER_S))):
        claim = claim_one(adapters)
        adapters.db.transaction(lambda c: settle(c, [ended(claim, outcome, decision)]))  # noqa: B023
        adapters.db.all("UPDATE attempts SET deadline_at = started_at + interval '1 hour' WHERE number = 1")
    assert waits_for_the_deadline_s(adapters, receipt) == VERIFY_AFTER_S


def waits_for_the_deadline_s(adapters: Adapters, receipt: Receipt) -> float:
    """How long after the deadline of its doubtful attempt a message is to be looked up."""
    found = adapters.db.one(
        "SELECT extract(epoch FROM m.due_at - a.deadline_at)::float8 AS wait_s"
        " FROM messages m JOIN attempts a ON a.message_id = m.id AND a.outcome = 'unknown' WHERE m.id = %(id)s",
        {"id": receipt.message_id},
    )
    assert found is not None
    return found["wait_s"]


def test_what_may_have_arrived_is_neither_cancelled_nor_expired_unseen(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    receipt = submit("cut-1", expires_at=datetime.now(UTC) + timedelta(hours=1))
    claim_one(adapters, worker=4711)
    rescue_after(adapters, DEAD_WHEN_BACK_S)  # queued again, its first attempt unknown
    assert not endings.cancel(adapters.db, receipt.message_id, ALICE)
    adapters.db.all("UPDATE messages SET expires_at = now()")
    assert expire(adapters.db, adapters.publisher) == 0
    assert state(adapters, receipt) == "verifying"
    look_up(adapters)  # nothing of it is upstream
    assert state(adapters, receipt) == "queued"
    assert expire(adapters.db, adapters.publisher) == 1
    assert state(adapters, receipt) == "expired"


def test_one_that_may_have_arrived_with_an_earlier_attempt_is_not_cancelled_either(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    upstream.faults.add(Fault("cut"))
    upstream.faults.add(Fault("status", status=503))
    upstream.faults.add(Fault("status", status=429))
    receipt = submit(expires_at=datetime.now(UTC) + timedelta(hours=1))
    dispatcher.drain("default")
    assert [a["outcome"] for a in queries.attempts(adapters.db, receipt.message_id)] == [
        "unknown", "unknown", "throttled",
    ]  # fmt: skip
    assert not endings.cancel(adapters.db, receipt.message_id, ALICE)
    adapters.db.all("UPDATE attempts SET started_at = started_at - interval '1 minute' WHERE number = 1")
    adapters.db.all("UPDATE messages SET expires_at = now()")
    assert expire(adapters.db, adapters.publisher) == 0
    look_up(adapters)
    assert state(adapters, receipt) == "sent"


@pytest.mark.parametrize("last", [503, 400])
def test_one_given_up_that_may_have_arrived_is_told_so(
    with_settings: Callable[..., Adapters], upstream: Sandbox, last: int
) -> None:
    """Whatever the last answer was: an earlier attempt got none, and the history cannot be asked."""
    adapters = with_settings(max_attempts=2)
    upstream.history = False
    upstream.faults.add(Fault("cut"))
    upstream.faults.add(Fault("status", status=last))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    for _ in range(2):
        adapters.dispatcher(worker=1).drain("default")
    while state(adapters, receipt) == "verifying":
        look_up(adapters)
    assert state(adapters, receipt) == "failed"
    (dead,) = queries.dead_letters(adapters.db, receipt.message_id)
    assert dead["reason"] == "outcome_unknown"


def test_one_refused_at_last_whose_first_attempt_arrived_is_found(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    upstream.faults.add(Fault("cut"))
    upstream.faults.add(Fault("status", status=400))
    adapters = with_settings(max_attempts=2)
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    assert state(adapters, receipt) == "verifying"
    look_up(adapters)
    assert state(adapters, receipt) == "sent"


def test_postgres_connections_cut_in_the_pool_are_replaced(adapters: Adapters, submit: Submit) -> None:
    submit("fan-1")
    with psycopg.connect(adapters.settings.database_url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'paceline tests'"
        )
    submit("fan-2")
    assert len(queries.messages(adapters.db, MessageFilter(), None, 10)) == 2


def test_a_question_put_to_a_dead_connection_is_put_again(adapters: Adapters, submit: Submit) -> None:
    submit("fan-1")
    with psycopg.connect(adapters.settings.database_url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'paceline tests'"
        )
    assert len(queries.messages(adapters.db, MessageFilter(), None, 10)) == 1


def test_a_deferral_told_twice_does_not_touch_the_next_claim(adapters: Adapters, submit: Submit) -> None:
    """The COMMIT of a deferral went through, nobody told us, and it is repeated; meanwhile another drain has claimed
    the message, under the number that the deferral gave back."""
    receipt = submit()
    first = claim_one(adapters)
    throttled = ended(first, Outcome(OutcomeKind.THROTTLED), Defer(DeferralReason.THROTTLED))
    adapters.db.transaction(lambda c: settle(c, [throttled]))
    second = claim_one(adapters)
    assert (first.attempt, second.attempt) == (1, 1)
    settled = adapters.db.transaction(lambda c: settle(c, [throttled]))
    assert settled.events == [Stale(message_id=receipt.message_id, attempt=1)]
    accepted = ended(first, Outcome(OutcomeKind.ACCEPTED, upstream_id="u"), MarkSent("u"))
    assert adapters.db.transaction(lambda c: settle(c, [accepted])).events == settled.events
    assert state(adapters, receipt) == "sending"


def test_claims_whose_commit_was_never_confirmed_are_taken_back(adapters: Adapters, submit: Submit) -> None:
    receipt = submit()
    claim = claim_one(adapters)
    assert adapters.db.transaction(lambda c: take_back(c, [claim.token], worker=2)).count == 0
    assert adapters.db.transaction(lambda c: take_back(c, [claim.token], worker=1)).count == 1
    assert state(adapters, receipt) == "queued"
    assert claim_one(adapters).attempt == 1


class Forgetful:
    """A database a third of whose COMMITs go through without its being told."""

    def __init__(self, db: Database) -> None:
        self._db, self._chance = db, random.Random(7)

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def transaction(self, work):  # type: ignore[no-untyped-def]
        return self._forget(self._db.transaction(work))

    def single(self, work):  # type: ignore[no-untyped-def]
        return self._forget(self._db.single(work))

    def _forget(self, done):  # type: ignore[no-untyped-def]
        if self._chance.random() < 1 / 3:
            raise StoreUnavailable("committed, but who knows")
        return done


def test_commits_that_nobody_confirmed_lose_nothing_and_send_nothing_twice(
    adapters: Adapters, submit: Submit, make_account: Callable[..., str], upstream: Sandbox
) -> None:
    upstream.latency_ms = 150
    account = make_account(limits="1000/s")
    receipts = [submit(f"fan-{n % 7}", account_id=account) for n in range(30)]
    forgetful = Forgetful(adapters.db)
    dispatcher = replace(adapters.dispatcher(worker=1), db=forgetful)  # type: ignore[arg-type]
    for _ in range(40):
        with suppress(StoreUnavailable):  # what it had claimed and never heard of is taken back by the next one
            dispatcher.drain(account)
    assert {state(adapters, receipt) for receipt in receipts} == {"sent"}
    summary = upstream.summary()
    assert (summary["accepted"], summary["replayed"], summary["duplicates"]) == (30, 0, 0)


class Blinking:
    """A database that answers the first so many transactions, and none of the next so many."""

    def __init__(self, db: Database, good: int, bad: int) -> None:
        self._db, self.good, self.bad = db, good, bad

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def transaction(self, work):  # type: ignore[no-untyped-def]
        self._blink()
        return self._db.transaction(work)

    def single(self, work):  # type: ignore[no-untyped-def]
        self._blink()
        return self._db.single(work)

    def _blink(self) -> None:
        if self.good:
            self.good -= 1
        elif self.bad:
            self.bad -= 1
            raise StoreUnavailable("blinking")


def test_answers_are_recorded_though_the_store_blinks_while_requests_are_out(
    adapters: Adapters, submit: Submit, upstream: Sandbox
) -> None:
    upstream.latency_ms = 400
    receipt = submit()
    blinking = Blinking(adapters.db, good=1, bad=6)  # claimed; then the look for new messages fails
    dispatcher = replace(adapters.dispatcher(worker=1), db=blinking)  # type: ignore[arg-type]
    dispatcher.drain("default")
    assert state(adapters, receipt) == "sent"
    assert [a["outcome"] for a in queries.attempts(adapters.db, receipt.message_id)] == ["accepted"]


def test_a_rebuild_cut_short_leaves_the_gates_closed(adapters: Adapters, submit: Submit) -> None:
    adapters.redis.flushall()
    assert rebuild(adapters, lambda _: True) == 0
    assert adapters.tokens.lost()
    assert adapters.tokens.borrow("default", adapters.settings.rate_limit, lease_s=1).lost


_T = TypeVar("_T")


class SlowToCommit(Database):
    """Waits before each COMMIT, so that whoever looks meanwhile sees what was there before."""

    def transaction(self, work: Callable[[Connection], _T]) -> _T:
        def slowly(c: Connection) -> _T:
            result = work(c)
            threading.Event().wait(0.3)
            return result

        return super().transaction(slowly)


def test_one_entry_of_the_history_is_not_taken_for_two_messages(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    """Two look-ups at once, same chat, same text, and only one of the two arrived."""
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.faults.add(Fault("cut", chat_id="fan-1"))
    upstream.faults.add(Fault("cut_before", chat_id="fan-1"))
    for priority in (5, 6):
        wanted = {"recipient_id": "fan-1", "content": "same", "priority": priority}
        adapters.submitter().submit(wanted, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    adapters.db.all("UPDATE messages SET due_at = now() WHERE state = 'verifying'")
    together = threading.Barrier(2)
    slow = SlowToCommit(adapters.settings.database_url)

    def look() -> None:
        together.wait()
        a = adapters
        verify(slow, a.publisher, a.channels, a.vault, a.settings.retry_policy, threading.Event())

    lookers = [threading.Thread(target=look) for _ in range(2)]
    with closing(slow):
        for looker in lookers:
            looker.start()
        for looker in lookers:
            looker.join()
    found = queries.messages(adapters.db, MessageFilter(), None, 10)
    assert sorted(row["state"] for row in found).count("sent") == 1


def test_a_drain_makes_way_after_a_while_though_there_is_more(
    adapters: Adapters, submit: Submit, make_account: Callable[..., str]
) -> None:
    account = make_account(limits="1000/s")
    for n in range(WIDTH + 50):
        submit(f"fan-{n}", account_id=account)
    report = replace(adapters.dispatcher(worker=1), drain_for_s=0.0).drain(account)
    assert 0 < report.settled <= WIDTH
    assert report.next_s is not None
    assert report.next_s < 1
    assert account in adapters.wakeups.take_due().accounts
