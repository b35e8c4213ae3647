"""The admin's side: accounts and their limits, pauses, and failures put right by the hundred."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from deploy.sandbox import Fault, Sandbox
from workers.bootstrap import Adapters
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt

BASE = "/api/onlyfans/messaging"
Bearer = Callable[..., dict[str, str]]
Submit = Callable[..., Receipt]


@pytest.fixture
def ask(client: FlaskClient, bearer: Bearer) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        answer = client.open(BASE + path, method=method, json=body, headers=bearer("admin"))
        return answer.status_code, answer.json or {}

    return call


Ask = Callable[..., tuple[int, dict[str, Any]]]


def test_an_account_is_created_and_may_send_at_once(ask: Ask, dispatcher: Dispatcher, upstream: Sandbox) -> None:
    status, made = ask(
        "PUT", "/accounts/shop-1", {"limits": "2/10s", "displayName": "Shop", "credentials": {"apiKey": "k"}}
    )
    assert (status, made["limits"], made["hasCredentials"], made["state"]) == (200, "2/10s", True, "active")
    for n in range(3):
        ask("POST", "/send", {"recipientId": f"fan-{n}", "content": "x", "accountId": "shop-1"})
    dispatcher.drain("shop-1")
    assert [entry.arrival.message.key for entry in upstream.ledger.entries] == ["k", "k"]
    assert "shop-1" in [account["accountId"] for account in ask("GET", "/accounts")[1]["accounts"]]


def test_credentials_are_write_only_and_stay_unless_given(ask: Ask, adapters: Adapters) -> None:
    ask("PUT", "/accounts/shop-1", {"credentials": {"apiKey": "very-secret"}})
    status, changed = ask("PUT", "/accounts/shop-1", {"limits": "5/second"})
    assert (status, changed["hasCredentials"]) == (200, True)
    assert "very-secret" not in str(ask("GET", "/accounts"))
    stored = adapters.db.one("SELECT api_key FROM accounts WHERE id = 'shop-1'")["api_key"]
    assert "very-secret" not in stored
    assert adapters.vault.open(stored) == "very-secret"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limits": "ten"}, "limits"),
        ({"limits": 10}, "limits"),
        ({"channel": "pigeon"}, "channel"),
        ({"credentials": {"apiKey": "line\nbreak"}}, "credentials"),
        ({"credentials": {"apiKey": "k", "more": 1}}, "credentials"),
        ({"colour": "red"}, "colour"),
        ({"credentials": None}, "credentials"),
    ],
)
def test_an_account_that_makes_no_sense_is_400(ask: Ask, body: dict[str, Any], field: str) -> None:
    status, wrong = ask("PUT", "/accounts/shop-1", body)
    assert status == 400
    assert field in wrong["details"]


def test_a_refused_key_is_told_what_is_allowed(ask: Ask) -> None:
    """Without its value, which is a secret."""
    status, wrong = ask("PUT", "/accounts/shop-1", {"credentials": {"apiKey": "its key upstream"}})
    assert status == 400
    [words] = wrong["details"]["credentials"]["apiKey"]
    assert words == (
        "Must be letters, digits and punctuation of ASCII alone, without spaces or line breaks (^[!-~]+$)."
    )


SHOP = {"limits": "5/second", "displayName": "Shop", "credentials": {"apiKey": "old"}, "settings": {"trust5xx": True}}


def test_patch_changes_what_it_names_and_nothing_else(ask: Ask, adapters: Adapters) -> None:
    """At 3 a.m., with a new key in hand: limits and name survive."""
    before = ask("PUT", "/accounts/shop-1", SHOP)[1]
    assert ask("PATCH", "/accounts/shop-1", {"credentials": {"apiKey": "new"}}) == (200, before)
    stored = adapters.db.one("SELECT api_key FROM accounts WHERE id = 'shop-1'")["api_key"]
    assert adapters.vault.open(stored) == "new"
    assert ask("PATCH", "/accounts/shop-1", {"displayName": "Boutique"}) == (200, before | {"displayName": "Boutique"})
    assert ask("PATCH", "/accounts/shop-1", {}) == (200, before | {"displayName": "Boutique"})


def test_null_clears(ask: Ask, adapters: Adapters, dispatcher: Dispatcher, upstream: Sandbox) -> None:
    ask("PUT", "/accounts/shop-1", SHOP)
    cleared = dict.fromkeys(["limits", "displayName", "credentials", "settings"])
    status, found = ask("PATCH", "/accounts/shop-1", cleared)
    assert (status, found["limits"], found["ownLimits"], found["displayName"]) == (200, "10/minute", False, None)
    assert (found["hasCredentials"], found["settings"]) == (False, {})
    ask("POST", "/send", {"recipientId": "fan", "content": "x", "accountId": "shop-1"})
    dispatcher.drain("shop-1")
    assert [entry.arrival.message.key for entry in upstream.ledger.entries] == ["key-of-the-house"]


def test_settings_are_patched_by_name(ask: Ask) -> None:
    ask("PUT", "/accounts/shop-1", SHOP)
    assert ask("PATCH", "/accounts/shop-1", {"settings": {}})[1]["settings"] == {"trust5xx": True}
    assert ask("PATCH", "/accounts/shop-1", {"settings": {"trust5xx": False}})[1]["settings"] == {"trust5xx": False}
    assert ask("PATCH", "/accounts/shop-1", {"settings": {"trust5xx": None}})[1]["settings"] == {}


def test_put_replaces_all_but_the_credentials(ask: Ask) -> None:
    ask("PUT", "/accounts/shop-1", SHOP)
    status, found = ask("PUT", "/accounts/shop-1", {"displayName": "Shop"})
    assert (status, found["ownLimits"], found["settings"], found["hasCredentials"]) == (200, False, {}, True)


@pytest.mark.parametrize("kind", ["application/json", "application/merge-patch+json"])
def test_a_patch_may_be_declared_as_what_it_is(client: FlaskClient, bearer: Bearer, kind: str) -> None:
    answer = client.patch(
        f"{BASE}/accounts/default", data='{"displayName":"D"}', headers=bearer("admin"), content_type=kind
    )
    assert (answer.status_code, answer.json and answer.json["displayName"]) == (200, "D")
    put = client.put(f"{BASE}/accounts/default", data="{}", headers=bearer("admin"), content_type=kind)
    assert put.status_code == (200 if kind == "application/json" else 415)


def test_a_patch_of_what_is_not_there_makes_nothing(ask: Ask) -> None:
    assert ask("PATCH", "/accounts/shop-1", {"limits": "5/second"})[0] == 404
    assert ask("GET", "/accounts/shop-1")[0] == 404


@pytest.mark.parametrize("role", ["operator", "admin", "ops"])
def test_everybody_may_read_an_account_of_theirs_without_its_credentials(
    ask: Ask, client: FlaskClient, bearer: Bearer, role: str
) -> None:
    ask("PUT", "/accounts/shop-1", SHOP)
    answer = client.get(f"{BASE}/accounts/shop-1", headers=bearer(role, "shop-1"))
    assert answer.json == {
        "accountId": "shop-1",
        "channel": "onlyfans",
        "displayName": "Shop",
        "limits": "5/second",
        "ownLimits": True,
        "hasCredentials": True,
        "settings": {"trust5xx": True},
        "state": "active",
        "reason": None,
        "pausedUntil": None,
    }
    assert client.get(f"{BASE}/accounts", headers=bearer(role, "shop-1")).json == {"accounts": [answer.json]}
    assert client.get(f"{BASE}/accounts/default", headers=bearer(role, "shop-1")).status_code == 404


@pytest.mark.parametrize("wrong", [{"trust5xx": "yes"}, {"trust5xx": 1}, {"trust4xx": True}, [], "trust5xx"])
def test_settings_that_make_no_sense_are_400(ask: Ask, wrong: Any) -> None:
    for method in ("PUT", "PATCH"):
        status, answer = ask(method, "/accounts/default", {"settings": wrong})
        assert (status, list(answer["details"])) == (400, ["settings"])


def test_an_account_id_is_plain(ask: Ask) -> None:
    assert ask("PUT", "/accounts/no%20spaces", {})[0] == 400
    assert ask("PUT", f"/accounts/{'x' * 65}", {})[0] == 400


def test_paused_holds_back_and_resumed_goes_on(
    ask: Ask, submit: Submit, dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    status, paused = ask("POST", "/accounts/default/pause", {"reason": "audit"})
    assert (status, paused["state"], paused["reason"], paused["pausedUntil"]) == (200, "paused", "audit", None)
    submit()
    dispatcher.drain("default")
    assert upstream.summary()["arrivals"] == 0
    assert ask("POST", "/accounts/default/resume")[1]["state"] == "active"
    dispatcher.drain("default")
    assert upstream.summary()["accepted"] == 1


def test_a_pause_with_an_end_ends(ask: Ask, submit: Submit, dispatcher: Dispatcher) -> None:
    until = (datetime.now(UTC) + timedelta(seconds=90)).isoformat()
    assert ask("POST", "/accounts/default/pause", {"reason": "lunch", "until": until})[1]["pausedUntil"]
    submit()
    report = dispatcher.drain("default")
    assert report.next_s is not None
    assert 80 < report.next_s <= 90
    assert ask("POST", "/accounts/default/pause", {"reason": "x", "until": "2001-01-01T00:00:00Z"})[0] == 400


def test_an_unknown_account_is_404(ask: Ask) -> None:
    for path, body in (("/accounts/nobody/pause", {"reason": "x"}), ("/accounts/nobody/resume", None)):
        assert ask("POST", path, body)[0] == 404


@pytest.fixture
def dead(submit: Submit, dispatcher: Dispatcher, upstream: Sandbox) -> list[str]:
    """Three rejected messages, whose upstream is well again."""
    upstream.faults.add(Fault("status", status=400, error="No", times=3))
    receipts = [submit(f"fan-{n}") for n in range(3)]
    dispatcher.drain("default")
    return [receipt.message_id for receipt in receipts]


def test_a_dry_run_counts_and_changes_nothing(ask: Ask, dead: list[str]) -> None:
    status, found = ask("POST", "/failed/retry", {"dryRun": True})
    assert (status, found["matched"], found["queued"]) == (202, 3, 0)
    assert datetime.fromisoformat(found["estimatedCompletionTime"]) > datetime.now(UTC) - timedelta(seconds=5)
    assert ask("GET", "/failed")[1]["total"] == 3


def test_running_it_twice_queues_nothing_twice(
    ask: Ask, dead: list[str], dispatcher: Dispatcher, upstream: Sandbox
) -> None:
    assert ask("POST", "/failed/retry", {"reason": "rejected"})[1]["queued"] == 3
    assert ask("POST", "/failed/retry", {"reason": "rejected"})[1] | {"estimatedCompletionTime": 0} == {
        "matched": 0,
        "queued": 0,
        "expired": 0,
        "estimatedCompletionTime": 0,
    }
    dispatcher.drain("default")
    assert upstream.summary()["accepted"] == 3


def test_only_what_matches_is_retried(ask: Ask, dead: list[str]) -> None:
    assert ask("POST", "/failed/retry", {"recipientId": "fan-1"})[1]["queued"] == 1
    assert ask("POST", "/failed/retry", {"until": "2001-01-01T00:00:00Z"})[1]["matched"] == 0


def test_redriven_ones_go_behind_fresh_ones_of_their_priority(
    ask: Ask, dead: list[str], submit: Submit, dispatcher: Dispatcher, upstream: Sandbox, adapters: Adapters
) -> None:
    ask("POST", "/failed/retry", {})
    submit("fan-fresh", "fresh")
    adapters.db.all("UPDATE accounts SET limits = '1/100ms'")
    while adapters.reader().status(None).depth:
        dispatcher.drain("default")
    accepted = [e.arrival.message.chat_id for e in upstream.ledger.entries if e.verdict == "accepted"]
    assert accepted == ["fan-fresh", "fan-0", "fan-1", "fan-2"]


@pytest.fixture
def doubtful(submit: Submit, adapters: Adapters) -> str:
    """A dead letter whose outcome nobody knows."""
    message_id = submit().message_id
    adapters.db.all("UPDATE messages SET state = 'failed', ended_at = now()")
    letter = "INSERT INTO dead_letters (message_id, account_id, reason)"
    adapters.db.all(f"{letter} SELECT id, account_id, 'outcome_unknown' FROM messages")
    return message_id


def test_unknown_outcomes_are_retried_only_on_request(ask: Ask, doubtful: str) -> None:
    assert ask("POST", "/failed/retry", {})[1]["matched"] == 0
    assert ask("POST", "/failed/retry", {"reason": "outcome_unknown"})[1]["matched"] == 0
    assert ask("POST", "/failed/retry", {"includeUnknown": True})[1]["queued"] == 1


def test_an_unknown_outcome_is_resolved_by_hand_once(ask: Ask, doubtful: str) -> None:
    assert ask("POST", f"/{doubtful}/resolve", {"as": "lost"})[0] == 400
    assert ask("POST", f"/{doubtful}/resolve", {"as": "sent"}) == (200, {"messageId": doubtful, "status": "sent"})
    assert ask("GET", f"/messages/{doubtful}")[1]["failures"][0]["closedBy"] == "alice"
    assert ask("POST", f"/{doubtful}/resolve", {"as": "sent"})[0] == 409


def test_other_failures_cannot_be_called_sent(ask: Ask, dead: list[str]) -> None:
    assert ask("POST", f"/{dead[0]}/resolve", {"as": "sent"})[0] == 409


def test_cancelling_the_head_of_a_line_wakes_the_account_for_the_next(
    ask: Ask, adapters: Adapters, submit: Submit
) -> None:
    first, _ = submit("fan-1"), submit("fan-1")
    adapters.redis.flushall()
    assert ask("DELETE", f"/messages/{first.message_id}")[0] == 200
    assert adapters.wakeups.take_due().accounts == ("default",)
