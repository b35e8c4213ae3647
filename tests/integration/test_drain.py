"""One account drained, step by step, against a real upstream."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from deploy.sandbox import Fault, Sandbox
from ratelimit import Limits, TokensUnavailable
from tests.conftest import ALICE
from tests.integration.peers import Authority, Peer, answer_all
from workers.bootstrap import SENDERS, Adapters
from workers.domain.decisions import LINE_REST_S
from workers.domain.message import Claim
from workers.domain.outcome import Capabilities, Outcome, OutcomeKind
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import accounts, queries

Submit = Callable[..., Receipt]


def state(adapters: Adapters, receipt: Receipt) -> str:
    row = queries.message(adapters.db, receipt.message_id, None)
    assert row is not None
    return row["state"]


def attempts(adapters: Adapters, receipt: Receipt) -> list[tuple[int, str]]:
    return [(a["number"], a["outcome"]) for a in queries.attempts(adapters.db, receipt.message_id) if a["counted"]]


def texts(upstream: Sandbox) -> list[str]:
    return [entry.arrival.message.text for entry in upstream.ledger.entries if entry.verdict == "accepted"]


def test_a_message_is_sent_once(adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox) -> None:
    receipt = submit("fan-1", "Hello")
    dispatcher.drain("default")
    assert state(adapters, receipt) == "sent"
    assert attempts(adapters, receipt) == [(1, "accepted")]
    assert texts(upstream) == ["Hello"]


def test_ten_go_at_once_and_the_eleventh_waits(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    receipts = [submit(f"fan-{n}") for n in range(11)]
    report = dispatcher.drain("default")
    assert [state(adapters, receipt) for receipt in receipts] == ["sent"] * 10 + ["queued"]
    assert report.next_s is not None
    assert 55 < report.next_s <= 60


def test_urgent_ones_go_first_then_the_older(
    submit: Submit, dispatcher: Dispatcher, upstream: Sandbox, adapters: Adapters, make_account: Callable[..., str]
) -> None:
    account = make_account(limits="1/100ms")
    for content, priority in (("low", 1), ("first", 5), ("second", 5), ("urgent", 10)):
        submit(f"fan-{content}", content, account, priority=priority)
    while queries.counts(adapters.db, [account]):
        dispatcher.drain(account)
    assert texts(upstream) == ["urgent", "first", "second", "low"]


def test_one_recipient_gets_one_message_at_a_time_in_order(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    upstream.latency_ms = 30
    receipts = [submit("fan-1", f"part {n}") for n in range(5)]
    assert [state(adapters, receipt) for receipt in receipts] == ["queued"] + ["held"] * 4
    dispatcher.drain("default")
    assert texts(upstream) == [f"part {n}" for n in range(5)]


def test_a_failing_message_holds_back_only_its_own_recipient(
    adapters: Adapters,
    submit: Submit,
    dispatcher: Dispatcher,
    upstream: Sandbox,
    make_account: Callable[..., str],
) -> None:
    account = make_account(limits="100/s")
    accounts.put(adapters.db, account, limits=Limits.parse("100/s"), settings={"trust5xx": True})
    upstream.faults.add(Fault("status", status=503, text="failing", times=None))
    failing = submit("fan-1", "failing", account)
    behind, other = submit("fan-1", "behind", account), submit("fan-2", "other", account)
    adapters.db.all("UPDATE messages SET tries = 3")
    dispatcher.drain(account)
    assert texts(upstream) == ["other", "behind"]  # not before the failing one is dead
    assert state(adapters, failing) == "failed"
    assert attempts(adapters, failing) == [(1, "failed"), (2, "failed")]
    assert (state(adapters, behind), state(adapters, other)) == ("sent", "sent")


def test_bounced_is_dead_after_one_attempt_with_the_upstreams_words(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher
) -> None:
    receipt = submit("bounce-1")
    dispatcher.drain("default")
    (dead,) = queries.dead_letters(adapters.db, receipt.message_id)
    assert (dead["reason"], dead["error"]) == ("rejected", "This user does not accept messages")
    assert attempts(adapters, receipt) == [(1, "rejected")]


@pytest.mark.parametrize(("trusted", "outcome"), [(False, "unknown"), (True, "failed")])
def test_503_twice_is_sent_at_the_third_attempt(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox, trusted: bool, outcome: str
) -> None:
    """A 5xx alone does not say whether the message arrived, unless the account says that its upstream's does."""
    accounts.put(adapters.db, "default", settings={"trust5xx": trusted})
    receipt = submit("flaky-1")
    dispatcher.drain("default")
    assert attempts(adapters, receipt) == [(1, outcome), (2, outcome), (3, "accepted")]
    assert {entry.arrival.message.idempotency_key for entry in upstream.ledger.entries} == {receipt.message_id}


def test_429_costs_no_attempt_and_cools_the_account_down(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    upstream.faults.add(Fault("status", status=429, retry_after_s=30, chat_id="fan-1"))
    receipt = submit("fan-1")
    report = dispatcher.drain("default")
    assert state(adapters, receipt) == "queued"
    assert attempts(adapters, receipt) == []
    (deferral,) = queries.attempts(adapters.db, receipt.message_id)
    assert (deferral["deferral"], deferral["http_status"]) == ("throttled", 429)
    assert report.next_s is not None
    assert 25 < report.next_s <= 30 + LINE_REST_S
    assert adapters.reader().status(None).accounts[0].state == "cooldown"


def test_401_pauses_the_account_and_burns_nothing(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    upstream.faults.add(Fault("status", status=401, error="Key revoked"))
    first, second = submit("fan-1"), submit("fan-2")
    upstream.faults.add(Fault("status", status=401, error="Key revoked"))
    dispatcher.drain("default")
    assert (state(adapters, first), state(adapters, second)) == ("queued", "queued")
    (account,) = adapters.reader().status(None).accounts
    assert account.state == "paused"
    assert account.reason is not None
    assert "Key revoked" in account.reason


def test_cut_off_is_sent_again_under_the_same_key(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    receipt = submit("cut-1")
    dispatcher.drain("default")
    assert attempts(adapters, receipt) == [(1, "unknown"), (2, "accepted")]
    assert upstream.summary()["duplicates"] == 0
    assert len(texts(upstream)) == 1


def test_an_unknown_outcome_keeps_its_token_until_the_deadline(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher
) -> None:
    submit("cut-1")
    dispatcher.drain("default")
    (account,) = adapters.reader().status(None).accounts
    assert account.tokens_available == 8  # one for the unknown attempt, one for the accepted


def test_expired_is_never_sent(adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox) -> None:
    receipt = submit("fan-1", expires_at=datetime.now(UTC) + timedelta(seconds=60))
    adapters.db.all("UPDATE messages SET expires_at = now() - interval '1 second'")
    dispatcher.drain("default")
    assert texts(upstream) == []
    assert state(adapters, receipt) == "queued"


def test_scheduled_waits_for_its_time_and_blocks_nobody(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    later = submit("fan-1", "later", send_at=datetime.now(UTC) + timedelta(hours=1))
    submit("fan-1", "now")
    report = dispatcher.drain("default")
    assert texts(upstream) == ["now"]
    assert report.next_s is not None
    assert 3500 < report.next_s <= 3600
    adapters.db.all("UPDATE messages SET due_at = now() WHERE state = 'scheduled'")
    dispatcher.drain("default")
    assert texts(upstream) == ["now", "later"]
    assert state(adapters, later) == "sent"


Send = Callable[..., Any]


def channel_of(send: Send) -> Any:
    return SimpleNamespace(name="onlyfans", capabilities=Capabilities(idempotent=True), send=send)


def through(dispatcher: Dispatcher, send: Send) -> Dispatcher:
    """It, with a channel of one's own."""
    return replace(dispatcher, channels={"onlyfans": channel_of(send)})


def test_a_channel_that_breaks_costs_its_own_message_an_attempt_and_nobody_a_place(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher
) -> None:
    async def send(claim: Claim, *_: Any, **__: Any) -> Outcome:
        if claim.recipient_id == "fan-1" and claim.attempt == 1:
            raise LookupError("private words")
        return Outcome(OutcomeKind.ACCEPTED, upstream_id=claim.message_id)

    broken, sound = submit("fan-1"), submit("fan-2")
    through(dispatcher, send).drain("default")
    assert (state(adapters, sound), attempts(adapters, sound)) == ("sent", [(1, "accepted")])
    first, *_ = queries.attempts(adapters.db, broken.message_id)
    assert (first["outcome"], first["error"]) == ("unknown", "LookupError")
    assert dispatcher.senders.take(SENDERS, newcomer=True) == SENDERS


def test_what_is_logged_during_a_send_goes_under_its_own_message(submit: Submit, dispatcher: Dispatcher) -> None:
    seen: dict[str, Any] = {}
    all_out = asyncio.Event()

    async def send(claim: Claim, *_: Any, **__: Any) -> Outcome:
        seen[claim.message_id] = None
        if len(seen) == 3:
            all_out.set()
        await all_out.wait()  # each of them has been at it meanwhile
        seen[claim.message_id] = structlog.contextvars.get_contextvars()
        return Outcome(OutcomeKind.ACCEPTED, upstream_id=claim.message_id)

    receipts = [submit(f"fan-{n}") for n in range(3)]
    structlog.contextvars.clear_contextvars()
    with structlog.contextvars.bound_contextvars(account_id="the drain's", drain=1):
        through(dispatcher, send).drain("default")
        assert structlog.contextvars.get_contextvars() == {"account_id": "the drain's", "drain": 1}
    for receipt in receipts:
        ids = {"message_id": receipt.message_id, "account_id": "default", "attempt": 1, "request_id": ALICE.request_id}
        assert seen[receipt.message_id] == ids | {"drain": 1}


def test_a_drain_ends_though_its_senders_end_before_it(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher
) -> None:
    out = threading.Event()

    async def send(*_: Any, **__: Any) -> Outcome:
        out.set()
        await asyncio.sleep(3600)
        raise AssertionError

    receipt = submit()
    drain = threading.Thread(target=through(dispatcher, send).drain, args=["default"])
    drain.start()
    assert out.wait(30)
    dispatcher.stopping.set()
    dispatcher.senders.close()
    drain.join(30)
    assert not drain.is_alive()
    assert attempts(adapters, receipt) == [(1, "unknown")]


def test_tokens_that_come_back_unused_are_not_waited_for(
    submit: Submit, make_account: Callable[..., str], dispatcher: Dispatcher
) -> None:
    """Two of three messages had all the tokens there are, and never left: both are free again."""

    async def too_late(*_: Any, **__: Any) -> Outcome:
        return Outcome(OutcomeKind.FAILED, left=False, interrupted=True)

    account = make_account(limits="2/minute")
    for n in range(3):
        submit(f"fan-{n}", account_id=account)
    report = through(dispatcher, too_late).drain(account)
    assert report.next_s is not None
    assert report.next_s < 30


def test_what_a_denial_hung_on_is_not_waited_for_once_it_is_back(
    submit: Submit, make_account: Callable[..., str], dispatcher: Dispatcher
) -> None:
    """While all are out, nobody knows when the next token comes: one period after the end of a loan at the latest. The
    drain's own time is up when they come back."""

    async def slow(claim: Claim, *_: Any, **__: Any) -> Outcome:
        await asyncio.sleep(0.3)
        return Outcome(OutcomeKind.ACCEPTED, upstream_id=claim.message_id)

    account = make_account(limits="2/minute")
    for n in range(5):
        submit(f"fan-{n}", account_id=account)
    slowly = replace(through(dispatcher, slow), drain_for_s=0.1)
    assert (slowly.drain(account).next_s or 99) < 1
    report = slowly.drain(account)
    assert report.next_s is not None
    assert 55 < report.next_s <= 60


def test_a_redis_that_refuses_is_not_asked_all_the_time(submit: Submit, dispatcher: Dispatcher) -> None:
    """The first answer's token cannot be given back while the second request is out."""

    class Refusing:
        asked = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(dispatcher.tokens, name)

        def exchange(self, *args: Any, **kwargs: Any) -> Any:
            self.asked += 1
            if self.asked > 1:
                raise TokensUnavailable("NOREPLICAS")
            return dispatcher.tokens.exchange(*args, **kwargs)

    async def send(claim: Claim, *_: Any, **__: Any) -> Outcome:
        await asyncio.sleep(0.5 if claim.recipient_id == "fan-2" else 0)
        return Outcome(OutcomeKind.ACCEPTED, upstream_id=claim.message_id)

    submit("fan-1")
    submit("fan-2")
    refusing = Refusing()
    replace(through(dispatcher, send), tokens=refusing).drain("default")  # type: ignore[arg-type]
    assert refusing.asked < 20


def test_an_upstream_whose_connections_take_longer_than_a_token_may_wait_is_sent_to(
    with_settings: Callable[..., Adapters], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 s each, at 10 per 2 s: a token must be on the books within 2 s, but its request need not have left by then."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    peer = Peer(answer_all, authority.server_tls("127.0.0.1"), before_tls=lambda: time.sleep(3))
    adapters = with_settings(
        onlyfans={"base_url": peer.url, "idempotent": False},
        send_timeout_seconds=10.0,
        rate_limit=Limits.parse("10/2s"),
    )
    for n in range(20):
        adapters.submitter().submit({"recipient_id": f"fan-{n}", "content": "Hello"}, "default", by=ALICE)
    dispatcher = adapters.dispatcher(worker=1)
    began = time.monotonic()
    while queries.counts(adapters.db, ["default"]) and time.monotonic() - began < 30:
        dispatcher.drain("default")
        time.sleep(0.1)
    peer.close()
    rows = adapters.db.all("SELECT outcome, count(*) FROM attempts GROUP BY outcome")
    assert [tuple(row.values()) for row in rows] == [("accepted", 20)]
    assert time.monotonic() - began < 15
