"""What PostgreSQL may do to those who talk to it: hang, hang up, grow old; and what they cost it."""

import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.dialects import postgresql

from deploy.servers import Servers
from workers.bootstrap import Adapters
from workers.domain.errors import StoreUnavailable
from workers.domain.filters import FailureFilter
from workers.engine.presence import Presence
from workers.services.submit import Receipt
from workers.store import queries, session
from workers.store.glance import LOCK_CLASS, living
from workers.store.session import Connection, Database

Submit = Callable[..., Receipt]
PATIENCE_S = 0.5


@pytest.fixture
def make_database() -> Iterator[Callable[..., Database]]:
    """A pool of one connection, and little patience."""
    made: list[Database] = []

    def make(url: str) -> Database:
        made.append(Database(url, pool_size=1, name="paceline test_database", patience_s=PATIENCE_S))
        return made[-1]

    yield make
    for db in made:
        db.close()


@pytest.fixture
def db(make_database: Callable[..., Database], adapters: Adapters) -> Database:
    return make_database(adapters.settings.database_url)


def backend(db: Database) -> int:
    row = db.one("SELECT pg_backend_pid() AS pid")
    assert row is not None
    return row["pid"]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A backend that neither answers nor hangs up; it wakes up by itself if the test does not come to an end."""
    wake = threading.Timer(5, os.kill, (pid, signal.SIGCONT))
    wake.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        wake.cancel()
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "ask",
    [
        lambda db: db.all("SELECT 1 AS one"),
        lambda db: db.select(sqlalchemy.text("SELECT 1 AS one")),
        lambda db: db.transaction(lambda c: c.all("SELECT 1 AS one")),
    ],
    ids=["statement", "select", "transaction"],
)
def test_a_server_that_hangs_is_unavailable(db: Database, ask: Callable[[Database], object]) -> None:
    with stopped(backend(db)):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s"):
            ask(db)
        assert PATIENCE_S <= time.monotonic() - began < 2
        assert db.all("SELECT 1 AS one") == [{"one": 1}], "the next one gets a connection of its own"
    assert db.all("SELECT 1 AS one") == [{"one": 1}]


def test_patience_outlasts_the_servers_own_statement_timeout(adapters: Adapters) -> None:
    """The server ends a slow statement, and says so, before its client gives it up unanswered."""
    in_force = adapters.db.one("SELECT setting::int AS ms FROM pg_settings WHERE name = 'statement_timeout'")
    assert in_force is not None
    assert 0 < in_force["ms"] / 1000 < session.PATIENCE_S


def test_a_hung_server_costs_those_who_wait_for_a_connection_no_more_than_that(db: Database) -> None:
    """One connection, held by somebody else: whoever comes is told within the pool's own timeout."""
    held, done = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        held.set()
        done.wait(10)

    holder = threading.Thread(target=db.transaction, args=(hold,))
    holder.start()
    try:
        assert held.wait(5)
        with pytest.raises(StoreUnavailable, match="QueuePool"):
            db.all("SELECT 1 AS one")
    finally:
        done.set()
        holder.join()


def test_connections_over_tcp_notice_a_host_that_is_gone(db: Database) -> None:
    with db.engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        asked = raw.info.get_parameters()
    wanted = {"keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3", "tcp_user_timeout": "10000"}
    assert asked | wanted == asked


def test_a_connection_that_died_in_the_pool_is_replaced(db: Database, adapters: Adapters) -> None:
    before = backend(db)
    adapters.db.all("SELECT pg_terminate_backend(%(pid)s, 2000)", {"pid": before})
    assert backend(db) != before


def test_file_numbers_beyond_1023_will_do(db: Database) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while fillers[-1] < 1024:
            fillers.append(os.dup(fillers[0]))
        for _ in range(3):
            assert db.all("SELECT 1 AS one") == [{"one": 1}]
    finally:
        for filler in fillers:
            os.close(filler)
        db.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_look_at_a_connection_that_fails_does_not_lose_its_place(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> bool:
        raise ValueError("no such file")

    with monkeypatch.context() as patched:
        patched.setattr(session, "_hung_up", fail)
        with pytest.raises(ValueError, match="no such file") as caught:
            db.all("SELECT 1 AS one")
    assert caught, "whoever keeps the error keeps what its frames hold: the place must not be among that"
    assert db.all("SELECT 1 AS one") == [{"one": 1}]


def test_a_server_that_refuses_is_not_asked_again_at_once(make_database: Callable[..., Database]) -> None:
    """Somebody who accepts and hangs up, and counts: twenty ask within a moment, one connection is tried."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calls: list[float] = []

        def hang_up() -> None:
            while True:
                try:
                    caller, _ = listener.accept()
                except OSError:
                    return
                calls.append(time.monotonic())
                caller.close()

        threading.Thread(target=hang_up, daemon=True).start()
        db = make_database(f"postgresql://nobody@127.0.0.1:{listener.getsockname()[1]}/none?sslmode=disable")

        def refused() -> None:
            with pytest.raises(StoreUnavailable):
                db.all("SELECT 1 AS one")

        for _ in range(20):
            refused()
        assert len(calls) <= 2
        time.sleep(session._PAUSE_S[1])
        tried = len(calls)
        refused()
        assert len(calls) == tried + 1, "after the pause it is tried again"
        listener.shutdown(socket.SHUT_RDWR)


# --- presence -------------------------------------------------------------------------------------------------------


def test_a_worker_whose_connection_was_cut_holds_its_lock_again_after_one_beat(adapters: Adapters) -> None:
    held = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = {LOCK_CLASS} AND objid = %(number)s"
    presence = Presence("worker", adapters.settings.database_url, adapters.wakeups)
    try:
        presence.tick()
        (before,) = adapters.db.all(held, {"number": presence.number})
        adapters.db.all("SELECT pg_terminate_backend(%(pid)s, 2000)", before)
        assert adapters.db.all(held, {"number": presence.number}) == []
        presence.tick()
        (after,) = adapters.db.all(held, {"number": presence.number})
        assert after != before
    finally:
        presence.stop()


def test_a_cut_is_noticed_at_once_and_not_with_the_next_beat(
    adapters: Adapters,
) -> None:
    presence = Presence("worker", adapters.settings.database_url, adapters.wakeups, beat_s=60.0)
    presence.start()
    try:
        assert living(adapters.db) == {presence.number}
        adapters.db.all("SELECT pg_terminate_backend(pid, 2000) FROM pg_locks WHERE locktype = 'advisory'")
        deadline = time.monotonic() + 20
        while living(adapters.db) != {presence.number}:
            assert time.monotonic() < deadline, "it sleeps on"
            time.sleep(0.01)
    finally:
        adapters.db.all("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")  # wakes it
        presence.stop()


# --- what it costs --------------------------------------------------------------------------------------------------


def test_backends_of_one_account_do_not_wait_for_each_others_tallies(servers: Servers, adapters: Adapters) -> None:
    """Two backends whose pids are a multiple of 64 apart; the second gives up if it has to wait for the first."""
    insert = (
        "INSERT INTO messages (id, account_id, recipient_id, priority, state, content, due_at)"
        " VALUES (%s, 'default', %s, 5, 'queued', '', now())"
    )
    with psycopg.connect(servers.database_url) as first:
        for _ in range(2000):
            with psycopg.connect(servers.database_url, options="-c lock_timeout=500") as second:
                if (second.info.backend_pid - first.info.backend_pid) % 64:
                    continue
                first.execute(insert, ("msg_1", "fan-1"))
                second.execute(insert, ("msg_2", "fan-2"))
                break
        else:
            pytest.skip("no two pids of one kind came up")
    assert queries.counts(adapters.db, None) == {"default": {"queued": 2}}


def plan_of(adapters: Adapters, sql: str, **params: object) -> str:
    rows = adapters.db.all("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) " + sql, params)
    return "\n".join(row["QUERY PLAN"] for row in rows)


@pytest.fixture
def history(adapters: Adapters) -> None:
    """Sent messages, far more than are waiting."""
    adapters.db.all("""
        INSERT INTO messages (id, account_id, recipient_id, priority, state, content, due_at, sent_at, ended_at)
        SELECT 'msg_' || n, 'default', 'fan-' || mod(n, 1000), 5, 'sent', '', now() - interval '1 day', now(), now()
        FROM generate_series(1, 50000) n""")
    adapters.db.all("ANALYZE messages")


def buffers(plan: str) -> int:
    """Pages touched by the whole of it: the first line that tells is the topmost node's."""
    return sum(int(n) for n in re.findall(r"(?:hit|read)=(\d+)", re.findall("Buffers: .*", plan)[0]))


@pytest.mark.usefixtures("history")
def test_a_place_in_the_queue_does_not_cost_all_history(adapters: Adapters, submit: Submit) -> None:
    for n in range(10):
        submit(f"fan-{n}", priority=5)
        submit(f"fan-{n}", priority=5)
    last = submit("fan-last", priority=5)
    assert queries.ahead_of(adapters.db, [last.message_id]) == {last.message_id: 20}
    plan = plan_of(adapters, queries._AHEAD, message_ids=[last.message_id])
    assert "ix_messages_claim" in plan
    assert "ix_messages_held" in plan
    assert buffers(plan) < 200, plan


@pytest.mark.usefixtures("history")
def test_dead_letters_of_a_message_are_found_by_an_index(adapters: Adapters) -> None:
    adapters.db.all("""
        INSERT INTO dead_letters (message_id, account_id, reason, closed_at, closed_as)
        SELECT id, account_id, 'rejected', now(), 'retried' FROM messages LIMIT 20000""")
    adapters.db.all("ANALYZE dead_letters")
    plan = plan_of(adapters, "SELECT * FROM dead_letters WHERE message_id = %(id)s ORDER BY id", id="msg_7")
    assert "ix_dead_letters_message" in plan
    assert "Sort" not in plan


class Noting(Database):
    """Keeps what lists and filters ask, as SQL."""

    def select(self, statement: Any) -> Any:
        self.asked = getattr(self, "asked", [])
        written = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
        self.asked.append(str(written).replace("%%", "%"))
        return super().select(statement)


@pytest.mark.parametrize("scope", [None, ["default"]])
@pytest.mark.parametrize(
    "wanted",
    [
        FailureFilter(), FailureFilter(words=("again",)), FailureFilter(http_status=422),
        FailureFilter(before_id=10**9), FailureFilter(batch_id="may", reason="rejected"),
    ],
)  # fmt: skip
def test_failures_are_looked_for_among_the_open_ones_alone(
    adapters: Adapters, submit: Submit, history: None, wanted: FailureFilter, scope: list[str] | None
) -> None:
    adapters.db.all("""
        INSERT INTO dead_letters (message_id, account_id, reason, error, closed_at, closed_as)
        SELECT id, account_id, 'rejected', 'Not you again', now(), 'retried' FROM messages""")
    for n in range(5):
        message_id = submit(f"open-{n}", batch_id="may").message_id
        adapters.db.all("UPDATE messages SET state = 'failed', ended_at = now() WHERE id = %(id)s", {"id": message_id})
        letter = (
            "INSERT INTO dead_letters (message_id, account_id, reason, error, http_status) VALUES (%(id)s, 'default',"
        )
        adapters.db.all(f"{letter} 'rejected', 'Not you AGAIN', 422)", {"id": message_id})
    adapters.db.all("ANALYZE dead_letters")
    noting = Noting(adapters.db.url)
    rows, total = queries.failures(noting, wanted, scope, 50, 0)
    [shares] = queries.failed(noting, wanted, scope, include_unknown=False)
    noting.close()
    assert len(rows) == total == shares.n == 5
    for sql in noting.asked:
        plan = plan_of(adapters, sql.replace("%", "%%"))
        assert buffers(plan) < 100, plan


def test_the_oldest_message_is_looked_for_only_where_one_is_queued(adapters: Adapters, submit: Submit) -> None:
    adapters.db.all("INSERT INTO accounts (id) SELECT 'a' || n FROM generate_series(1, 1000) n")
    submit("fan-1", priority=5)
    submit("fan-2", priority=9)
    submit("fan-3", priority=9, account_id="a1")
    adapters.db.all("UPDATE messages SET due_at = now() - interval '1 minute' WHERE recipient_id = 'fan-2'")
    adapters.db.all("UPDATE messages SET due_at = now() + interval '1 minute' WHERE recipient_id = 'fan-3'")
    ages = queries.oldest_ages_s(adapters.db)
    assert list(ages) == ["default"]
    assert ages["default"] == pytest.approx(60, abs=5)
    assert buffers(plan_of(adapters, queries._OLDEST, scope=None)) < 100
