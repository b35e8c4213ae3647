"""Who did what, when, from which request: an entry for every deed, none for what was refused, none ever changed."""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from deploy.sandbox import Fault, Sandbox
from tests.conftest import ALICE
from workers.bootstrap import Adapters
from workers.domain.actor import Action
from workers.domain.filters import AuditFilter
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import audit, endings, failures

ROOT = "/api/onlyfans/messaging"
Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Call:
    """An admin's request under a request id of its own."""

    def do(method: str, path: str, *, request_id: str = "r-1", accounts: tuple[str, ...] = (), **more: Any) -> Any:
        headers = bearer("admin", *accounts, subject="ada") | {"X-Request-Id": request_id}
        answer = client.open(ROOT + path, method=method, headers=headers | more.pop("headers", {}), **more)
        assert answer.status_code < 400, answer.json
        return answer.json

    return do


def entries(adapters: Adapters, **wanted: Any) -> list[tuple[str, ...]]:
    """(subject, action, message id) of each, oldest first."""
    rows = audit.entries(adapters.db, AuditFilter(**wanted), None, 1000)
    return [(row["subject"], row["action"], row["message_id"]) for row in reversed(rows)]


def test_every_deed_is_noted_with_who_when_and_from_which_request(call: Call, adapters: Adapters) -> None:
    sent = call("POST", "/send", json={"recipientId": "fan-1", "content": "Hello"}, request_id="r-send")["messageId"]
    call("POST", "/accounts/default/pause", json={"reason": "holiday"}, request_id="r-pause")
    call("DELETE", f"/messages/{sent}", request_id="r-cancel")
    call("POST", "/accounts/default/resume", request_id="r-resume")
    call("PUT", "/accounts/default", json={"limits": "5/minute", "credentials": {"apiKey": "k-1"}}, request_id="r-put")
    page = call("GET", "/audit")["entries"]
    assert [(e["subject"], e["role"], e["action"], e["messageId"], e["requestId"]) for e in reversed(page)] == [
        ("ada", "admin", "send", sent, "r-send"),
        ("ada", "admin", "pause", None, "r-pause"),
        ("ada", "admin", "cancel", sent, "r-cancel"),
        ("ada", "admin", "resume", None, "r-resume"),
        ("ada", "admin", "put_account", None, "r-put"),
    ]
    assert {e["accountId"] for e in page} == {"default"}
    changed = page[0]["details"]
    assert (changed["limits_before"], changed["limits"], changed["credentials_changed"]) == (None, "5/minute", True)
    assert "k-1" not in str(page)


def test_of_a_change_it_is_noted_which_fields_changed_and_the_limits_before_and_after(call: Call) -> None:
    call("PUT", "/accounts/a", json={"limits": "5/minute", "credentials": {"apiKey": "k-1"}})
    call("PATCH", "/accounts/a", json={"limits": "6/minute", "displayName": "A"})
    call("PATCH", "/accounts/a", json={"credentials": {"apiKey": "k-2"}, "settings": {"trust5xx": True}})
    call("PATCH", "/accounts/a", json={"displayName": "A"})
    last, keys, limits, _ = [entry["details"] for entry in call("GET", "/audit")["entries"]]
    assert (limits["changed"], limits["limits_before"], limits["limits"]) == (
        ["limits", "displayName"], "5/minute", "6/minute",
    )  # fmt: skip
    assert (keys["changed"], keys["credentials_changed"]) == (["settings", "credentials"], True)
    assert (last["changed"], last["credentials_changed"]) == ([], False)
    assert "k-" not in str(call("GET", "/audit"))


def test_retried_and_resolved_are_noted_message_by_message(
    call: Call, adapters: Adapters, submit: Callable[..., Receipt], upstream: Sandbox, dispatcher: Dispatcher
) -> None:
    first, second = submit("bounce-1").message_id, submit("bounce-2").message_id
    dispatcher.drain("default")
    call("POST", f"/{first}/retry")
    assert call("POST", "/failed/retry", json={"dryRun": True})["matched"] == 1
    call("POST", "/failed/retry", json={})
    adapters.db.all("UPDATE messages SET state = 'failed', ended_at = now() WHERE id = %(id)s", {"id": first})
    adapters.db.all(
        "INSERT INTO dead_letters (message_id, account_id, reason) VALUES (%(id)s, 'default', 'outcome_unknown')",
        {"id": first},
    )
    call("POST", f"/{first}/resolve", json={"as": "sent"})
    assert entries(adapters, subject="ada") == [
        ("ada", "retry", first),
        ("ada", "retry", second),
        ("ada", "resolve", first),
    ]


def test_what_was_refused_or_only_repeated_is_not_noted(
    call: Call, client: FlaskClient, bearer: Callable[..., dict[str, str]], adapters: Adapters
) -> None:
    for _ in range(2):
        call("POST", "/send", json={"recipientId": "f", "content": "x"}, headers={"Idempotency-Key": "k"})
    message_id = entries(adapters)[0][2]
    assert client.post(f"{ROOT}/{message_id}/retry", headers=bearer("admin")).status_code == 409
    assert client.post(f"{ROOT}/{message_id}/resolve", json={"as": "sent"}, headers=bearer("admin")).status_code == 409
    assert client.post(f"{ROOT}/accounts/nobody/resume", headers=bearer("admin")).status_code == 404
    assert client.delete(f"{ROOT}/messages/{message_id}", headers=bearer("ops")).status_code == 403
    assert entries(adapters) == [("ada", "send", message_id)]


def test_a_pause_by_the_upstream_is_nobodys_deed_but_noted(
    adapters: Adapters, submit: Callable[..., Receipt], upstream: Sandbox, dispatcher: Dispatcher
) -> None:
    upstream.faults.add(Fault("status", status=401))
    submit()
    dispatcher.drain("default")
    (_, paused) = audit.entries(adapters.db, AuditFilter(), None, 10)[::-1]
    assert (paused["subject"], paused["role"], paused["action"]) == ("paceline", "system", "pause")
    assert "401" in paused["details"]["reason"]


def test_an_admins_pause_is_not_the_upstreams_to_change(
    adapters: Adapters, submit: Callable[..., Receipt], upstream: Sandbox, dispatcher: Dispatcher, call: Call
) -> None:
    for n in range(3):
        submit(f"fan-{n}")
    upstream.latency_ms = 300
    for _ in range(3):
        upstream.faults.add(Fault("status", status=401))
    drain = threading.Thread(target=dispatcher.drain, args=["default"])
    drain.start()
    while adapters.db.one("SELECT count(*)::int AS n FROM attempts") != {"n": 3}:
        threading.Event().wait(0.01)
    call("POST", "/accounts/default/pause", json={"reason": "holiday"})
    drain.join()
    assert adapters.db.one("SELECT pause_reason, paused_by FROM accounts") == {
        "pause_reason": "holiday",
        "paused_by": "admin",
    }
    assert [action for _, action, _ in entries(adapters)].count("pause") == 1


def test_there_is_neither_a_deed_without_an_entry_nor_an_entry_without_a_deed(
    adapters: Adapters, submit: Callable[..., Receipt]
) -> None:
    message_id = submit().message_id
    adapters.db.all("ALTER TABLE audit ADD CONSTRAINT no_more CHECK (action = 'send') NOT VALID")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            endings.cancel(adapters.db, message_id, ALICE)
        assert adapters.db.one("SELECT state FROM messages") == {"state": "queued"}
    finally:
        adapters.db.all("ALTER TABLE audit DROP CONSTRAINT no_more")


@pytest.mark.parametrize("change", ["UPDATE audit SET subject = 'nobody'", "DELETE FROM audit", "TRUNCATE audit"])
def test_the_table_itself_refuses_to_change(change: str, adapters: Adapters, submit: Callable[..., Receipt]) -> None:
    submit()
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        adapters.db.all(change)
    assert len(entries(adapters)) == 1


def test_pruning_forgets_the_old_alone_and_leaves_the_table_closed_again(
    adapters: Adapters, submit: Callable[..., Receipt]
) -> None:
    for n in range(5):
        submit(f"fan-{n}")
    adapters.db.all(
        "INSERT INTO audit (at, subject, role, action, account_id)"
        " OVERRIDING SYSTEM VALUE SELECT now() - interval '400 days', 'old', 'admin', 'pause', 'default'"
    )
    adapters.db.all("ALTER TABLE audit DISABLE TRIGGER USER")
    adapters.db.all(
        "UPDATE audit SET at = now() - interval '400 days' WHERE id IN (SELECT id FROM audit ORDER BY id LIMIT 3)"
    )
    adapters.db.all("ALTER TABLE audit ENABLE TRIGGER USER")
    assert [audit.prune(adapters.db, 365 * 86_400.0, most=2) for _ in range(3)] == [2, 1, 0]
    assert [subject for subject, _, _ in entries(adapters)] == ["alice", "alice", "old"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        adapters.db.all("DELETE FROM audit")


@pytest.fixture
def of_two_accounts(adapters: Adapters, submit: Callable[..., Receipt], make_account: Callable[..., str]) -> list[str]:
    make_account("a"), make_account("b")
    return [submit(f"fan-{n}", account_id="ab"[n % 2]).message_id for n in range(10)]


def test_pages_follow_one_another_without_gap_or_repeat(call: Call, of_two_accounts: list[str]) -> None:
    found, cursor = [], None
    while True:
        page = call("GET", "/audit", query_string={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        found += [entry["messageId"] for entry in page["entries"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert found == of_two_accounts[::-1]


def test_an_admin_of_some_accounts_sees_what_was_done_to_these(call: Call, of_two_accounts: list[str]) -> None:
    seen = [entry["messageId"] for entry in call("GET", "/audit", accounts=("a",))["entries"]]
    assert seen == of_two_accounts[::2][::-1]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"accountId": "a"}, 5),
        ({"subject": "alice"}, 10),
        ({"subject": "bob"}, 0),
        ({"action": "cancel"}, 0),
        ({"requestId": "a-request"}, 10),
        ({"since": "2999-01-01T00:00:00Z"}, 0),
        ({"until": "2999-01-01T00:00:00Z"}, 10),
    ],
)
def test_filters(query: dict[str, str], count: int, call: Call, of_two_accounts: list[str]) -> None:
    assert len(call("GET", "/audit", query_string=query)["entries"]) == count


def test_one_messages_history_is_found_by_its_id(call: Call, adapters: Adapters, of_two_accounts: list[str]) -> None:
    chosen = of_two_accounts[4]
    call("DELETE", f"/messages/{chosen}")
    found = call("GET", "/audit", query_string={"messageId": chosen})["entries"]
    assert [entry["action"] for entry in found] == ["cancel", "send"]


def test_a_redrive_of_many_notes_each_of_them_once_however_many_ask(
    adapters: Adapters, submit: Callable[..., Receipt]
) -> None:
    message_id = submit().message_id
    adapters.db.all("UPDATE messages SET state = 'failed', ended_at = now()")
    adapters.db.all(
        "INSERT INTO dead_letters (message_id, account_id, reason) VALUES (%(id)s, 'default', 'rejected')",
        {"id": message_id},
    )
    together = threading.Barrier(4)

    def retry() -> None:
        together.wait()
        failures.retry(adapters.db, [message_id], ALICE, redriven=True)

    threads = [threading.Thread(target=retry) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entries(adapters, action=Action.RETRY) == [("alice", "retry", message_id)]
