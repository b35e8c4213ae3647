"""The database itself holds the life cycle: what the code must not do, it cannot do."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from ulid import ULID

from tests.conftest import ALICE, origin
from workers.bootstrap import Adapters
from workers.domain.decisions import DeadLetterReason
from workers.domain.errors import StaleClaim
from workers.domain.filters import MessageFilter
from workers.domain.message import Claim, Line, NewMessage
from workers.domain.outcome import Outcome, OutcomeKind
from workers.services.submit import Receipt
from workers.store import accept, claims, endings, failures, lines, lookups, outcomes, queries, upkeep
from workers.store.claims import claim_next
from workers.store.schema import Base

Submit = Callable[..., Receipt]
FAILED = Outcome(OutcomeKind.FAILED, http_status=503)


def claim(adapters: Adapters, want: int = 1) -> list[Claim]:
    tokens = [f"t{n}" for n in range(want)]
    return claim_next(adapters.db, "default", tokens, worker=1, lease_s=10, origin=origin(adapters))


def states(adapters: Adapters) -> list[str]:
    return [row["state"] for row in adapters.db.all("SELECT state FROM messages ORDER BY seq")]


def test_the_migrations_make_what_the_models_say(adapters: Adapters) -> None:
    with adapters.db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE messages SET state = 'lost'",
        "UPDATE messages SET state = 'sent'",
        "UPDATE messages SET state = 'failed'",
        "UPDATE messages SET priority = 11",
        "UPDATE messages SET sent_at = now()",
        "UPDATE attempts SET ended_at = now()",
        "UPDATE attempts SET outcome = 'perhaps', ended_at = now()",
        "INSERT INTO dead_letters (message_id, account_id, reason) SELECT id, account_id, 'bored' FROM messages",
        "INSERT INTO attempts (message_id, account_id, number, token, worker, deadline_at) "
        "SELECT id, account_id, 2, 't', 1, now() FROM messages",
    ],
)
def test_the_database_refuses_what_makes_no_sense(adapters: Adapters, submit: Submit, statement: str) -> None:
    submit()
    claim(adapters)
    with pytest.raises(psycopg.IntegrityError):
        adapters.db.all(statement)


def test_a_line_has_one_head_whoever_writes(adapters: Adapters, submit: Submit) -> None:
    submit("fan-1")
    submit("fan-1")
    with pytest.raises(psycopg.errors.UniqueViolation):
        adapters.db.all("UPDATE messages SET state = 'queued' WHERE state = 'held'")


def test_many_at_once_to_one_recipient_leave_one_head(adapters: Adapters) -> None:
    def queue(n: int) -> None:
        new = NewMessage(id=f"msg_{n:026d}", account_id="default", recipient_id="fan-1", content=str(n))
        accept.accept(adapters.db, new, by=ALICE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(queue, range(40)))
    assert sorted(states(adapters)) == ["held"] * 39 + ["queued"]


def test_newcomers_and_leavers_of_one_line_never_leave_it_headless(adapters: Adapters) -> None:
    """Accept and finish the same line from two sides as fast as possible: the race that FOR SHARE closes."""
    done = threading.Event()

    def finish() -> None:
        while not done.is_set():
            for one in claim(adapters):
                accepted = [(one, Outcome(OutcomeKind.ACCEPTED, upstream_id="u"))]

                def settle(c, accepted=accepted, one=one):  # type: ignore[no-untyped-def]
                    outcomes.mark_sent(c, accepted)
                    lines.elect_heads(c, [one.line])

                adapters.db.transaction(settle)

    leavers = [threading.Thread(target=finish) for _ in range(2)]
    for leaver in leavers:
        leaver.start()
    try:
        for n in range(150):
            new = NewMessage(id=f"msg_{n:026d}", account_id="default", recipient_id="fan-1", content=str(n))
            accept.accept(adapters.db, new, by=ALICE)
        deadline = time.monotonic() + 20
        while set(states(adapters)) != {"sent"} and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        done.set()
        for leaver in leavers:
            leaver.join()
    assert set(states(adapters)) == {"sent"}
    order = adapters.db.all("SELECT content FROM messages ORDER BY sent_at")
    assert [row["content"] for row in order] == [str(n) for n in range(150)]


def test_two_claims_never_get_the_same_message(adapters: Adapters, submit: Submit) -> None:
    for n in range(60):
        submit(f"fan-{n}")
    with ThreadPoolExecutor(6) as pool:
        claims = [one for batch in pool.map(lambda _: claim(adapters, 10), range(8)) for one in batch]
    assert len({one.message_id for one in claims}) == len(claims) == 60


def test_a_claim_from_a_paused_account_finds_nothing(adapters: Adapters, submit: Submit) -> None:
    submit()
    adapters.db.all("UPDATE accounts SET paused_at = now()")
    assert claim(adapters) == []
    adapters.db.all("UPDATE accounts SET paused_until = now()")
    assert len(claim(adapters)) == 1


def test_every_record_of_a_stale_claim_is_an_error_with_a_name(adapters: Adapters, submit: Submit) -> None:
    submit()
    (stale,) = claim(adapters)
    adapters.db.transaction(lambda c: outcomes.schedule_retry(c, stale, FAILED, 0.0))
    for record in (
        lambda c: outcomes.schedule_retry(c, stale, FAILED, 0.0),
        lambda c: outcomes.bury(c, stale, FAILED, DeadLetterReason.REJECTED),
        lambda c: outcomes.await_verification(c, stale, FAILED, 0.0),
        lambda c: outcomes.accept_late_answer(c, stale, Outcome(OutcomeKind.ACCEPTED)),
        lambda c: lookups.confirm_sent(c, stale, "u"),
        lambda c: lookups.confirm_absent(c, stale),
    ):
        with pytest.raises(StaleClaim, match=f"Attempt 1 of {stale.message_id}"):
            adapters.db.transaction(record)  # type: ignore[arg-type]


def test_a_retried_dead_letter_keeps_its_history_and_gets_new_attempts(adapters: Adapters, submit: Submit) -> None:
    receipt = submit()
    (first,) = claim(adapters)
    adapters.db.transaction(lambda c: outcomes.bury(c, first, FAILED, DeadLetterReason.RETRIES_EXHAUSTED))
    assert len(failures.retry(adapters.db, [receipt.message_id], by=ALICE)) == 1
    assert failures.retry(adapters.db, [receipt.message_id], by=ALICE) == []
    (second,) = claim(adapters)
    assert (second.attempt, second.tries) == (2, 1)
    assert [a["number"] for a in queries.attempts(adapters.db, receipt.message_id)] == [1, 2]
    (closed,) = queries.dead_letters(adapters.db, receipt.message_id)
    assert (closed["closed_as"], closed["closed_by"]) == ("retried", "alice")


def test_the_tallies_agree_with_the_rows_whatever_happens(adapters: Adapters, submit: Submit) -> None:
    for n in range(12):
        submit(f"fan-{n % 5}", priority=1 + n % 3)
    taken = claim(adapters, 4)
    adapters.db.transaction(lambda c: outcomes.mark_sent(c, [(taken[0], Outcome(OutcomeKind.ACCEPTED))]))
    adapters.db.transaction(lambda c: outcomes.bury(c, taken[1], FAILED, DeadLetterReason.REJECTED))
    adapters.db.transaction(lambda c: outcomes.schedule_retry(c, taken[2], FAILED, 60.0))
    endings.cancel(adapters.db, queries.messages(adapters.db, MessageFilter(), None, 1)[0]["id"], ALICE)
    adapters.db.transaction(lambda c: outcomes.bury(c, taken[3], FAILED, DeadLetterReason.REJECTED))
    failures.retry(adapters.db, [taken[3].message_id], ALICE, redriven=True)
    rows = "SELECT state, CASE WHEN redriven THEN -priority ELSE priority END AS priority, count(*) AS n FROM messages"
    counted = {
        (row["state"], row["priority"]): row["n"]
        for row in adapters.db.all(f"{rows} GROUP BY 1, 2")
        if row["state"] not in ("sent", "cancelled", "expired")
    }
    tallied = "SELECT state, priority, sum(n)::int AS n FROM tallies GROUP BY 1, 2 HAVING sum(n) <> 0"
    for _ in range(2):
        assert {(row["state"], row["priority"]): row["n"] for row in adapters.db.all(tallied)} == counted
        upkeep.fold_tallies(adapters.db)
    assert adapters.db.all("SELECT DISTINCT slot FROM tallies") == [{"slot": 0}]


def test_a_headless_line_is_mended(adapters: Adapters, submit: Submit) -> None:
    submit("fan-1")
    submit("fan-1")
    adapters.db.all("DELETE FROM messages WHERE state = 'queued'")
    assert lines.mend_headless_lines(adapters.db) == 1
    assert states(adapters) == ["queued"]
    assert lines.mend_headless_lines(adapters.db) == 0


def test_the_claim_uses_its_index_and_a_generic_plan(adapters: Adapters, submit: Submit) -> None:
    for n in range(50):
        submit(f"fan-{n}")

    def plan(c) -> str:  # type: ignore[no-untyped-def]
        sql = claims._CLAIM_NEXT
        values = {
            "account_id": "'default'",
            "want": "1",
            "tokens": "'{t}'",
            "worker": "1",
            "lease_s": "10",
            "budget": "'default'",
            "probe": "false",
            "epoch": "1",
            "server": "'a server'",
            "given": "1",
        }
        explained = "EXPLAIN " + re.sub(r"%\((\w+)\)s", lambda found: values[found[1]], sql)
        return "\n".join(row["QUERY PLAN"] for row in c.all(explained))

    def look(c) -> tuple[str, str]:  # type: ignore[no-untyped-def]
        c.all("SET LOCAL enable_seqscan = off")
        return plan(c), c.one("SHOW plan_cache_mode")["plan_cache_mode"]

    found, mode = adapters.db.transaction(look)
    assert "ix_messages_claim" in found
    assert "Sort" not in found.split("Nested Loop", 1)[1]
    assert mode == "force_generic_plan"


def test_electing_in_a_line_that_has_a_head_changes_nothing(adapters: Adapters, submit: Submit) -> None:
    submit("fan-1")
    submit("fan-1")
    assert adapters.db.transaction(lambda c: lines.elect_heads(c, [Line("default", "fan-1", 5)])) == 0


def test_only_what_is_over_and_old_is_pruned(adapters: Adapters, submit: Submit) -> None:
    two_hours_ago = time.time() - 7200
    for n in range(4):
        old = f"msg_{ULID.from_timestamp(two_hours_ago)}"
        new = NewMessage(id=old, account_id="default", recipient_id=f"fan-{n}", content="old")
        accept.accept(adapters.db, new, by=ALICE)
    sent, dead, _ = claim(adapters, 3)
    adapters.db.transaction(lambda c: outcomes.mark_sent(c, [(sent, Outcome(OutcomeKind.ACCEPTED))]))
    adapters.db.transaction(lambda c: outcomes.bury(c, dead, FAILED, DeadLetterReason.REJECTED))
    assert upkeep.prune(adapters.db, older_than_s=3600, most=500) == 0  # it ended just now
    adapters.db.all("UPDATE messages SET ended_at = ended_at - interval '2 hours' WHERE ended_at IS NOT NULL")
    assert upkeep.prune(adapters.db, older_than_s=3600, most=500) == 1
    assert sorted(states(adapters)) == ["failed", "queued", "sending"]
    assert len(adapters.db.all("SELECT * FROM attempts")) == 2
