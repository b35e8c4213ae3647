"""What the reconciler does for all messages: find dead drains' claims, prune what is old, fold the tallies."""

import math
from dataclasses import dataclass

from ulid import ULID

from workers.domain.message import Claim
from workers.store.claims import claim_of
from workers.store.plans import unindexed
from workers.store.session import Database


@dataclass(frozen=True, slots=True)
class Orphan:
    """A claim whose drain is gone, or should be: `time_left_s` until its loan ends (negative: it has). server_up_s: how
    long PostgreSQL has been running."""

    claim: Claim
    worker: int
    time_left_s: float
    server_up_s: float = math.inf


_ORPHANS = f"""
SELECT m.id, m.account_id, m.recipient_id, m.priority, m.content, m.media_ids, m.attempts, m.tries, a.token, a.worker,
       m.request_id, m.traceparent, m.refusals, m.throttles,
       (SELECT extract(epoch FROM clock_timestamp() - min(u.started_at))::float8 FROM attempts u
        WHERE u.message_id = m.id AND u.counted AND u.outcome = 'unknown' AND u.number > m.attempts - m.tries
       ) AS doubt_s,
       extract(epoch FROM a.deadline_at - clock_timestamp())::float8 AS time_left_s,
       extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8 AS server_up_s
FROM attempts a JOIN messages m ON m.id = a.message_id AND {unindexed("m.state")} = 'sending' AND m.attempts = a.number
WHERE a.outcome IS NULL
  AND (a.deadline_at < now() - %(grace_s)s * interval '1 second'
       OR NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s
                      AND l.objid = a.worker::oid AND l.objsubid = 2 AND l.granted
                      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())))
ORDER BY a.deadline_at LIMIT %(want)s
"""


def find_orphans(db: Database, *, grace_s: float, lock_class: int, want: int = 1000) -> list[Orphan]:
    """Claims past their deadline, or whose worker holds its advisory lock no more, which means that it is dead."""
    rows = db.all(_ORPHANS, {"grace_s": grace_s, "lock_class": lock_class, "want": want})
    return [Orphan(claim_of(row), row["worker"], row["time_left_s"], row["server_up_s"]) for row in rows]


_PRUNE = """
WITH old AS (SELECT * FROM (
    SELECT id FROM messages
    WHERE id < %(before_id)s AND state IN ('sent', 'cancelled', 'expired')
      AND ended_at < now() - %(older_than_s)s * interval '1 second'
    ORDER BY id LIMIT %(most)s FOR UPDATE SKIP LOCKED
) wanted LIMIT 1000)
DELETE FROM messages m USING old WHERE m.id = old.id RETURNING m.id
"""


_CLOCK = "SELECT extract(epoch FROM now())::float8 AS now_s"


def prune(db: Database, older_than_s: float, most: int) -> int:
    """Forget finished messages, with their attempts, that ended longer ago than this. Never one that waits or is dead.

    Ids begin with the time of acceptance, so the primary key leads to the oldest. Returns how many it were, at most
    `most`: a small batch at a time keeps the tables healthy.
    """
    [clock] = db.all(_CLOCK)
    oldest_kept = ULID.from_timestamp(clock["now_s"] - older_than_s)
    params = {"before_id": f"msg_{oldest_kept}", "older_than_s": older_than_s, "most": most}
    return len(db.all(_PRUNE, params))


FOLDED_AT_ONCE = 1000


_FOLD_TALLIES = f"""
WITH apart AS (
    SELECT account_id, state, priority, slot FROM tallies WHERE slot <> 0 LIMIT {FOLDED_AT_ONCE} FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tallies t USING apart
    WHERE (t.account_id, t.state, t.priority, t.slot) = (apart.account_id, apart.state, apart.priority, apart.slot)
    RETURNING t.*
), together AS (
    INSERT INTO tallies AS t (account_id, state, priority, slot, n)
    SELECT account_id, state, priority, 0, sum(n) FROM gone GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (account_id, state, priority, slot) DO UPDATE SET n = t.n + EXCLUDED.n
)
SELECT count(*)::int AS n FROM gone
"""


def fold_tallies(db: Database) -> int:
    """Fold the backends' slots together, so that counts stay quick to read. Returns how many slots it folded."""
    folded = 0
    while n := db.transaction(lambda c: c.all(_FOLD_TALLIES))[0]["n"]:
        folded += n
        if n < FOLDED_AT_ONCE:
            break
    return folded
