"""Schema changes on a database that is full and in use: up from the first, beside a version that knows nothing of them,
and down again with nothing lost.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from ulid import ULID

from deploy.servers import Servers
from tests.integration import version_0001
from workers.bootstrap import Adapters, build
from workers.services.epochs import begin_epoch
from workers.settings import Settings
from workers.store import migrations, upkeep
from workers.store.session import Database

FIRST = "0001"
REVISIONS = [f"{n:04}" for n in range(1, 15)]
Tables = dict[str, list[dict[str, Any]]]


@pytest.fixture
def url(servers: Servers) -> str:
    """Of a database with nothing in it."""
    with psycopg.connect(servers.database_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS migrated WITH (FORCE)")
        admin.execute("CREATE DATABASE migrated")
    base, _, options = servers.database_url.partition("?")
    return f"{base.rpartition('/')[0]}/migrated?{options}"


@pytest.fixture
def old(url: str) -> Iterator[Database]:
    """The first schema, as its own version found it."""
    migrations.upgrade(url, FIRST)
    database = Database(url)
    yield database
    database.close()


def accept(db: Database, recipient_id: str, **more: Any) -> str:
    """As the version of the first schema did."""
    wanted: dict[str, Any] = {
        "id": f"msg_{ULID()}", "account_id": "default", "recipient_id": recipient_id, "priority": 5, "content": "Hello",
        "media_ids": [], "metadata": None, "batch_id": None, "send_at": None, "expires_at": None,
        "estimated_at": datetime.now(UTC), "subject": "alice", "key": None, "fingerprint": "",
    }  # fmt: skip
    row = db.retrying(lambda: db.one(version_0001.ACCEPT, wanted | more))
    assert row is not None
    return row["id"]


def send_one(db: Database) -> str | None:
    """Claim a message and have it sent, as the version of the first schema did."""
    wanted = {"account_id": "default", "want": 1, "tokens": [str(ULID())], "worker": 1, "lease_s": 10}
    claims = db.all(version_0001.CLAIM_NEXT, wanted)
    for claim in claims:
        sent = {
            "ids": [claim["id"]], "attempts": [claim["attempts"]], "upstream_ids": ["u"], "statuses": [200],
            "latencies": [5], "tokens": wanted["tokens"],
        }  # fmt: skip
        assert len(db.all(version_0001.MARK_SENT, sent)) == 1
        return claim["id"]
    return None


def fill(db: Database) -> Tables:
    """Some of everything. Returns the tables as they are then."""
    shop = {"id": "shop", "channel": "onlyfans", "limits": "5/minute", "display_name": "Shop", "api_key": "k"}
    db.all(version_0001.PUT, shop)
    for n in range(40):
        accept(db, f"fan-{n % 7}", key=f"key-{n}", account_id=("default", "shop")[n % 2], metadata='{"n": 1}')
    accept(db, "fan-later", send_at=datetime(2100, 1, 1, tzinfo=UTC))
    for _ in range(3):
        send_one(db)
    dead = send_one(db)
    db.all("UPDATE messages SET state = 'failed', sent_at = NULL WHERE id = %(id)s", {"id": dead})
    letter = "INSERT INTO dead_letters (message_id, account_id, reason) VALUES (%(id)s, 'default', 'rejected')"
    db.all(letter, {"id": dead})
    return contents(db.url)


def contents(url: str) -> Tables:
    """Over a connection of its own: a prepared `SELECT *` does not outlive a change of its columns."""
    order = {"accounts": "id", "messages": "id", "attempts": "id", "dead_letters": "id", "idempotency_keys": "key"}
    with psycopg.connect(url, row_factory=dict_row) as c:
        return {
            table: c.execute(f"SELECT * FROM {table} ORDER BY {column}").fetchall() for table, column in order.items()
        }


def redrive_one(db: Database) -> None:
    db.all(
        "UPDATE messages SET redriven = true"
        " WHERE id = (SELECT id FROM messages WHERE state = 'queued' AND NOT redriven LIMIT 1 FOR UPDATE SKIP LOCKED)"
    )


def check_tallies(url: str) -> None:
    """They agree with the rows, and tell redriven messages apart if this revision does."""
    with psycopg.connect(url) as c:
        trigger = c.execute("SELECT prosrc LIKE '%redriven%' FROM pg_proc WHERE proname = 'tally_messages'").fetchone()
        apart = trigger and trigger[0]
        priority = "CASE WHEN redriven THEN -priority ELSE priority END" if apart else "priority"
        counted = f"""SELECT account_id, state, {priority}, count(*) FROM messages
                      WHERE state IN ('scheduled', 'held', 'queued', 'sending', 'verifying', 'failed')
                      GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""
        tallied = """SELECT account_id, state, priority, sum(n) FROM tallies
                     GROUP BY 1, 2, 3 HAVING sum(n) <> 0 ORDER BY 1, 2, 3"""
        assert c.execute(tallied).fetchall() == c.execute(counted).fetchall()


def only(found: Tables, like: Tables) -> Tables:
    """Without the columns that the other does not have."""
    return {table: [{name: row[name] for name in like[table][0]} for row in rows] for table, rows in found.items()}


def test_head_is_the_last_of_the_revisions_tried_here() -> None:
    assert migrations.head() == REVISIONS[-1]


def test_up_with_data_in_it_and_down_again_nothing_is_lost(old: Database, url: str) -> None:
    before = fill(old)
    for revision in REVISIONS[1:]:
        migrations.upgrade(url, revision)
        assert only(contents(url), before) == before, revision
    for revision in reversed(REVISIONS[:-1]):
        migrations.downgrade(url, revision)
    assert contents(url) == before
    migrations.downgrade(url, "base")
    assert migrations.current(url) is None
    migrations.upgrade(url)
    assert migrations.current(url) == migrations.head()


def test_redriven_messages_are_counted_apart_from_the_change_on_and_until_it_is_undone(old: Database, url: str) -> None:
    fill(old)
    old.all("UPDATE messages SET redriven = true WHERE mod(seq, 2) = 0")
    check_tallies(url)
    migrations.upgrade(url)
    check_tallies(url)
    upkeep.fold_tallies(old)
    send_one(old)
    redrive_one(old)
    check_tallies(url)
    migrations.downgrade(url, FIRST)
    check_tallies(url)


def test_what_the_first_version_queued_is_sent_by_this_one(
    old: Database, url: str, settings: Settings, make_adapters: Callable[..., Adapters]
) -> None:
    ids = {accept(old, f"fan-{n}") for n in range(20)}
    migrations.upgrade(url)
    make_adapters(settings)  # for its emptied Redis
    adapters = build(replace(settings, database_url=url))
    adapters.redis.flushall()
    begin_epoch(adapters.db, adapters.tokens)
    adapters.tokens.open_new("default")
    drained = adapters.dispatcher(worker=1).drain("default")
    sent = {row["id"] for row in adapters.db.all("SELECT id FROM messages WHERE state = 'sent'")}
    adapters.close()
    assert (drained.claimed, len(sent), sent <= ids) == (10, 10, True)  # RATE_LIMIT is 10/minute


def test_the_first_version_goes_on_serving_while_the_schema_changes_under_it(old: Database, url: str) -> None:
    fill(old)
    over = threading.Event()
    accepted: list[str] = []

    def post(n: int) -> None:
        while not over.is_set():
            accepted.append(accept(old, f"fan-{n}"))

    def drain() -> None:
        while not over.is_set():
            redrive_one(old)
            send_one(old)

    with ThreadPoolExecutor(6) as pool:
        serving = [*(pool.submit(post, n) for n in range(3)), *(pool.submit(drain) for _ in range(3))]
        try:
            for _ in range(3):
                migrations.upgrade(url)
                so_far = len(accepted)
                while len(accepted) < so_far + 20 and not any(server.done() for server in serving):
                    over.wait(0.01)
                migrations.downgrade(url, FIRST)
            migrations.upgrade(url)
        finally:
            over.set()
        for server in serving:
            server.result()
    check_tallies(url)
    known = {row["id"] for row in old.all("SELECT id FROM messages")}
    assert known >= set(accepted)
    assert old.all("SELECT 1 FROM messages WHERE state NOT IN ('queued', 'held', 'sent', 'failed', 'scheduled')") == []


def test_a_change_gives_way_to_a_transaction_that_holds_the_table(
    old: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(migrations, "_PAUSE_S", 0.01)
    with psycopg.connect(url) as reader:
        reader.execute("SELECT count(*) FROM messages")
        with pytest.raises(RuntimeError, match="pg_stat_activity"):
            migrations.upgrade(url)
        assert migrations.current(url) == FIRST
    migrations.upgrade(url)
    assert migrations.current(url) == migrations.head()


def test_several_processes_may_migrate_at_once(url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: migrations.upgrade(url), range(3)))
    assert migrations.current(url) == migrations.head()
