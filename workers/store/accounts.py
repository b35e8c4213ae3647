"""Accounts: what they are, with their limits and keys, and everything that may close them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from ratelimit import Limits
from workers.domain.health import Closed, Rest, closed
from workers.store.session import Connection, Database, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """As the database has it. budget: the key of the tokens that it draws on; accounts under one credential have the
    same. limits: None for the default. sealed_key: its key upstream, encrypted (`workers.credentials`); None for the
    channel's. paused_s, cooldown_s: what is left of it, in seconds; paused_s is infinite for a pause without an end;
    0 for neither."""

    id: str
    channel: str
    budget: str
    limits: Limits | None
    sealed_key: str | None
    display_name: str | None = None
    paused_s: float = 0.0
    paused_until: datetime | None = None
    pause_reason: str | None = None
    paused_by: str | None = None
    paused_since: datetime | None = None
    cooldown_s: float = 0.0
    rest: Rest | None = None
    other_limits: tuple[Limits | None, ...] = ()
    """Limits of accounts that draw on the same budget, where they differ from its own."""
    credential: str | None = None
    """Fingerprint of the key that it sends with; None until one was taken."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def limits_in_force(self, default: Limits) -> Limits:
        """Its limits, `default` where it has none of its own. Where accounts that draw on the same budget have other
        limits, all of them hold."""
        own = self.limits or default
        return own.strictest(*(limits or default for limits in self.other_limits)) if self.other_limits else own

    def closed(self, cooldown_s: float = 0.0) -> Closed | None:
        """Why it sends nothing; None if it may. cooldown_s: of its tokens, which know of one sooner."""
        return closed(
            paused_s=self.paused_s,
            paused_by=self.paused_by,
            pause_reason=self.pause_reason,
            rest=self.rest,
            cooldown_s=max(self.cooldown_s, cooldown_s),
        )

    def __repr__(self) -> str:
        return f"Account({self.id})"


COLUMNS = """
    a.id, a.channel, a.display_name, a.limits, a.api_key, a.pause_reason, a.paused_by, a.paused_until, a.paused_at,
    coalesce(a.budget, a.id) AS budget, a.credential, a.settings,
    ARRAY(SELECT DISTINCT b.limits FROM accounts b
          WHERE b.budget = a.budget AND b.limits IS DISTINCT FROM a.limits) AS other_limits,
    CASE WHEN a.paused_at IS NULL THEN 0
         WHEN a.paused_until IS NULL THEN 'infinity'::float8
         ELSE greatest(0, extract(epoch FROM a.paused_until - now())::float8) END AS paused_s,
    greatest(0, coalesce(extract(epoch FROM a.cooldown_until - now())::float8, 0)) AS cooldown_s,
    a.rest_kind, a.rest_since, a.rests, a.rest_error,
    greatest(0, extract(epoch FROM a.rest_until - now())::float8) AS rest_s
"""


_GET = f"SELECT {COLUMNS} FROM accounts a WHERE a.id = %(account_id)s"


_LIST = f"SELECT {COLUMNS} FROM accounts a WHERE %(ids)s::text[] IS NULL OR a.id = ANY(%(ids)s::text[]) ORDER BY a.id"


def get(db: Connection | Database, account_id: str) -> Account | None:
    row = db.one(_GET, {"account_id": account_id})
    return account_of(row) if row else None


_BESIDE = f"""
SELECT {COLUMNS} FROM accounts of_it JOIN accounts a ON a.budget = of_it.budget AND a.id <> of_it.id
WHERE of_it.id = %(account_id)s ORDER BY a.id
"""


def beside(c: Connection | Database, account_id: str) -> list[Account]:
    """The other accounts that draw on the account's budget."""
    return [account_of(row) for row in c.all(_BESIDE, {"account_id": account_id})]


def all_of(db: Database, ids: list[str] | None = None) -> list[Account]:
    """The accounts of these ids, or all there are."""
    return [account_of(row) for row in db.all(_LIST, {"ids": ids})]


_IN_LINE = f"""
SELECT {COLUMNS} FROM tallies t JOIN accounts a ON a.id = t.account_id
WHERE t.state = 'queued' AND (a.paused_at IS NULL OR a.paused_until <= now())
  AND (a.cooldown_until IS NULL OR a.cooldown_until <= now())
  AND (a.rest_until IS NULL OR a.rest_until <= now())
GROUP BY a.id HAVING sum(t.n) > 0
"""


def in_line(db: Database) -> list[Account]:
    """Accounts that have messages in line, and no pause, cooldown or rest."""
    return [account_of(row) for row in db.all(_IN_LINE)]


def limits_in_use(db: Database) -> set[Limits]:
    """The limits that accounts have of their own."""
    rows = db.all("SELECT DISTINCT limits FROM accounts WHERE limits IS NOT NULL")
    return {Limits.parse(row["limits"]) for row in rows}


_PUT = """
INSERT INTO accounts AS a (id, channel, limits, display_name, api_key, settings)
VALUES (%(id)s, %(channel)s, %(limits)s, %(display_name)s, %(sealed_key)s, %(settings)s)
ON CONFLICT (id) DO UPDATE SET channel = EXCLUDED.channel, limits = EXCLUDED.limits,
    display_name = EXCLUDED.display_name, settings = EXCLUDED.settings,
    api_key = CASE WHEN %(clear_key)s THEN NULL ELSE coalesce(EXCLUDED.api_key, a.api_key) END,
    key_since = CASE WHEN %(clear_key)s OR EXCLUDED.api_key IS NOT NULL THEN clock_timestamp() ELSE a.key_since END
RETURNING (xmax = 0) AS created
"""


def put(
    c: Connection | Database,
    account_id: str,
    *,
    channel: str = "onlyfans",
    limits: Limits | None = None,
    display_name: str | None = None,
    sealed_key: str | None = None,
    clear_key: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> bool:
    """Create an account, or give it these properties; a key of None leaves the one it has, unless it is to be cleared.
    True if it was created."""
    row = c.one(
        _PUT,
        {
            "id": account_id,
            "channel": channel,
            "limits": None if limits is None else str(limits),
            "display_name": display_name,
            "sealed_key": sealed_key,
            "clear_key": clear_key,
            "settings": Jsonb(dict(settings or {})),
        },
    )
    return bool(row and row["created"])


def sealed_keys(db: Database) -> list[tuple[str, str]]:
    """(account id, its key as it is stored) of every account that has a key of its own."""
    rows = db.all("SELECT id, api_key FROM accounts WHERE api_key IS NOT NULL ORDER BY id")
    return [(row["id"], row["api_key"]) for row in rows]


_RESEAL = "UPDATE accounts SET api_key = %(new)s WHERE id = %(account_id)s AND api_key = %(old)s RETURNING id"


def reseal(db: Connection | Database, account_id: str, old: str, new: str) -> bool:
    """Store the same key under another encryption. False if somebody gave the account another key meanwhile."""
    return bool(db.all(_RESEAL, {"account_id": account_id, "old": old, "new": new}))


def _limits(written: str | None) -> Limits | None:
    return Limits.parse(written) if written else None


def account_of(row: Row) -> Account:
    return Account(
        id=row["id"],
        channel=row["channel"],
        limits=_limits(row["limits"]),
        sealed_key=row["api_key"],
        display_name=row["display_name"],
        paused_s=row["paused_s"],
        paused_until=row["paused_until"] if row["paused_s"] else None,
        pause_reason=row["pause_reason"] if row["paused_s"] else None,
        paused_by=row["paused_by"] if row["paused_s"] else None,
        paused_since=row["paused_at"] if row["paused_s"] else None,
        cooldown_s=row["cooldown_s"],
        budget=row["budget"],
        other_limits=tuple(map(_limits, row["other_limits"])),
        credential=row["credential"],
        settings=row["settings"],
        rest=_rest(row),
    )


def _rest(row: Row) -> Rest | None:
    if row["rest_kind"] is None:
        return None
    return Rest(
        kind=row["rest_kind"],
        since=row["rest_since"],
        times=row["rests"],
        left_s=row["rest_s"],
        error=row["rest_error"],
    )
