"""The epoch of the tokens: which Redis server gives them out. One row, for one server at a time.

A claim names the origin of its tokens and is void under another epoch (`claims.claim_next`). So if two servers give
out tokens, the messages of only one are sent. A claim reads the row without a lock: a token that was borrowed before a
new epoch was opened, and claimed after its books were read, is too old to be sent (`START_WITHIN_S`).
"""

from dataclasses import dataclass
from datetime import datetime

from workers.store.session import Database, Row


@dataclass(frozen=True, slots=True)
class Epoch:
    """number: counts the epochs. server: the one that gives out tokens; empty if none ever did. given: it had given out
    this many grants START_WITHIN_S ago or earlier. rival: another server that asks to take over, None if none does."""

    number: int
    server: str
    since: datetime
    given: int
    rival: str | None

    @property
    def name(self) -> str:
        """As Redis and the grants have it."""
        return str(self.number)


COLUMNS = "number, server, since, given, rival"

_CURRENT = f"SELECT {COLUMNS} FROM token_epoch"
_OPEN_NEXT = f"""
UPDATE token_epoch SET number = number + 1, server = %(server)s, since = clock_timestamp(), rival = NULL
WHERE number = %(number)s AND rival IS NOT DISTINCT FROM %(rival)s
RETURNING {COLUMNS}
"""
_CONTEST = f"""
UPDATE token_epoch SET rival = %(server)s WHERE number = %(number)s RETURNING {COLUMNS}
"""
_DEFEND = "UPDATE token_epoch SET rival = NULL WHERE number = %(number)s AND rival IS NOT NULL"
_NOTE_GIVEN = "UPDATE token_epoch SET given = %(given)s WHERE number = %(number)s AND given < %(given)s"


def current(db: Database) -> Epoch:
    row = db.one(_CURRENT)
    assert row is not None, "the migration put it there"
    return epoch(row)


def open_next(db: Database, after: Epoch, server: str) -> Epoch | None:
    """Have `server` give out the tokens from now on. None if somebody else has opened an epoch, or defended this one,
    since `after` was read."""
    row = db.one(_OPEN_NEXT, {"server": server, "number": after.number, "rival": after.rival})
    return epoch(row) if row else None


def contest(db: Database, present: Epoch, server: str) -> Epoch | None:
    """Ask to take over. None if another epoch has been opened since."""
    row = db.one(_CONTEST, {"server": server, "number": present.number})
    return epoch(row) if row else None


def defend(db: Database, present: Epoch) -> None:
    """Somebody talks to the epoch's server: whoever asked to take over may not."""
    db.all(_DEFEND, {"number": present.number})


def note_given(db: Database, present: Epoch, given: int) -> None:
    """The epoch's server has given out so many grants, all of them at least START_WITHIN_S ago."""
    db.all(_NOTE_GIVEN, {"number": present.number, "given": given})


def epoch(row: Row) -> Epoch:
    return Epoch(**row)
