"""Which account draws on which budget, and which budgets were drawn on under a credential before."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from workers.domain.budgets import Change
from workers.store.session import Connection, Database, Row


def lock(c: Connection) -> None:
    """Until the end of the transaction nobody else changes budgets or credentials: two accounts that come under one
    credential at once must see each other."""
    c.all("SELECT pg_advisory_xact_lock(hashtextextended('paceline budgets', 0))")


_HOLDERS = """
SELECT id, channel, api_key, credential, coalesce(budget, id) AS budget, cooldown_until FROM accounts ORDER BY id
"""


def holders(c: Connection) -> list[Row]:
    """Every account, with what is known of its credential."""
    return c.all(_HOLDERS)


_PAST = """
SELECT credential, budget FROM credential_budgets
WHERE left_at > now() - %(within_s)s * interval '1 second'
"""


def past(c: Connection, within_s: float) -> dict[str, set[str]]:
    """Budgets that were drawn on under each credential, and left within the last `within_s` seconds."""
    found: dict[str, set[str]] = {}
    for row in c.all(_PAST, {"within_s": within_s}):
        found.setdefault(row["credential"], set()).add(row["budget"])
    return found


# NULL for an account that is alone on the budget of its own id, as it is for most.
_DRAW_ON = """
WITH chosen AS (
    SELECT a.id, n.credential, n.budget, n.cooldown_until
    FROM unnest(%(ids)s::text[], %(credentials)s::text[], %(budgets)s::text[], %(cooldowns)s::timestamptz[])
        AS n (id, credential, budget, cooldown_until)
    JOIN accounts a ON a.id = n.id
    ORDER BY a.id FOR UPDATE OF a  -- in one order by everyone
)
UPDATE accounts a SET credential = chosen.credential, budget = chosen.budget, cooldown_until = chosen.cooldown_until
FROM chosen WHERE a.id = chosen.id
"""

_NOTE_DRAWN = """
INSERT INTO credential_budgets AS b (credential, budget, left_at)
SELECT credential, budget, CASE WHEN is_left THEN now() END
FROM unnest(%(credentials)s::text[], %(budgets)s::text[], %(left)s::bool[]) AS n (credential, budget, is_left)
ON CONFLICT (credential, budget) DO UPDATE SET left_at = EXCLUDED.left_at
"""

_NOTE_LEFT = """
UPDATE credential_budgets b SET left_at = now()
WHERE left_at IS NULL
  AND NOT EXISTS (SELECT FROM accounts a WHERE a.credential = b.credential AND coalesce(a.budget, a.id) = b.budget)
"""

_FORGET = "DELETE FROM credential_budgets WHERE left_at < now() - %(after_s)s * interval '1 second'"


def draw_on(
    c: Connection, changes: Sequence[Change], cooldowns: Sequence[datetime | None], *, forget_after_s: float
) -> None:
    """Have the accounts of each change draw on its budget, closed until the time that stands beside the change. Budgets
    that were left longer than `forget_after_s` ago are forgotten."""
    drawing = [(holder.account_id, change, until) for change, until in zip(changes, cooldowns, strict=True)
               for holder in change.holders]  # fmt: skip
    alone = {change.budget for change in changes if [h.account_id for h in change.holders] == [change.budget]}
    c.all(
        _DRAW_ON,
        {
            "ids": [account_id for account_id, _, _ in drawing],
            "credentials": [change.credential for _, change, _ in drawing],
            "budgets": [None if change.budget in alone else change.budget for _, change, _ in drawing],
            "cooldowns": [until for _, _, until in drawing],
        },
    )
    noted = [(change.credential, change.budget, False) for change in changes]
    noted += [(change.credential, budget, True) for change in changes for budget in change.joined]
    credentials, budgets, left = zip(*noted, strict=True)
    c.all(_NOTE_DRAWN, {"credentials": list(credentials), "budgets": list(budgets), "left": list(left)})
    c.all(_NOTE_LEFT)
    c.all(_FORGET, {"after_s": forget_after_s})


_RENAME = """
WITH renamed AS (
    UPDATE accounts SET credential = %(new)s WHERE credential = %(old)s
), moved AS (
    DELETE FROM credential_budgets WHERE credential = %(old)s RETURNING budget, left_at
)
INSERT INTO credential_budgets AS b (credential, budget, left_at) SELECT %(new)s, budget, left_at FROM moved
ON CONFLICT (credential, budget) DO UPDATE SET left_at = EXCLUDED.left_at
"""


def rename_credential(c: Connection, old: str, new: str) -> None:
    """The same credential has another fingerprint now."""
    c.all(_RENAME, {"old": old, "new": new})


@dataclass(frozen=True, slots=True)
class Source:
    """A budget whose uses until `left_ago_s` seconds ago count in another, because both were drawn on under one
    credential."""

    budget: str
    counts_in: str
    left_ago_s: float


_SOURCES = """
SELECT DISTINCT past.budget, present.budget AS counts_in,
       extract(epoch FROM now() - past.left_at)::float8 AS left_ago_s
FROM credential_budgets present JOIN credential_budgets past USING (credential)
WHERE present.left_at IS NULL AND past.left_at IS NOT NULL AND past.budget <> present.budget
  AND present.budget = ANY(%(budgets)s::text[])
"""


def sources(db: Database, budgets: Collection[str]) -> list[Source]:
    """The budgets whose uses count in these too."""
    rows = db.all(_SOURCES, {"budgets": list(budgets)})
    return [Source(row["budget"], row["counts_in"], row["left_ago_s"]) for row in rows]


_USES = """
SELECT coalesce(budget, account_id) AS budget, token,
       extract(epoch FROM CASE WHEN outcome IS NULL OR outcome = 'unknown' THEN greatest(deadline_at, ended_at)
                               ELSE ended_at END - clock_timestamp())::float8 AS ended_s,
       extract(epoch FROM clock_timestamp() - started_at)::float8 AS started_ago_s
FROM attempts
WHERE spent AND started_at > now() - (%(longest_s)s + 3600) * interval '1 second'
"""


def token_uses(db: Database, longest_s: float) -> list[Row]:
    """Every use of a token in the last `longest_s` seconds, all budgets at once: what a lost Redis is rebuilt from.

    A use ended with its answer; where none came, with its deadline.
    """
    return [row for row in db.all(_USES, {"longest_s": longest_s}) if row["ended_s"] > -longest_s]
