"""How things stand: /status for people; /healthz, /readyz and /metrics for machines."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from ratelimit import Limits
from workers.bootstrap import Adapters, build
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.settings import Settings
from workers.store import closures

STATUS = "/api/onlyfans/messaging/status"


@pytest.fixture
def status(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> Callable[..., TestResponse]:
    return lambda *claim, **query: client.get(STATUS, query_string=query, headers=bearer("ops", *claim))


@pytest.fixture
def alive(adapters: Adapters) -> None:
    """A pacer and a worker that say so."""
    for kind in ("pacer", "worker"):
        adapters.wakeups.beat(kind, "1", 600)


@pytest.mark.usefixtures("alive")
def test_at_rest_it_is_the_contracts(status: Callable[..., TestResponse]) -> None:
    answer = status()
    assert answer.status_code == 200
    (account,) = answer.json["accounts"]
    assert abs(datetime.fromisoformat(account["nextTokenAt"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert answer.json == {
        "queue": {"depth": 0, "inFlight": 0, "dlqCount": 0, "total": 0},
        "processing": {"estimatedTimeSeconds": 0, "rateLimit": "10 messages/minute", "lastProcessedAt": None},
        "health": {"status": "healthy", "message": "All systems operational"},
        "accounts": [
            {
                "accountId": "default",
                "depth": 0,
                "tokensAvailable": 10,
                "nextTokenAt": account["nextTokenAt"],
                "state": "active",
                "reason": None,
            }
        ],
        "timestamp": answer.json["timestamp"],
    }


def test_counts_add_up(
    status: Callable[..., TestResponse], submit: Callable[..., Receipt], adapters: Adapters, dispatcher: Dispatcher
) -> None:
    submit("bounce-1")
    submit("fan-sent")
    dispatcher.drain("default")
    sending = submit("fan-sending")
    adapters.db.all("UPDATE messages SET state = 'verifying' WHERE id = %(id)s", {"id": sending.message_id})
    for _ in range(2):
        submit("fan-queued-and-held")
    submit("fan-later", send_at=datetime.now(UTC) + timedelta(hours=1))

    found = status().json
    assert found["queue"] == {"depth": 3, "inFlight": 1, "dlqCount": 1, "total": 5}
    assert (found["accounts"][0]["depth"], found["accounts"][0]["tokensAvailable"]) == (3, 8)
    assert found["processing"]["lastProcessedAt"].endswith("Z")


def test_the_estimate_is_of_the_last_to_go(
    status: Callable[..., TestResponse], submit: Callable[..., Receipt], make_account: Callable[..., str]
) -> None:
    make_account("a", limits="1/minute")
    for n in range(3):
        submit(f"fan-{n}", account_id="a")
    assert 120 <= status().json["processing"]["estimatedTimeSeconds"] < 125


def test_the_estimate_knows_how_long_the_accounts_own_upstream_takes(
    status: Callable[..., TestResponse],
    submit: Callable[..., Receipt],
    make_account: Callable[..., str],
    adapters: Adapters,
) -> None:
    make_account("slow", limits="1/minute")
    for n in range(4):
        submit(f"fan-{n}", account_id="slow")
    adapters.wakeups.end_drain("slow", "a-drain", latency_s=8.0)
    assert status().json["processing"]["estimatedTimeSeconds"] == pytest.approx(3 * (60 + 8), abs=0.1)


def test_the_next_token_comes_a_period_after_the_answer_that_is_awaited(
    status: Callable[..., TestResponse], make_account: Callable[..., str], adapters: Adapters
) -> None:
    make_account("slow", limits="1/minute")
    adapters.wakeups.end_drain("slow", "a-drain", latency_s=8.0)
    adapters.tokens.borrow("slow", Limits.parse("1/minute"), lease_s=10)
    found = status(accountId="slow").json
    away = datetime.fromisoformat(found["accounts"][0]["nextTokenAt"]) - datetime.fromisoformat(found["timestamp"])
    assert away.total_seconds() == pytest.approx(60 + 8, abs=0.1)


def test_it_narrows_to_an_account_and_ends_where_the_claim_does(
    status: Callable[..., TestResponse], submit: Callable[..., Receipt], make_account: Callable[..., str]
) -> None:
    make_account("a", limits="1/second,20/minute")
    make_account("b")
    for account_id in ("a", "b", "b"):
        submit(account_id=account_id)

    def seen(*claim: str, **query: str) -> tuple[list[str], int]:
        found = status(*claim, **query).json
        return [account["accountId"] for account in found["accounts"]], found["queue"]["depth"]

    assert seen() == (["a", "b", "default"], 3)
    assert seen("b") == (["b"], 2)
    assert seen("a", "b") == (["a", "b"], 3)
    assert seen("a", "b", accountId="a") == (["a"], 1)
    assert seen("no-such") == ([], 0)
    assert status("a").json["processing"]["rateLimit"] == "1 messages/second, 20 messages/minute"
    assert status(accountId="no-such").json["error"] == "No account no-such"
    assert status(accountId="no-such").status_code == 404


def test_why_an_account_stands_still(status: Callable[..., TestResponse], adapters: Adapters) -> None:
    def account() -> tuple[str, str | None, int, bool]:
        (found,) = status().json["accounts"]
        return found["state"], found["reason"], found["tokensAvailable"], found["nextTokenAt"] is not None

    assert account() == ("active", None, 10, True)
    adapters.tokens.cool_down("default", 3600)
    assert account() == ("cooldown", "throttled by the upstream for 3600 s more", 0, True)
    closures.pause(adapters.db, "default", "holidays")
    assert account()[:2] == ("paused", "holidays")


@pytest.mark.parametrize(("running", "missing"), [((), "worker"), (("pacer",), "worker"), (("worker",), "pacer")])
def test_without_a_worker_or_a_pacer_it_is_degraded(
    status: Callable[..., TestResponse], adapters: Adapters, running: tuple[str, ...], missing: str
) -> None:
    for kind in running:
        adapters.wakeups.beat(kind, "1", 600)
    health = status().json["health"]
    assert health["status"] == "down"
    assert f"No {missing} is running" in health["message"]


def test_other_limits_are_told_as_they_are(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    client = create_app(with_settings(rate_limit=Limits.parse("3/5s"))).test_client()
    assert client.get(STATUS, headers=bearer("ops")).json["processing"]["rateLimit"] == "3 messages/5s"


# --- machines -------------------------------------------------------------------------------------------------------


def test_test_says_ok_to_anyone(client: FlaskClient) -> None:
    answer = client.get("/api/onlyfans/messaging/test").json
    assert answer == {"status": "ok", "channel": "onlyfans", "timestamp": answer["timestamp"]}
    assert answer["timestamp"].endswith("Z")


def test_healthz_asks_nobody(settings: Settings) -> None:
    nowhere = replace(settings, database_url="postgresql://127.0.0.1:1/x", redis_url="redis://127.0.0.1:1")
    assert create_app(build(nowhere)).test_client().get("/healthz").status_code == 200


@pytest.mark.usefixtures("alive")
def test_ready_once_everything_is_there(client: FlaskClient, adapters: Adapters) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json) == (200, {"status": "ready", "missing": []})
    adapters.tokens.report_loss()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["missing"]) == (503, ["tokens: being rebuilt"])


def test_not_ready_says_what_is_missing_and_nothing_of_where(
    client: FlaskClient, adapters: Adapters, settings: Settings
) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["status"]) == (503, "not ready")
    assert answer.json["missing"] == ["pacer: none is alive", "worker: none is alive"]

    nowhere = replace(settings, database_url="postgresql://user:pw@127.0.0.1:1/x", redis_url="redis://127.0.0.1:1")
    answer = create_app(build(nowhere)).test_client().get("/readyz")
    assert answer.status_code == 503
    assert answer.json["missing"] == ["database: does not answer", "redis: does not answer"]


def test_metrics_tell_how_things_stand(client: FlaskClient, submit: Callable[..., Receipt]) -> None:
    submit()
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    assert 'paceline_queue_depth{account="default"} 1.0' in answer.text
    assert 'paceline_tokens_available{account="default"} 10.0' in answer.text


def test_a_metrics_token_closes_them(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    client = create_app(with_settings(metrics_token="let me see")).test_client()

    def status(headers: dict[str, str]) -> int:
        return client.get("/metrics", headers=headers).status_code

    assert status({"Authorization": "Bearer let me see"}) == 200
    for wrong in ({}, bearer("admin"), {"Authorization": "let me see"}, {"Authorization": "Bearer l\xe9t me see"}):
        assert status(wrong) == 401
