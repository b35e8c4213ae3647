"""The reconciler's rounds: what Redis has forgotten is repeated, what is over and old is forgotten."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from ulid import ULID

from ratelimit import Limits
from workers.bootstrap import Adapters
from workers.domain.errors import StoreUnavailable
from workers.domain.state import OVER, State
from workers.engine import reconciler
from workers.engine.reconciler import Reconciler
from workers.services import epochs, recovery
from workers.services.dispatch import Dispatcher
from workers.services.submit import Receipt
from workers.store import accounts, closures, waiting
from workers.store.session import Connection, Row

Submit = Callable[..., Receipt]
DAY_S = 86_400.0


@pytest.fixture
def rounds(adapters: Adapters) -> Reconciler:
    return Reconciler(adapters, verify=lambda: None)


@pytest.fixture
def asked_for_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows whenever the names of all accounts that wait are read."""
    asked: list[int] = []
    names = waiting.accounts_waiting

    def counted(db: object) -> list[str]:
        asked.append(1)
        return names(db)  # type: ignore[arg-type]

    monkeypatch.setattr(waiting, "accounts_waiting", counted)
    return asked


# --- what Redis has forgotten


def test_an_account_that_was_forgotten_is_woken(adapters: Adapters, rounds: Reconciler, submit: Submit) -> None:
    rounds.tick()  # the first one asks for names anyway
    submit()
    adapters.wakeups.take_due()  # by a pacer that dies
    assert rounds.tick()["woken"] == 1
    assert rounds.tick()["woken"] == 0


def test_while_all_have_their_wake_ups_nobodys_name_is_asked_for(
    adapters: Adapters, rounds: Reconciler, make_account: Callable[..., str], submit: Submit, asked_for_names: list[int]
) -> None:
    for n in range(5):
        submit(account_id=make_account(f"account-{n}"))
    for _ in range(2):
        rounds.tick()  # what the first one tidies up is written
    del asked_for_names[:]
    for _ in range(reconciler.BY_NAME_EVERY):
        assert rounds.tick()["woken"] == 0
    assert len(asked_for_names) == 1


def test_one_wake_up_too_many_does_not_hide_one_too_few_for_long(
    adapters: Adapters, rounds: Reconciler, make_account: Callable[..., str], submit: Submit
) -> None:
    rounds.tick()
    submit()
    adapters.wakeups.take_due()
    adapters.wakeups.wake(make_account("idle"), 3600)
    assert sum(rounds.tick()["woken"] for _ in range(reconciler.BY_NAME_EVERY)) == 1


def test_one_paused_until_later_does_not_hide_another_without_its_wake_up(
    adapters: Adapters, rounds: Reconciler, dispatcher: Dispatcher, make_account: Callable[..., str], submit: Submit
) -> None:
    paused = make_account("paused")
    submit(account_id=paused)
    closures.pause(adapters.db, paused, "holiday", datetime.now(UTC) + timedelta(hours=5))
    adapters.wakeups.take_due()
    dispatcher.drain(paused)  # leaves its wake-up for the end of the pause
    rounds.tick()
    submit()
    adapters.wakeups.take_due()  # by a pacer that dies
    assert rounds.tick()["woken"] == 1


def test_wake_ups_by_another_servers_clock_are_forgotten_and_made_again(
    adapters: Adapters, rounds: Reconciler, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis fails over to a replica, whose clock is an hour behind: by that, everything in its copy is due in an hour,
    and a drain of the old days keeps its place."""
    for module, pause in ((epochs, "OBJECT_WITHIN_S"), (recovery, "START_WITHIN_S")):
        monkeypatch.setattr(module, pause, 0.0)
    rounds.tick()
    submit()
    adapters.wakeups.take_due()
    adapters.wakeups.wake("default", 3600)
    adapters.redis.zadd("paceline:{wakeups}:drains:default", {"1.gone": 2**52})
    adapters.redis.hset("paceline:filled", "server", "the old master")
    adapters.db.all("UPDATE token_epoch SET server = 'the old master'")
    found = rounds.tick()
    assert (found["tokens_rebuilt"], found["woken"]) == (1, 1)
    assert adapters.wakeups.take_due().accounts == ("default",)
    assert adapters.wakeups.begin_drain("default", "2.new", most=1)


# --- how much is asked


@pytest.fixture
def statements(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by everything that PostgreSQL is asked."""
    asked: list[str] = []
    execute = Connection.all

    def noted(self: Connection, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        asked.append(sql)
        return execute(self, sql, params)

    monkeypatch.setattr(Connection, "all", noted)
    return asked


def test_while_nothing_is_out_of_order_a_round_is_one_question(
    adapters: Adapters, rounds: Reconciler, submit: Submit, statements: list[str]
) -> None:
    submit()
    for _ in range(2):
        rounds.tick()
    del statements[:]
    rounds.tick()
    assert len(statements) == 1


def test_each_step_asks_for_itself_when_the_one_question_gets_no_answer(
    adapters: Adapters, rounds: Reconciler, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds.tick()

    def unanswered(_: object) -> None:
        raise StoreUnavailable("PostgreSQL did not answer: canceling statement due to statement timeout")

    monkeypatch.setattr(reconciler, "glance", unanswered)
    for recipient in ("fan-1", "fan-2"):
        submit(recipient, expires_at=datetime.now(UTC) + timedelta(hours=1))
    adapters.db.all("UPDATE messages SET expires_at = now() WHERE recipient_id = 'fan-1'")
    adapters.wakeups.take_due()  # by a pacer that dies
    found = rounds.tick()
    assert (found["gone"], found["expired"]) == (0, 1)
    adapters.wakeups.take_due()
    assert [rounds.tick()["woken"] for _ in range(2)] == [1, 0]


# --- what is over and old


_FILL = """
WITH made AS (
    INSERT INTO messages
        (id, account_id, recipient_id, priority, content, due_at, queued_at, state, sent_at, ended_at)
    SELECT id, 'default', id, 5, repeat('x', 100), to_timestamp(%(at)s), to_timestamp(%(at)s), %(state)s,
           CASE WHEN %(state)s = 'sent' THEN to_timestamp(%(at)s) END,
           CASE WHEN %(over)s::boolean THEN to_timestamp(%(at)s) END
    FROM unnest(%(ids)s::text[]) AS id RETURNING id, state
)
INSERT INTO attempts (message_id, account_id, number, token, worker, deadline_at, outcome, ended_at)
SELECT id, 'default', 1, id, 1, now(), 'accepted', now() FROM made WHERE state = 'sent'
"""


def fill(adapters: Adapters, state: str, n: int, days_old: float) -> None:
    """Messages that were accepted, and ended if they have, so many days ago; each with an attempt if it was sent."""
    at = time.time() - days_old * DAY_S
    ids = [f"msg_{ULID.from_timestamp(at)}" for _ in range(n)]
    adapters.db.all(_FILL, {"ids": ids, "at": at, "state": state, "over": State(state) in OVER})


def census(adapters: Adapters) -> dict[str, int]:
    return {
        row["state"]: row["n"] for row in adapters.db.all("SELECT state, count(*)::int AS n FROM messages GROUP BY 1")
    }


def test_what_is_over_and_old_goes_in_small_batches_and_nothing_else_goes(
    adapters: Adapters,
) -> None:
    rounds = Reconciler(adapters, verify=lambda: None, pruned_at_once=50)
    for state in ("sent", "cancelled", "expired"):
        fill(adapters, state, 60, days_old=40)
        fill(adapters, state, 3, days_old=20)
    for state in ("queued", "scheduled", "failed"):
        fill(adapters, state, 70, days_old=40)
    batches = []
    while n := rounds.tick().get("pruned", 0):
        batches.append(n)
    assert (max(batches), sum(batches)) == (50, 180)
    assert census(adapters) == {
        "sent": 3, "cancelled": 3, "expired": 3, "queued": 70, "scheduled": 70, "failed": 70,
    }  # fmt: skip
    assert len(adapters.db.all("SELECT 1 FROM attempts")) == 3
    assert "pruned" not in rounds.tick(), "it rests until the next chores"


@pytest.mark.parametrize("days", [-100, 100])
def test_what_is_old_is_told_by_the_databases_clock_alone(
    adapters: Adapters, rounds: Reconciler, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    fill(adapters, "sent", 5, days_old=40)
    fill(adapters, "sent", 3, days_old=20)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + days * DAY_S)  # of the machine that the reconciler runs on
    assert rounds.tick()["pruned"] == 5


def test_the_books_of_a_long_limit_outlast_the_retention(with_settings: Callable[..., Adapters]) -> None:
    adapters = with_settings(retention_days=5)
    rounds = Reconciler(adapters, verify=lambda: None)
    accounts.put(adapters.db, "patient", limits=Limits.parse("1000/20days"))
    fill(adapters, "sent", 5, days_old=20.5)
    assert rounds.tick()["pruned"] == 0
    accounts.put(adapters.db, "patient", limits=None)
    rounds._chores_s = 0.0
    assert rounds.tick()["pruned"] == 5


def test_tables_do_not_grow_while_as_much_goes_as_comes(adapters: Adapters, rounds: Reconciler) -> None:
    """With what autovacuum would do done at once, the tables keep the size of what is in them."""
    sizes = []
    size = "SELECT sum(pg_total_relation_size(t::regclass)) FROM unnest(ARRAY['messages', 'attempts', 'tallies']) t"
    with psycopg.connect(adapters.db.url, autocommit=True) as vacuum:
        for _ in range(6):
            fill(adapters, "sent", 1500, days_old=40)
            rounds._chores_s = 0.0
            while rounds.tick().get("pruned"):
                pass
            vacuum.execute("VACUUM messages, attempts, tallies")
            found = vacuum.execute(size).fetchone()
            assert found
            sizes.append(int(found[0]))
    assert census(adapters) == {}
    assert sizes[-1] <= 1.1 * sizes[1], sizes
