"""No statement reads what it does not need, whatever the tables held when it was planned.

Plans are kept for as long as a connection lives, or until autovacuum has counted again, and the worst moment for that
is a quiet one: to a planner that has just seen that nothing waits, the index of all that waits is empty, and to read it
whole is as good as to look something up. The statements are found by themselves, so that a new one is looked at too.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

import psycopg
import pytest
from sqlalchemy import make_url

from deploy.servers import Servers
from workers import store
from workers.store import migrations, session
from workers.store.session import Database

ROWS = 50_000
MOMENTS = {
    "new": "",
    "night": "'sent', 'fan-' || n, now(), now()",
    "morning": "'queued', 'fan-' || n, NULL, NULL",
    "one recipient fails": "CASE n WHEN 1 THEN 'queued' ELSE 'held' END, 'stuck', NULL, NULL",
    "all for later": "'scheduled', 'fan-' || n, NULL, NULL",
}
"""What the messages were when plans were made: state, recipient, sent_at, ended_at."""

READ_WHOLE = {
    # the requests that are out right now, of all workers
    ("_ORPHANS", "uq_attempts_open"),
    ("_TAKE_BACK", "uq_attempts_open"),
    ("_NOTE_REFUSAL", "uq_attempts_open"),
    ("_STANDINGS", "uq_attempts_open"),
    ("_GLANCE", "uq_attempts_open"),  # whether there is any
    ("_STANDINGS", "pk_attempts"),  # its end
    ("_CLAIM_LOOKUP", "uq_messages_head"),  # a table that was never counted, until it is: some ms a lookup
    ("_HEADLESS", "ix_messages_held"),  # every half a minute
    ("_OTHERS", "ix_messages_recipient"),  # if hardly anybody else has messages
}
"""Read from end to end on purpose, and why that is no harm."""
READS_HISTORY = {"_OTHERS", "_CLAIM_LOOKUP", "_PRUNE"}
"""Of one chat, to tell whose message it is that was found upstream; or all that is old, to forget it."""

PARTS = {"_TOKENS", "_LATER"}
"""Of other statements."""

_SCAN = re.compile(r"Index (?:Only )?Scan (?:Backward )?using (\w+)|Bitmap Index Scan on (\w+)|Seq Scan on (\w+)")
_INDEXES = re.compile(r"(pk|uq|ix)_(messages|attempts)\w*|messages|attempts")


@pytest.fixture
def db(servers: Servers) -> Iterator[Database]:
    """Of its own: other tests leave behind what PostgreSQL has counted of their tables."""
    with psycopg.connect(servers.database_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS planned WITH (FORCE)")
        admin.execute("CREATE DATABASE planned")
    url = make_url(servers.database_url).set(database="planned").render_as_string(hide_password=False)
    migrations.upgrade(url)
    database = Database(url)
    yield database
    database.close()


def statements() -> Iterator[tuple[str, str]]:
    """Those of every module of the store that read messages or attempts."""
    for module in iter_modules(store.__path__):
        for name, sql in vars(import_module(f"workers.store.{module.name}")).items():
            whole = isinstance(sql, str) and re.match(r"\s*(WITH|SELECT|UPDATE|INSERT|DELETE)\b", sql)
            if whole and name.isupper() and re.search(r"\b(messages|attempts)\b", sql) and name not in PARTS:
                yield name, sql


def plan_of(connection: psycopg.Connection, sql: str) -> list[str]:
    """For whatever parameters may come, as the pool's connections have it."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", sql).replace("%%", "%")
    given = f"({', '.join(['NULL'] * len(names))})" if names else ""
    connection.execute(f"PREPARE asked AS {numbered}".encode())
    rows = connection.execute(f"EXPLAIN EXECUTE asked {given}".encode()).fetchall()
    connection.execute("DEALLOCATE asked")
    return [row[0] for row in rows]


def scans(plan: list[str]) -> Iterator[tuple[str, bool]]:
    """Each way of reading messages or attempts: by which index (else the table), and whether it looks something up."""
    for line, following in zip(plan, [*plan[1:], ""], strict=True):
        found = _SCAN.search(line)
        index = found and (found[1] or found[2] or found[3])
        if index and _INDEXES.fullmatch(index):
            yield index, "Index Cond:" in following


@pytest.mark.parametrize(
    ("moment", "counted"),
    [(moment, counted) for moment in MOMENTS for counted in (False, True) if MOMENTS[moment] or not counted],
)
def test_no_statement_reads_what_it_does_not_need(db: Database, moment: str, counted: bool) -> None:
    """Left out is a table that was counted while nothing at all was in it: of which PostgreSQL is so sure that no index
    helps, for the minute until autovacuum comes by again."""
    if values := MOMENTS[moment]:
        for table in ("messages", "attempts"):  # autovacuum would count them when it likes
            db.all(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        db.all(f"""
            INSERT INTO messages (id, account_id, priority, content, due_at, expires_at,
                                  state, recipient_id, sent_at, ended_at)
            SELECT 'msg_' || n, 'default', 5, '', now(), now() + interval '1 day', {values}
            FROM generate_series(1, {ROWS}) n""")
        db.all("""
            INSERT INTO attempts (message_id, account_id, number, token, worker, deadline_at, outcome, ended_at)
            SELECT id, account_id, 1, 'token', 1, now(), 'accepted', now() FROM messages""")
    if counted:
        for table in ("messages", "attempts", "accounts", "tallies"):
            db.all(f"ANALYZE {table}")
    wrong = []
    with psycopg.connect(db.url, options=session._OPTIONS, autocommit=True) as connection:
        for name, sql in statements():
            plan = plan_of(connection, sql)
            for index, looks_up in scans(plan):
                history = index in ("ix_messages_recipient", "ix_messages_account") and name not in READS_HISTORY
                if history or not (looks_up or (name, index) in READ_WHOLE):
                    wrong.append("\n".join([f"{name} goes by {index}", *plan]))
    assert not wrong, "\n\n".join(wrong)


def test_the_statements_are_found() -> None:
    assert {"_ACCEPT", "_CLAIM_NEXT", "_MARK_SENT", "_ELECT_HEADS", "_RETRY", "_GLANCE"} <= {n for n, _ in statements()}
