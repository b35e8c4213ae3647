"""What follows from each answer of an upstream, and how far it reaches: contract §2 against a real upstream."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient

from deploy.sandbox import Fault, Sandbox
from ratelimit import Limits
from tests.conftest import ALICE, rebuild
from workers.bootstrap import Adapters, build
from workers.domain.decisions import FIRST_REST_S, LOOKUPS, ScheduleRetry
from workers.domain.errors import StoreUnavailable
from workers.domain.filters import AuditFilter
from workers.domain.message import Claim
from workers.domain.outcome import Outcome, OutcomeKind
from workers.services.dispatch import Dispatcher
from workers.services.reader import Dossier
from workers.services.recovery import verify
from workers.services.settle import Settlement, settle
from workers.services.submit import Receipt
from workers.store import accounts, audit, closures, lookups
from workers.store.claims import claim_next
from workers.store.session import Connection

Submit = Callable[..., Receipt]


def states(adapters: Adapters) -> dict[str, int]:
    rows = adapters.db.all("SELECT state, count(*)::int AS n FROM messages GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


def state(adapters: Adapters, receipt: Receipt) -> str:
    return dossier(adapters, receipt).message["state"]


def dossier(adapters: Adapters, receipt: Receipt) -> Dossier:
    return adapters.reader().message(receipt.message_id, None)


def account(adapters: Adapters, account_id: str = "default") -> accounts.Account:
    found = accounts.get(adapters.db, account_id)
    assert found is not None
    return found


def rested(adapters: Adapters) -> None:
    """The rest is over."""
    adapters.db.all("UPDATE accounts SET rest_until = now() WHERE rest_until IS NOT NULL")


def health(adapters: Adapters) -> tuple[str, str]:
    adapters.wakeups.beat("worker", "1", 60)
    adapters.wakeups.beat("pacer", "1", 60)
    state, words = adapters.reader().status(None).health
    return str(state), words


# --- an upstream that serves nobody


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "http://nobody.invalid", "tls"])
def test_an_upstream_out_of_reach_costs_nothing(
    with_settings: Callable[..., Adapters], upstream: Sandbox, base_url: str
) -> None:
    """Refused, a name without an address, a server without TLS. Before: 1,400 of 2,000 dead within 45 s."""
    base_url = upstream.url.replace("http:", "https:") if base_url == "tls" else base_url
    adapters = with_settings(onlyfans={"base_url": base_url}, max_attempts=2)
    listed = [{"recipient_id": f"fan-{n}", "content": "x", "priority": 5, "account_id": "default"} for n in range(2000)]
    adapters.submitter().submit_many(listed, by=ALICE)
    later = datetime.now(UTC) + timedelta(hours=3)
    adapters.submitter().submit({"recipient_id": "fan-1", "content": "x", "send_at": later}, "default", by=ALICE)
    dispatcher = adapters.dispatcher(worker=1)
    for _ in range(5):
        dispatcher.drain("default")
        rested(adapters)
    assert states(adapters).get("failed") is None
    assert adapters.db.one("SELECT max(tries) AS tries, max(attempts) AS attempts FROM messages") == {
        "tries": 0,
        "attempts": 0,
    }
    tried = adapters.db.all("SELECT outcome, counted, spent, deferral FROM attempts")
    assert {(a["outcome"], a["counted"], a["spent"], a["deferral"]) for a in tried} == {
        ("unavailable", False, False, "upstream")
    }
    assert len(tried) <= 10 + 4  # what one drain had out at once, and then one probe a rest
    status, words = health(adapters)
    assert status == "degraded"
    assert words.startswith("The upstream is out of reach (upstream cannot be reached: ")
    since = account(adapters).rest.since  # type: ignore[union-attr]
    assert f" since {since:%Y-%m-%dT%H:%M:%SZ}; account default waits" in words


@pytest.mark.parametrize("fault", [Fault("status", status=503, retry_after_s=60, times=None), None])
def test_an_identity_rests_is_probed_by_one_message_and_opens_at_the_first_answer(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox, fault: Fault | None
) -> None:
    if fault:
        upstream.faults.add(fault)
    else:
        upstream.stop()
    adapters.db.all("UPDATE accounts SET limits = '1000/s'")
    receipts = [submit(f"fan-{n}") for n in range(6)]
    report = dispatcher.drain("default")
    assert report.next_s is not None
    assert report.next_s > FIRST_REST_S / 3
    arrivals = len(upstream.ledger.entries)
    rest = account(adapters).rest
    assert rest is not None
    assert (rest.kind, rest.times) == ("away", 1)
    assert rest.left_s > (55 if fault else 0)
    waiting = dossier(adapters, receipts[0]).waiting
    assert waiting is not None
    assert (waiting.estimate.blocked_by, waiting.estimate.at) == ("upstream", None)

    dispatcher.drain("default")  # it still rests
    rested(adapters)
    dispatcher.drain("default")  # one probe
    assert len(upstream.ledger.entries) - arrivals == (1 if fault else 0)
    again = account(adapters).rest
    assert again is not None
    assert (again.times, again.since) == (2, rest.since)

    upstream.faults.clear()
    if not fault:
        upstream.start()
    rested(adapters)
    assert dispatcher.drain("default").claimed == 1
    assert account(adapters).rest is None
    assert adapters.wakeups.take_due().accounts == ("default",)
    dispatcher.drain("default")
    assert states(adapters) == {"sent": 6}
    assert health(adapters) == ("healthy", "All systems operational")


def test_while_one_probes_nobody_else_does(adapters: Adapters, submit: Submit, upstream: Sandbox) -> None:
    adapters.db.transaction(lambda c: closures.rest(c, "default", "away", "refused", 0.0, probed=False))
    upstream.latency_ms = 300
    for n in range(5):
        submit(f"fan-{n}")
    drains = [threading.Thread(target=adapters.dispatcher(worker=n).drain, args=["default"]) for n in (1, 2, 3)]
    for drain in drains:
        drain.start()
    for drain in drains:
        drain.join()
    assert upstream.summary()["arrivals"] == 1


def test_a_probe_that_dies_gives_way_to_another(adapters: Adapters, submit: Submit) -> None:
    submit()
    adapters.db.transaction(lambda c: closures.rest(c, "default", "away", "refused", 0.0, probed=False))
    assert closures.begin_probe(adapters.db, "default", 0.05)
    assert not closures.begin_probe(adapters.db, "default", 0.05)
    time.sleep(0.06)
    assert closures.begin_probe(adapters.db, "default", 0.05)


def test_a_probe_without_a_message_is_none(adapters: Adapters, dispatcher: Dispatcher) -> None:
    adapters.db.transaction(lambda c: closures.rest(c, "default", "away", "refused", 0.0, probed=False))
    dispatcher.drain("default")
    assert closures.begin_probe(adapters.db, "default", 1.0)


def test_an_identity_that_rests_keeps_no_drain_busy_when_nothing_waits(
    adapters: Adapters, dispatcher: Dispatcher
) -> None:
    """Before: a wake-up every 50 ms for ever, since there was no message to probe with."""
    adapters.db.transaction(lambda c: closures.rest(c, "default", "away", "refused", 0.0, probed=False))
    assert dispatcher.drain("default").next_s is None
    assert health(adapters)[0] == "healthy"  # nobody waits for it, and nobody knows how it is
    closures.open_again(adapters.db, "default")
    adapters.accounts().pause("default", reason="lunch", until=datetime.now(UTC), by=ALICE)
    assert dispatcher.drain("default").next_s is None


def test_a_probe_cut_short_by_this_process_says_nothing_of_the_upstream(adapters: Adapters, submit: Submit) -> None:
    submit()
    adapters.db.transaction(lambda c: closures.rest(c, "default", "away", "refused", 0.0, probed=False))
    assert closures.begin_probe(adapters.db, "default", 13.0)
    grant = adapters.tokens.borrow("default", adapters.settings.rate_limit, lease_s=13.0)
    claimed = claim_next(adapters.db, "default", grant.tokens, 1, 13.0, origin=grant.origin, probe=True)
    assert claimed is not None
    (claim,) = claimed
    stopped = Outcome(OutcomeKind.UNKNOWN, error="the process ended before an answer came")
    settlement = Settlement(
        claim=claim, outcome=stopped, decision=ScheduleRetry(0.0), channel="onlyfans", probed=True, rests=1
    )
    adapters.db.transaction(lambda c: settle(c, [settlement]))
    rest = account(adapters).rest
    assert rest is not None
    assert (rest.times, rest.left_s) == (1, 0)


def test_a_message_is_accepted_while_its_account_is_being_closed(adapters: Adapters, submit: Submit) -> None:
    """Its row refers to the account's. Before: it waited for the lock on that, and drains deadlocked with senders."""

    def work(c: Connection) -> bool:
        closures.cool_down(c, "default", 1.0)
        closures.rest(c, "default", "away", "refused", 0.0, probed=False)
        sender = threading.Thread(target=submit)
        sender.start()
        sender.join(5)
        return sender.is_alive()

    assert not adapters.db.transaction(work)


# --- throttled


def test_one_chat_that_is_always_throttled_holds_up_nobody(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, make_account: Callable[..., str]
) -> None:
    """As given, but for the limit: it always answers 429 with Retry-After 1, and ten others stand behind it. Before: 0
    of 10 within 40 s."""
    account_id = make_account(limits="1/200ms")
    jammed = submit("jammed-1", account_id=account_id, priority=9)
    others = [submit(f"fan-{n}", account_id=account_id) for n in range(10)]
    deadline_s = time.monotonic() + 40
    while any(state(adapters, other) != "sent" for other in others) and time.monotonic() < deadline_s:
        time.sleep(min(1.0, dispatcher.drain(account_id).next_s or 1.0))
    assert {state(adapters, other) for other in others} == {"sent"}
    found = dossier(adapters, jammed)
    assert (found.message["state"], found.message["attempts"]) == ("queued", 0)
    assert found.message["throttles"] >= 2
    cooled = adapters.db.all("SELECT 1 FROM accounts WHERE cooldown_until > now()")
    assert not cooled  # others got through meanwhile: the line cools, and not the identity


def test_after_a_cooldown_another_line_goes_first(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, make_account: Callable[..., str], upstream: Sandbox
) -> None:
    account_id = make_account(limits="1/50ms")
    submit("throttle-1", account_id=account_id, priority=10)
    submit("fan-2", account_id=account_id, priority=1)
    deadline_s = time.monotonic() + 20
    while upstream.summary()["accepted"] < 2 and time.monotonic() < deadline_s:
        time.sleep(min(0.2, dispatcher.drain(account_id).next_s or 0.2))
    accepted = [e.arrival.message.chat_id for e in upstream.ledger.entries if e.verdict == "accepted"]
    assert accepted == ["fan-2", "throttle-1"]


def test_a_throttled_line_is_blocked_by_its_cooldown_and_not_by_a_schedule(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher
) -> None:
    receipt = submit("jammed-1")
    dispatcher.drain("default")
    closures.lift_cooldown(adapters.db, "default")
    adapters.tokens.lift_cooldown("default")
    adapters.db.all("UPDATE messages SET due_at = now() + interval '5 minutes'")
    waiting = dossier(adapters, receipt).waiting
    assert waiting is not None
    assert waiting.estimate.blocked_by == "cooldown"


def test_a_retry_forgets_no_429_and_is_told_from_one(
    with_settings: Callable[..., Adapters], submit: Submit, upstream: Sandbox
) -> None:
    """The line's rests go on to grow after an attempt that was cut. Before: each cut let it begin anew, and a chat that
    only ever throttles was tried 13 times within two minutes."""
    adapters = with_settings(retry_base_seconds=3600.0, retry_max_seconds=3600.0)
    receipt = submit("jammed-1")
    upstream.faults.add(Fault("status", status=429, retry_after_s=0))
    adapters.dispatcher(worker=1).drain("default")
    assert (throttles(adapters, receipt), blocked_by(adapters, receipt)) == (1, "cooldown")

    upstream.faults.clear()
    upstream.faults.add(Fault("status", status=500))
    adapters.accounts().resume("default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    assert (throttles(adapters, receipt), blocked_by(adapters, receipt)) == (1, "retry")
    due_at = dossier(adapters, receipt).message["due_at"]
    adapters.accounts().resume("default", by=ALICE)
    assert dossier(adapters, receipt).message["due_at"] == due_at

    upstream.faults.clear()
    upstream.faults.add(Fault("status", status=429, retry_after_s=0))
    adapters.db.all("UPDATE messages SET due_at = now()")
    adapters.dispatcher(worker=1).drain("default")
    assert (throttles(adapters, receipt), blocked_by(adapters, receipt)) == (2, "cooldown")


def throttles(adapters: Adapters, receipt: Receipt) -> int:
    return dossier(adapters, receipt).message["throttles"]


def blocked_by(adapters: Adapters, receipt: Receipt) -> str | None:
    waiting = dossier(adapters, receipt).waiting
    return waiting and waiting.estimate.blocked_by


# --- refused: nothing wider, nothing narrower


def test_403_of_a_fan_ends_his_message_and_three_in_a_row_pause_the_account(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher
) -> None:
    for n in (1, 2):
        submit(f"blocked-{n}")
        dispatcher.drain("default")
    again = submit("blocked-2")
    dispatcher.drain("default")  # the same one again is no third
    assert account(adapters).paused_s == 0
    (letter,) = dossier(adapters, again).dead_letters
    assert (letter["reason"], letter["error"]) == ("recipient_refused", "This user has blocked you")
    submit("blocked-3")
    dispatcher.drain("default")
    found = account(adapters)
    assert found.paused_s == float("inf")
    assert "3 recipients in a row" in (found.pause_reason or "")
    assert health(adapters)[0] == "degraded"
    closures.resume(adapters.db, "default")
    submit("blocked-4")
    dispatcher.drain("default")  # the row begins anew
    assert account(adapters).paused_s == 0


def test_who_gets_through_ends_the_row(adapters: Adapters, submit: Submit, dispatcher: Dispatcher) -> None:
    for recipient in ("blocked-1", "blocked-2", "fan-1", "blocked-3", "blocked-4"):
        submit(recipient)
        dispatcher.drain("default")
    assert account(adapters).paused_s == 0
    assert states(adapters) == {"failed": 4, "sent": 1}


@pytest.mark.parametrize(("blocked", "paused"), [(5, False), (1, True)])
def test_side_by_side_too_recipients_are_refused_in_a_row_only_if_nobody_gets_through(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox, blocked: int, paused: bool
) -> None:
    """Twenty at once: four of them are refused, before the others are accepted; or all are refused."""
    adapters.db.all("UPDATE accounts SET limits = '1000/s'")
    for n in range(20):
        submit(f"fan-{n}" if n % blocked else f"blocked-{n}")
        upstream.faults.add(Fault("delay", delay_s=0.2, chat_id=f"fan-{n}"))
    dispatcher.drain("default")
    assert bool(account(adapters).paused_s) is paused


def test_a_chat_that_is_gone_ends_its_message_alone(adapters: Adapters, submit: Submit, dispatcher: Dispatcher) -> None:
    for n in range(4):
        submit(f"gone-{n}")
        dispatcher.drain("default")
    assert account(adapters).paused_s == 0
    letters = adapters.db.all("SELECT DISTINCT reason FROM dead_letters")
    assert letters == [{"reason": "recipient_refused"}]


def two_under_one_key(adapters: Adapters) -> tuple[str, str, str]:
    """Two accounts that share a credential, and one that does not."""
    for account_id, api_key in (("a", "k"), ("b", "k"), ("c", "other")):
        adapters.accounts().put(
            account_id,
            channel="onlyfans",
            limits=Limits.parse("10/s"),
            display_name=None,
            credentials={"apiKey": api_key},
            by=ALICE,
        )
    rebuild(adapters)
    return "a", "b", "c"


def test_accounts_under_one_credential_decide_about_a_chat_one_after_the_other(adapters: Adapters) -> None:
    """What arrived once must not be found for a message of each: they write into the same chat."""
    a, b, c = two_under_one_key(adapters)
    claims = {
        id_: Claim(
            message_id="msg_1", account_id=id_, recipient_id="fan-1", priority=5, content="x", media_ids=(),
            attempt=1, tries=1, token="t",
        )
        for id_ in (a, b, c)
    }  # fmt: skip

    def is_free(account_id: str) -> bool:
        def lock(connection: Connection) -> None:
            connection.all("SET LOCAL lock_timeout = '50ms'")
            lookups.lock_chat(connection, claims[account_id])

        try:
            adapters.db.transaction(lock)
        except StoreUnavailable:
            return False
        return True

    def decide(connection: Connection) -> list[bool]:
        lookups.lock_chat(connection, claims[a])
        return [is_free(b), is_free(c)]

    assert adapters.db.transaction(decide) == [False, True]


def test_401_pauses_all_under_that_credential_and_nobody_else(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    a, b, c = two_under_one_key(adapters)
    upstream.faults.add(Fault("status", status=401, error="Key revoked"))
    receipt = submit(account_id=a)
    dispatcher.drain(a)
    assert [account(adapters, id_).paused_s for id_ in (a, b, c)] == [float("inf"), float("inf"), 0]
    assert account(adapters, b).pause_reason == "upstream answered 401: Key revoked"
    assert (state(adapters, receipt), dossier(adapters, receipt).attempts) == ("queued", [])
    noted = audit.entries(adapters.db, AuditFilter(action="pause"), None, 10)
    assert sorted(entry["account_id"] for entry in noted) == [a, b]
    status, words = health(adapters)
    assert status == "degraded"
    assert "The upstream refuses (upstream answered 401: Key revoked) since " in words
    assert words.endswith("accounts a, b wait")


def test_out_of_credit_is_probed_every_five_minutes_and_burns_nothing(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    a, b, c = two_under_one_key(adapters)
    upstream.faults.add(Fault("status", status=402, error="Buy credits"))
    upstream.faults.add(Fault("status", status=402, error="Buy credits"))
    receipt = submit(account_id=a)
    dispatcher.drain(a)
    assert account(adapters, c).rest is None
    for _ in range(2):
        for id_ in (a, b):
            rest = account(adapters, id_).rest
            assert rest is not None
            assert rest.kind == "credit"
            assert 290 < rest.left_s <= 300
        closed = account(adapters, b).closed()
        assert closed is not None
        assert (closed.state, closed.by) == ("paused", "upstream")
        waiting = dossier(adapters, receipt).waiting
        assert waiting is not None
        assert waiting.estimate.blocked_by == "upstream"
        rested(adapters)
        dispatcher.drain(a)
    assert (state(adapters, receipt), account(adapters, b).rest) == ("sent", None)
    assert [a["number"] for a in dossier(adapters, receipt).attempts] == [1]


def test_by_hand_a_rest_ends_for_all_that_share_it(adapters: Adapters) -> None:
    a, b, _ = two_under_one_key(adapters)
    adapters.db.transaction(lambda c: closures.rest(c, a, "credit", "Buy credits", 300.0, probed=False))
    adapters.accounts().resume(b, by=ALICE)
    assert (account(adapters, a).rest, account(adapters, b).rest) == (None, None)


# --- idempotency keys


def test_a_key_still_in_use_is_waited_for_and_burns_nothing(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    """The connection is cut, and the upstream goes on with the first request: 409 until it is done. Before: dead."""
    upstream.faults.add(Fault("in_use_cut", delay_s=1.0, retry_after_s=1))
    receipt = submit()
    deadline_s = time.monotonic() + 20
    while state(adapters, receipt) != "sent" and time.monotonic() < deadline_s:
        time.sleep(min(0.3, dispatcher.drain("default").next_s or 0.3))
    found = dossier(adapters, receipt)
    assert found.message["state"] == "sent"
    assert [a["outcome"] for a in found.attempts] == ["unknown", "accepted"]
    assert {(d["outcome"], d["deferral"]) for d in found.deferrals} == {("in_progress", "in_progress")}
    assert upstream.summary()["duplicates"] == 0


def test_a_refusal_uses_up_its_key(
    adapters: Adapters, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    """The cause of a 400 is mended upstream, and an admin sends it again. Before: the upstream replayed its 400 for
    ever."""
    upstream.ledger.keeps_refusals = True
    upstream.faults.add(Fault("status", status=400, error="Not now"))
    receipt = submit()
    dispatcher.drain("default")
    assert state(adapters, receipt) == "failed"
    adapters.failures().retry(receipt.message_id, scope=None, by=ALICE)
    dispatcher.drain("default")
    assert state(adapters, receipt) == "sent"
    keys = [entry.arrival.message.idempotency_key for entry in upstream.ledger.entries]
    assert keys == [receipt.message_id, f"{receipt.message_id}.2"]


def test_what_may_have_arrived_keeps_its_key(with_settings: Callable[..., Adapters], upstream: Sandbox) -> None:
    """Given up as unknown, and sent again by hand: under the same key the upstream delivers it once."""
    adapters = with_settings(max_attempts=1)
    upstream.history = False
    upstream.faults.add(Fault("cut"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    dispatcher = adapters.dispatcher(worker=1)
    dispatcher.drain("default")
    while state(adapters, receipt) == "verifying":
        look_up(adapters)
    adapters.failures().retry(receipt.message_id, scope=None, by=ALICE)
    dispatcher.drain("default")
    assert state(adapters, receipt) == "sent"
    assert (upstream.summary()["accepted"], upstream.summary()["replayed"]) == (1, 1)


def test_what_may_have_arrived_keeps_its_key_through_a_refusal_after_a_retry_by_hand(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    """Given up as unknown, sent again by hand, out of credit in between. Before: the next one had another key."""
    adapters = with_settings(max_attempts=1)
    upstream.history = False
    upstream.faults.add(Fault("cut"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    dispatcher = adapters.dispatcher(worker=1)
    dispatcher.drain("default")
    while state(adapters, receipt) == "verifying":
        look_up(adapters)
    adapters.failures().retry(receipt.message_id, scope=None, by=ALICE)
    upstream.faults.add(Fault("status", status=402, error="Buy credits"))
    dispatcher.drain("default")
    rested(adapters)
    dispatcher.drain("default")
    assert state(adapters, receipt) == "sent"
    assert (upstream.summary()["accepted"], upstream.summary()["replayed"]) == (1, 1)


@pytest.mark.parametrize("history", [True, False])
def test_nothing_is_sent_again_once_its_key_is_too_old(
    with_settings: Callable[..., Adapters], upstream: Sandbox, history: bool
) -> None:
    """Cut off, then 25 hours of pause: the upstream has forgotten the key. No blind repeat: a lookup tells, or a
    person."""
    adapters = with_settings(retry_base_seconds=3600.0)
    upstream.history = history
    upstream.faults.add(Fault("cut"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    adapters.db.all("UPDATE attempts SET started_at = started_at - interval '25 hours'")
    adapters.db.all("UPDATE messages SET due_at = now()")
    adapters.dispatcher(worker=1).drain("default")
    found = dossier(adapters, receipt)
    assert (found.message["state"], found.message["attempts"]) == ("verifying", 1)
    assert [d["deferral"] for d in found.deferrals] == ["withheld"]
    while state(adapters, receipt) == "verifying":
        look_up(adapters)
    assert state(adapters, receipt) == ("sent" if history else "failed")
    assert upstream.summary()["accepted"] == 1


def test_nothing_is_sent_again_once_nobody_honours_keys(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    """ONLYFANS_IDEMPOTENT was switched off while it waited for its second try."""
    adapters = with_settings(retry_base_seconds=3600.0)
    upstream.faults.add(Fault("cut"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    adapters.db.all("UPDATE messages SET due_at = now()")
    unprotected = build(adapters.settings.with_channel("onlyfans", idempotent=False))
    unprotected.dispatcher(worker=2).drain("default")
    unprotected.close()
    assert (state(adapters, receipt), len(upstream.ledger.entries)) == ("verifying", 1)


def test_nothing_is_sent_again_under_another_credential(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    """Cut off after it arrived; then the account is given another key, whose chats are others. No repeat, and no
    history that proves absence: a person decides."""
    adapters = with_settings(retry_base_seconds=3600.0)
    upstream.faults.add(Fault("cut"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    adapters.accounts().patch("default", {"credentials": {"apiKey": "another"}}, by=ALICE)
    adapters.db.all("UPDATE messages SET due_at = now()")
    rebuild(adapters)
    adapters.dispatcher(worker=1).drain("default")
    assert state(adapters, receipt) == "verifying"
    look_up(adapters)
    (letter,) = dossier(adapters, receipt).dead_letters
    assert letter["reason"] == "outcome_unknown"
    assert upstream.summary()["accepted"] == 1


# --- lookups


def look_up(adapters: Adapters) -> int:
    adapters.db.all("UPDATE messages SET due_at = now() WHERE state = 'verifying'")
    a = adapters
    return verify(a.db, a.publisher, a.channels, a.vault, a.settings.retry_policy, threading.Event())


TEXTS = ["Hello Anna \n", "Cafe\u0301", "one\r\ntwo", "a & b"]


@pytest.mark.parametrize("authors", [True, False])
@pytest.mark.parametrize("keeps", ["trimmed", "nfc", "lf", "html", "trimmed,nfc,lf,html"])
def test_nothing_arrives_twice_at_an_upstream_that_rewrites_what_it_keeps(
    with_settings: Callable[..., Adapters], upstream: Sandbox, keeps: str, authors: bool
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.ledger.idempotent = False
    upstream.ledger.chats.keeps, upstream.ledger.chats.authors = keeps, authors
    receipts = [
        adapters.submitter().submit({"recipient_id": f"cut-{n}", "content": text}, "default", by=ALICE)
        for n, text in enumerate(TEXTS)
    ]
    adapters.dispatcher(worker=1).drain("default")
    assert {state(adapters, receipt) for receipt in receipts} == {"verifying"}
    look_up(adapters)
    assert {state(adapters, receipt) for receipt in receipts} == {"sent"}
    adapters.dispatcher(worker=1).drain("default")
    assert upstream.summary()["accepted"] == len(TEXTS)


def test_two_hundred_to_an_upstream_that_rewrites_and_cuts_none_arrives_twice(
    with_settings: Callable[..., Adapters], upstream: Sandbox, make_account: Callable[..., str]
) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.ledger.idempotent = False
    upstream.ledger.chats.keeps = "trimmed,nfc,lf,html"
    upstream.faults.set_rates({"cut": 0.4, "cut_before": 0.3})
    adapters.db.all("UPDATE accounts SET limits = '1000/s'")
    listed = [
        {
            "recipient_id": f"fan-{n % 40}",
            "content": f"{TEXTS[n % 4]} {n}",
            "priority": 5,
            "account_id": "default",
        }
        for n in range(200)
    ]
    adapters.submitter().submit_many(listed, by=ALICE)
    for n in range(40):
        upstream.fan_says("key-of-the-house", f"fan-{n}", "ok")
    deadline_s = time.monotonic() + 100
    while set(states(adapters)) - {"sent", "failed"} and time.monotonic() < deadline_s:
        adapters.dispatcher(worker=1).drain("default")
        look_up(adapters)
    arrived = [e.arrival.message.text for e in upstream.ledger.entries if e.verdict == "accepted"]
    assert len(arrived) == len(set(arrived))
    sent = adapters.db.all("SELECT content FROM messages WHERE state = 'sent'")
    assert {row["content"] for row in sent} == set(arrived)
    assert set(states(adapters)) <= {"sent", "failed"}


def test_a_fans_ok_is_not_taken_for_ours(with_settings: Callable[..., Adapters], upstream: Sandbox) -> None:
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.faults.add(Fault("cut_before"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "ok"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    upstream.fan_says("key-of-the-house", "fan-1", "ok")
    look_up(adapters)
    assert state(adapters, receipt) == "queued"
    adapters.dispatcher(worker=1).drain("default")
    assert (state(adapters, receipt), upstream.summary()["accepted"]) == ("sent", 1)


def test_what_somebody_typed_by_hand_leaves_it_unknown(
    with_settings: Callable[..., Adapters], upstream: Sandbox
) -> None:
    """It may be ours, written in a way that nobody recognises: a person decides, and nothing is sent twice."""
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.faults.add(Fault("cut_before"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "Hello"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    upstream.typed_by_hand("key-of-the-house", "fan-1", "Hel…")
    while state(adapters, receipt) == "verifying":
        look_up(adapters)
    (letter,) = dossier(adapters, receipt).dead_letters
    assert letter["reason"] == "outcome_unknown"
    assert "may be this message" in letter["error"]


def test_one_accounts_lookups_do_not_hold_up_anothers(
    with_settings: Callable[..., Adapters], upstream: Sandbox, make_account: Callable[..., str]
) -> None:
    """Ten doubtful messages of a, whose history hangs, were due before the one of b. Before: b waited for all ten."""
    adapters = with_settings(onlyfans={"idempotent": False})
    for account_id in ("a", "b"):
        accounts.put(adapters.db, account_id, sealed_key=adapters.vault.seal(f"key-of-{account_id}"))
        adapters.tokens.open_new(account_id)
    upstream.history_hangs = {"key-of-a"}
    hung = [adapters.submitter().submit({"recipient_id": f"cut-{n}", "content": "x"}, "a", by=ALICE) for n in range(10)]
    free = adapters.submitter().submit({"recipient_id": "cut-1", "content": "x"}, "b", by=ALICE)
    for account_id in ("a", "b"):
        adapters.dispatcher(worker=1).drain(account_id)
    adapters.db.all("UPDATE messages SET due_at = now() - interval '1 minute' WHERE account_id = 'a'")
    adapters.db.all("UPDATE messages SET due_at = now() WHERE account_id = 'b'")
    a, stopping = adapters, threading.Event()
    looking = threading.Thread(
        target=verify, args=(a.db, a.publisher, a.channels, a.vault, a.settings.retry_policy, stopping)
    )
    looking.start()
    deadline_s = time.monotonic() + 9  # less than one of the hung lookups takes
    while state(adapters, free) != "sent" and time.monotonic() < deadline_s:
        time.sleep(0.05)
    found = state(adapters, free)
    stopping.set()
    looking.join()
    assert found == "sent"
    assert {state(adapters, receipt) for receipt in hung} == {"verifying"}


@pytest.mark.parametrize("status", [None, 401, 402, 429])
def test_an_upstream_that_cannot_be_asked_uses_up_no_lookup(
    with_settings: Callable[..., Adapters], upstream: Sandbox, status: int | None
) -> None:
    """Cut off, and then the upstream is away, or refuses us, for longer than five lookups. Before: a dead letter within
    seconds."""
    adapters = with_settings(onlyfans={"idempotent": False})
    upstream.faults.add(Fault("cut"))
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "x"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    if status:
        upstream.away = Fault("status", status=status, times=None)
    else:
        upstream.stop()
    for _ in range(2 * LOOKUPS):
        look_up(adapters)
    assert state(adapters, receipt) == "verifying"
    upstream.away = None
    if not status:
        upstream.start()
    look_up(adapters)
    assert (state(adapters, receipt), upstream.summary()["accepted"]) == ("sent", 1)


# --- told


def test_status_says_what_is_wrong_and_since_when(
    adapters: Adapters, client: FlaskClient, bearer: Callable[..., dict[str, str]], submit: Submit
) -> None:
    submit()
    adapters.db.transaction(lambda c: closures.rest(c, "default", "away", "connection refused", 60.0, probed=False))
    adapters.wakeups.beat("worker", "1", 60)
    adapters.wakeups.beat("pacer", "1", 60)
    found = client.get("/api/onlyfans/messaging/status", headers=bearer("ops")).get_json()
    assert found["health"]["status"] == "degraded"
    assert "The upstream is out of reach (connection refused) since 20" in found["health"]["message"]
    (one,) = found["accounts"]
    assert (one["state"], one["tokensAvailable"]) == ("cooldown", 10)
    assert "probed again in" in one["reason"]
    other = client.get("/api/onlyfans/messaging/status", headers=bearer("ops", "elsewhere")).get_json()
    assert other["health"]["status"] == "healthy"


def test_no_worker_is_down(adapters: Adapters, client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> None:
    found = client.get("/api/onlyfans/messaging/status", headers=bearer("ops")).get_json()
    assert found["health"]["status"] == "down"
    assert "No worker is running" in found["health"]["message"]
