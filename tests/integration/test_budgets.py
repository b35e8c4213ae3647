"""The upstream counts by credential: accounts that share one draw on one budget, whoever made them so."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import pytest
from cryptography.fernet import Fernet
from flask.testing import FlaskClient

from api.app import create_app
from deploy.sandbox import Fault, Sandbox
from ratelimit import Limits
from tests.conftest import ALICE, origin, rebuild
from workers.bootstrap import Adapters
from workers.credentials import Vault
from workers.services.recovery import Overlooked
from workers.services.submit import Receipt
from workers.settings import Settings
from workers.store import accounts, closures
from workers.store.accounts import Account
from workers.store.claims import claim_next

BASE = "/api/onlyfans/messaging"
HOUSE = "key-of-the-house"
Ask = Callable[..., tuple[int, dict[str, Any]]]
Bearer = Callable[..., dict[str, str]]
MakeAccount = Callable[..., str]
Submit = Callable[..., Receipt]


@pytest.fixture
def counting() -> Iterator[Sandbox]:
    """An upstream that allows each credential 10 requests in 2 s."""
    with Sandbox(limits="10/2s") as sandbox:
        yield sandbox


@pytest.fixture
def strict(make_adapters: Callable[[Settings], Adapters], settings: Settings, counting: Sandbox) -> Adapters:
    """Adapters over the upstream that counts, with the limit that it has."""
    return make_adapters(
        replace(settings.with_channel("onlyfans", base_url=counting.url), rate_limit=Limits.parse("10/2s"))
    )


def asker(adapters: Adapters, bearer: Bearer, *account_ids: str) -> Ask:
    client: FlaskClient = create_app(adapters).test_client()

    def ask(method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        answer = client.open(BASE + path, method=method, json=body, headers=bearer("admin", *account_ids))
        return answer.status_code, answer.json or {}

    return ask


@pytest.fixture
def ask(adapters: Adapters, bearer: Bearer) -> Ask:
    return asker(adapters, bearer)


def new_key() -> str:
    return Fernet.generate_key().decode()


def account(adapters: Adapters, account_id: str) -> Account:
    found = accounts.get(adapters.db, account_id)
    assert found is not None
    return found


def budgets(adapters: Adapters, *account_ids: str) -> list[str]:
    return [account(adapters, account_id).budget for account_id in account_ids]


@contextmanager
def running(adapters: Adapters, workers: int = 1) -> Iterator[None]:
    """A pacer, workers, and a reconciler that does no more than rebuild tokens: no lost wake-up is made good."""
    over = threading.Event()
    dispatchers = cycle([adapters.dispatcher(worker=n + 1) for n in range(workers)])

    def pace(pool: ThreadPoolExecutor) -> None:
        while not over.wait(0.01):
            due = adapters.wakeups.take_due()
            for account_id in due.accounts:
                pool.submit(next(dispatchers).drain, account_id, due.publication)

    def reconcile() -> None:
        while not over.wait(0.05):
            rebuild(adapters, over.wait)

    with ThreadPoolExecutor(8) as pool:
        threads = [threading.Thread(target=pace, args=[pool]), threading.Thread(target=reconcile)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


def fill(adapters: Adapters, *account_ids: str, count: int = 40) -> None:
    for account_id in account_ids:
        for n in range(count):
            wanted = {"recipient_id": f"fan-{n}", "content": "Hello"}
            adapters.submitter().submit(wanted, account_id, by=ALICE)


def await_sent(adapters: Adapters, count: int, within_s: float = 60.0) -> None:
    until_s = time.monotonic() + within_s
    sent = 0
    while sent < count:
        assert time.monotonic() < until_s, f"{sent} of {count} sent"
        time.sleep(0.05)
        sent = adapters.db.all("SELECT count(*)::int AS n FROM messages WHERE state = 'sent'")[0]["n"]


def worst(upstream: Sandbox) -> dict[str, int]:
    """The most requests in any window, by credential."""
    return {key: found["10/2s"] for key, found in upstream.summary()["worst_window"].items()}


# --- as the upstream counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "workers"), [({}, 1), ({"credentials": {"apiKey": "shared"}}, 2)], ids=["no key", "one key, two workers"]
)
def test_two_accounts_under_one_credential_keep_its_limit(
    strict: Adapters, bearer: Bearer, counting: Sandbox, body: dict[str, Any], workers: int
) -> None:
    ask = asker(strict, bearer)
    for account_id in ("a", "b"):
        assert ask("PUT", f"/accounts/{account_id}", body)[0] == 200
    fill(strict, "a", "b")
    with running(strict, workers):
        await_sent(strict, 80)
    assert list(worst(counting).values()) == [10]
    assert counting.summary()["throttled"] == 0


def test_they_keep_it_after_redis_was_emptied(strict: Adapters, bearer: Bearer, counting: Sandbox) -> None:
    ask = asker(strict, bearer)
    for account_id in ("a", "b"):
        ask("PUT", f"/accounts/{account_id}", {"credentials": {"apiKey": "shared"}})
    fill(strict, "a", "b", count=30)
    with running(strict, workers=2):
        await_sent(strict, 25)
        strict.redis.flushall()
        strict.wakeups.wake_all(["a", "b"])
        await_sent(strict, 60)
    assert worst(counting) == {"shared": 10}
    assert counting.summary()["throttled"] == 0


def test_accounts_of_an_older_version_come_together_while_they_send(strict: Adapters, counting: Sandbox) -> None:
    """Two that have no key, and had a budget each: what either has sent counts in the one that they get."""
    for account_id in ("a", "b"):
        accounts.put(strict.db, account_id)
        strict.tokens.open_new(account_id)
    fill(strict, "a", "b", count=20)
    limits = Limits.parse("10/2s")
    for account_id in ("a", "b"):  # each sends 5, as the older version did
        grant = strict.tokens.borrow(account_id, limits, want=5, lease_s=13)
        claims = claim_next(strict.db, account_id, grant.tokens, 1, 13, origin=grant.origin)
        strict.db.all("UPDATE attempts SET outcome = 'accepted', ended_at = now() WHERE outcome IS NULL")
        ids = [claim.message_id for claim in claims]
        done = "UPDATE messages SET state = 'sent', sent_at = now(), ended_at = now() WHERE id = ANY(%(ids)s)"
        strict.db.all(done, {"ids": ids})
    sent_s = time.monotonic()
    dispatcher = strict.dispatcher(worker=1)
    assert [dispatcher.drain(account_id).claimed for account_id in ("a", "b")] == [0, 0]  # the new budget is not known
    assert len(set(budgets(strict, "a", "b"))) == 1
    assert rebuild(strict) == 1
    assert strict.tokens.view(budgets(strict, "a")[0], limits).available(limits) == 0
    assert [dispatcher.drain(account_id).claimed for account_id in ("a", "b")] == [0, 0]
    time.sleep(max(0.0, sent_s + 2.01 - time.monotonic()))
    assert dispatcher.drain("a").claimed + dispatcher.drain("b").claimed >= 10
    assert worst(counting) == {HOUSE: 10}


# --- which budget ---------------------------------------------------------------------------------------------------


def test_an_account_alone_keeps_the_budget_of_its_own_id(ask: Ask, adapters: Adapters) -> None:
    ask("PUT", "/accounts/a", {"credentials": {"apiKey": "one"}})
    ask("PUT", "/accounts/a", {"credentials": {"apiKey": "another"}})
    assert budgets(adapters, "a", "default") == ["a", "default"]


def test_who_comes_under_a_credential_in_use_draws_on_its_budget(ask: Ask, adapters: Adapters) -> None:
    ask("PUT", "/accounts/a", {"credentials": {"apiKey": "one"}})
    ask("PUT", "/accounts/b", {"credentials": {"apiKey": "one"}})
    ask("PUT", "/accounts/c", {})
    ask("PUT", "/accounts/d", {"credentials": {"apiKey": HOUSE}})
    assert budgets(adapters, "a", "b") == ["a", "a"]
    assert len(set(budgets(adapters, "c", "d", "default"))) == 1


def test_who_leaves_gets_a_budget_that_was_never_used(ask: Ask, adapters: Adapters) -> None:
    for account_id in ("a", "b"):
        ask("PUT", f"/accounts/{account_id}", {"credentials": {"apiKey": "one"}})
    assert ask("PATCH", "/accounts/a", {"credentials": {"apiKey": "another"}})[0] == 200
    left, stays = budgets(adapters, "a", "b")
    assert stays == "a"
    assert left not in ("a", "b")
    limits = adapters.settings.rate_limit
    assert not adapters.tokens.view(left, limits).known
    assert adapters.tokens.lost()
    assert rebuild(adapters) == 1
    assert adapters.tokens.view(left, limits).available(limits) == 10


def test_uses_stay_with_the_credential_that_they_were_made_under(ask: Ask, adapters: Adapters, submit: Submit) -> None:
    """a and b change keys: what a sent under its old key counts for b from now on, and not for a."""
    ask("PUT", "/accounts/a", {"credentials": {"apiKey": "one"}})
    ask("PUT", "/accounts/b", {"credentials": {"apiKey": "two"}})
    for n in range(7):
        submit(f"fan-{n}", account_id="a")
    assert adapters.dispatcher(worker=1).drain("a").claimed == 7
    ask("PATCH", "/accounts/a", {"credentials": {"apiKey": "two"}})
    ask("PATCH", "/accounts/b", {"credentials": {"apiKey": "one"}})
    rebuild(adapters)
    limits = adapters.settings.rate_limit
    left = [adapters.tokens.view(budget, limits).available(limits) for budget in budgets(adapters, "a", "b")]
    assert left == [10, 3]


def test_the_books_are_kept_by_the_budget_that_the_token_came_from(
    ask: Ask, adapters: Adapters, submit: Submit
) -> None:
    for account_id in ("a", "b"):
        ask("PUT", f"/accounts/{account_id}", {"credentials": {"apiKey": "one"}})
        for n in range(3):
            submit(f"fan-{n}", account_id=account_id)
        assert adapters.dispatcher(worker=1).drain(account_id).claimed == 3
    assert [row["budget"] for row in adapters.db.all("SELECT budget FROM attempts ORDER BY id")] == [None] * 3 + [
        "a"
    ] * 3
    ask("PATCH", "/accounts/b", {"credentials": {"apiKey": "another"}})
    adapters.redis.flushall()
    rebuild(adapters)
    limits = adapters.settings.rate_limit
    left = [adapters.tokens.view(budget, limits).available(limits) for budget in budgets(adapters, "a", "b")]
    assert left == [4, 10]


def test_tokens_of_a_budget_that_the_account_left_claim_nothing(
    adapters: Adapters, make_account: MakeAccount, submit: Submit
) -> None:
    account_id = make_account()
    submit(account_id=account_id)
    adapters.db.all("UPDATE accounts SET budget = 'elsewhere' WHERE id = %(id)s", {"id": account_id})
    claim = partial(claim_next, adapters.db, account_id, ["t.1"], 1, 13.0, origin=origin(adapters))
    assert claim() == []
    assert len(claim(budget="elsewhere")) == 1


def test_two_accounts_that_come_under_a_credential_at_once_see_each_other(adapters: Adapters) -> None:
    def put(n: int) -> None:
        adapters.accounts().put(
            f"account-{n}", channel="onlyfans", limits=None, display_name=None, credentials={"apiKey": "one"}, by=ALICE
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(8)))
    assert len(set(budgets(adapters, *(f"account-{n}" for n in range(8))))) == 1


def test_a_drain_finds_out_that_the_channels_key_is_now_the_accounts_own(
    make_adapters: Callable[[Settings], Adapters], settings: Settings, bearer: Bearer, submit: Submit
) -> None:
    adapters = make_adapters(settings)
    asker(adapters, bearer)("PUT", "/accounts/a", {"credentials": {"apiKey": "one"}})
    adapters.submitter().submit({"recipient_id": "fan", "content": "x"}, "a", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    assert budgets(adapters, "a", "default") == ["a", "default"]
    changed = replace(adapters, settings=settings.with_channel("onlyfans", api_key="one"))
    assert changed.dispatcher(worker=1).drain("a").claimed == 0
    assert len(set(budgets(adapters, "a", "default"))) == 1
    rebuild(adapters)
    assert changed.dispatcher(worker=1).drain("a").claimed == 1


def test_a_drain_finds_out_that_an_older_version_gave_the_account_another_key(
    ask: Ask, adapters: Adapters, submit: Submit
) -> None:
    """It stores the key, and knows nothing of what stands beside it."""
    for account_id, key in (("a", "one"), ("b", "two")):
        ask("PUT", f"/accounts/{account_id}", {"credentials": {"apiKey": key}})
        for n in range(4):
            submit(f"fan-{n}", account_id=account_id)
    dispatcher = adapters.dispatcher(worker=1)
    assert dispatcher.drain("a").claimed == 4
    adapters.db.all("UPDATE accounts SET api_key = %(key)s WHERE id = 'b'", {"key": adapters.vault.seal("one")})
    assert dispatcher.drain("b").claimed == 0
    assert len(set(budgets(adapters, "a", "b"))) == 1
    rebuild(adapters)
    limits = adapters.settings.rate_limit
    assert adapters.tokens.view(budgets(adapters, "b")[0], limits).available(limits) == 6
    assert dispatcher.drain("b").claimed == 4


def test_equal_credentials_are_known_without_opening_them_and_after_rekey(
    with_settings: Callable[..., Adapters], bearer: Bearer
) -> None:
    old, new = new_key(), new_key()
    adapters = with_settings(credentials_key=(old,))
    asker(adapters, bearer)("PUT", "/accounts/a", {"credentials": {"apiKey": "one"}})
    first = account(adapters, "a").credential
    assert first is not None
    assert "one" not in first
    both = replace(adapters, vault=Vault([new, old]))
    asker(both, bearer)("PUT", "/accounts/b", {"credentials": {"apiKey": "one"}})
    assert budgets(adapters, "a", "b") == ["a", "a"]
    assert both.accounts().rekey() == 2
    only_new = replace(adapters, vault=Vault([new]))
    asker(only_new, bearer)("PUT", "/accounts/c", {"credentials": {"apiKey": "one"}})
    assert budgets(adapters, "a", "b", "c") == ["a", "a", "a"]
    names = {account(adapters, account_id).credential for account_id in "abc"}
    assert len(names) == 1
    assert first not in names
    assert Vault([new]).knows(str(account(adapters, "a").credential))


def test_a_fingerprint_under_a_lost_key_is_taken_again(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    old, new = new_key(), new_key()
    adapters = with_settings(credentials_key=(old,))
    asker(adapters, bearer)("PUT", "/accounts/a", {"credentials": {"apiKey": "one"}})
    api_key = adapters.vault.open(account(adapters, "a").sealed_key or "")
    adapters.db.all("UPDATE accounts SET api_key = %(new)s WHERE id = 'a'", {"new": Vault([new]).seal(api_key)})
    only_new = replace(adapters, vault=Vault([new]))
    asker(only_new, bearer)("PUT", "/accounts/b", {"credentials": {"apiKey": "one"}})
    assert budgets(adapters, "a", "b") == ["a", "a"]


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"limits": "5/2s"}, {"limits": "5/2s", "credentials": {"apiKey": HOUSE}}])
def test_other_limits_under_a_credential_in_use_are_refused_with_the_remedy(
    ask: Ask, adapters: Adapters, body: Any
) -> None:
    status, refused = ask("PUT", "/accounts/a", body)
    assert (status, refused["code"]) == (409, "conflict")
    assert refused["error"] == (
        "The upstream counts by credential, and account default uses the same one with the limits 10/minute. "
        "Give this account these limits, or a key of its own (credentials.apiKey)"
    )
    assert accounts.get(adapters.db, "a") is None
    assert budgets(adapters, "default") == ["default"]
    assert ask("PUT", "/accounts/a", body | {"credentials": {"apiKey": "own"}})[0] == 200


def test_null_counts_as_the_default(ask: Ask) -> None:
    assert ask("PUT", "/accounts/a", {"limits": "10/60s"})[0] == 200
    assert ask("PUT", "/accounts/b", {"limits": None})[0] == 200


def test_a_change_is_held_to_it_too(ask: Ask, adapters: Adapters) -> None:
    ask("PUT", "/accounts/a", {"limits": "5/2s", "credentials": {"apiKey": "own"}})
    for body in ({"credentials": None}, {"credentials": {"apiKey": HOUSE}}):
        assert ask("PATCH", "/accounts/a", body)[0] == 409
    assert ask("PATCH", "/accounts/default", {"limits": "5/2s"})[0] == 200  # alone
    assert ask("PATCH", "/accounts/a", {"credentials": None})[0] == 200
    assert ask("PATCH", "/accounts/a", {"limits": "6/2s"})[0] == 409
    assert ask("PATCH", "/accounts/a", {"displayName": "A", "limits": "5/2s"})[0] == 200
    assert ask("PATCH", "/accounts/a", {"limits": "6/2s", "credentials": {"apiKey": "own"}})[0] == 200
    assert account(adapters, "a").limits == Limits.parse("6/2s")


def test_no_account_is_named_that_the_caller_may_not_know_of(adapters: Adapters, bearer: Bearer) -> None:
    status, refused = asker(adapters, bearer, "a")("PUT", "/accounts/a", {"limits": "5/2s"})
    assert status == 409
    assert "default" not in refused["error"]
    assert "another account uses" in refused["error"]


def test_where_limits_of_an_older_version_differ_all_of_them_hold(adapters: Adapters, ask: Ask) -> None:
    for account_id, limits in (("a", "5/minute"), ("b", "7/minute,20/hour")):
        accounts.put(adapters.db, account_id, limits=Limits.parse(limits))
    adapters.dispatcher(worker=1).drain("a")
    in_force = {
        str(account(adapters, id_).limits_in_force(adapters.settings.rate_limit)) for id_ in ("a", "b", "default")
    }
    assert in_force == {"5/minute,20/hour"}
    # They can be brought together one after the other, and other changes go on.
    assert ask("PATCH", "/accounts/a", {"displayName": "A"})[0] == 200
    assert ask("PATCH", "/accounts/a", {"limits": "6/minute"})[0] == 409
    assert ask("PATCH", "/accounts/a", {"limits": None})[0] == 200
    assert ask("PATCH", "/accounts/b", {"limits": None})[0] == 200
    assert account(adapters, "a").other_limits == ()


# --- closed and open again ------------------------------------------------------------------------------------------


def together(adapters: Adapters, ask: Ask) -> str:
    """a and b, under one credential. Returns their budget."""
    for account_id in ("a", "b"):
        assert ask("PUT", f"/accounts/{account_id}", {"credentials": {"apiKey": "one"}})[0] == 200
    [budget] = set(budgets(adapters, "a", "b"))
    return budget


def test_429_closes_the_budget_for_all_of_them(ask: Ask, adapters: Adapters, submit: Submit, upstream: Sandbox) -> None:
    budget = together(adapters, ask)
    upstream.faults.add(Fault("status", status=429, retry_after_s=30, times=1))
    submit(account_id="a")
    submit(account_id="b")
    dispatcher = adapters.dispatcher(worker=1)
    dispatcher.drain("a")
    assert dispatcher.drain("b").claimed == 0
    for account_id in ("a", "b"):
        assert 25 < account(adapters, account_id).cooldown_s <= 30
    assert account(adapters, "default").cooldown_s == 0
    assert 25 < adapters.tokens.view(budget, adapters.settings.rate_limit).cooldown_s <= 30


def test_a_cooldown_of_all_survives_the_loss_of_redis(
    ask: Ask, adapters: Adapters, submit: Submit, upstream: Sandbox
) -> None:
    budget = together(adapters, ask)
    closures.cool_down(adapters.db, "b", 30)
    adapters.redis.flushall()
    rebuild(adapters)
    assert 25 < adapters.tokens.view(budget, adapters.settings.rate_limit).cooldown_s <= 30


def test_resume_lifts_the_cooldown_of_all_of_them(
    ask: Ask, adapters: Adapters, submit: Submit, upstream: Sandbox
) -> None:
    together(adapters, ask)
    upstream.faults.add(Fault("status", status=429, retry_after_s=86_400, times=1))
    submit(account_id="a")
    submit(account_id="b")
    adapters.dispatcher(worker=1).drain("a")
    assert ask("GET", "/accounts/b")[1]["state"] == "cooldown"
    status, resumed = ask("POST", "/accounts/b/resume")
    assert (status, resumed["state"]) == (200, "active")
    adapters.wakeups.publish_again()
    assert sorted(adapters.wakeups.take_due().accounts) == ["a", "b"]
    dispatcher = adapters.dispatcher(worker=1)
    assert [dispatcher.drain(account_id).claimed for account_id in ("a", "b")] == [1, 1]


def test_the_other_account_is_not_forgotten_when_tokens_return(
    strict: Adapters, bearer: Bearer, counting: Sandbox
) -> None:
    """b finds no token, and nothing is ever posted to it again: its own wake-up brings it."""
    ask = asker(strict, bearer)
    together(strict, ask)
    fill(strict, "a", count=10)
    with running(strict):
        await_sent(strict, 10)
        fill(strict, "b", count=10)
        await_sent(strict, 20, within_s=5.0)
    assert worst(counting) == {"one": 10}


def test_an_account_whose_budget_another_uses_up_is_not_overlooked(
    ask: Ask, adapters: Adapters, submit: Submit
) -> None:
    budget = together(adapters, ask)
    overlooked = Overlooked(adapters.db, adapters.tokens, adapters.wakeups, adapters.settings.rate_limit)
    submit(account_id="b")
    limits = adapters.settings.rate_limit
    grant = adapters.tokens.borrow(budget, limits, want=10, lease_s=13)
    adapters.wakeups.take_due()
    adapters.wakeups.publish_again()
    adapters.wakeups.wake("b", 3600)
    assert overlooked.wake() == 0
    adapters.tokens.refund(budget, limits, grant.tokens)
    assert overlooked.wake() == 1


def test_what_the_other_account_has_in_hand_is_no_token_for_this_one(
    ask: Ask, adapters: Adapters, submit: Submit
) -> None:
    """Tokens that a has claimed messages with are uses to b's estimate. It does not take them for tokens in hand."""
    budget = together(adapters, ask)
    for n in range(10):
        submit(f"fan-{n}", account_id="a")
    grant = adapters.tokens.borrow(budget, adapters.settings.rate_limit, want=10, lease_s=adapters.settings.lease_s)
    lease_s = adapters.settings.lease_s
    claim = partial(claim_next, adapters.db, "a", grant.tokens, 1, lease_s, origin=grant.origin)
    assert len(claim(budget=budget)) == 10
    status, told = ask("POST", "/send", {"recipientId": "fan", "content": "x", "accountId": "b"})
    assert (status, told["blockedBy"]) == (202, "rate")
