"""What there may be to put right, in one question. The reconciler asks it every second; nearly always the answer is
that nothing is, and then it asks no more."""

from dataclasses import dataclass

from workers.store import epochs
from workers.store.epochs import Epoch
from workers.store.session import Database

LOCK_CLASS = 0x7061_6365
"""First half of the key of the advisory lock that each worker and pacer holds ("pace"); the second is its number."""

_LIVING = f"""
SELECT objid::int AS number FROM pg_locks
WHERE locktype = 'advisory' AND classid = {LOCK_CLASS} AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_GLANCE = f"""
SELECT ARRAY({_LIVING}) AS living,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS written,
       EXISTS (SELECT FROM attempts WHERE outcome IS NULL) AS under_way,
       EXISTS (SELECT FROM messages WHERE expires_at IS NOT NULL AND state IN ('scheduled', 'held', 'queued')
               AND expires_at <= now()) AS past_expiry,
       EXISTS (SELECT FROM messages WHERE state = 'verifying' AND due_at <= now()) AS lookups_due,
       {epochs.COLUMNS}
FROM token_epoch
"""


@dataclass(frozen=True, slots=True)
class Glance:
    """living: the workers and pacers that hold their locks. written: another number as soon as anybody has written
    anything. under_way: an attempt has no outcome yet. past_expiry: a message waits beyond its expiresAt.
    lookups_due: an unknown outcome is to be looked up. epoch: which server gives out the tokens."""

    living: frozenset[int]
    written: int
    under_way: bool
    past_expiry: bool
    lookups_due: bool
    epoch: Epoch


def living(db: Database) -> frozenset[int]:
    """The numbers of the workers and pacers that hold their locks."""
    return frozenset(row["number"] for row in db.all(_LIVING))


def glance(db: Database) -> Glance:
    """What there is to put right, asked with one query."""
    row = db.one(_GLANCE)
    assert row is not None
    epoch = epochs.epoch({name: row.pop(name) for name in epochs.COLUMNS.split(", ")})
    return Glance(**row | {"living": frozenset(row["living"]), "epoch": epoch})
