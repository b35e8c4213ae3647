"""A running Paceline, filled and watched."""

import time
from collections.abc import Iterable
from typing import Any

import psycopg
from sqlalchemy import make_url
from ulid import ULID

from deploy.stack import Stack
from tests.bench.processes import cpu_s
from workers.bootstrap import build
from workers.store.upkeep import fold_tallies

# Each with a key of its own, and so with a budget of its own; unencrypted, because a key's encryption is not measured.
_ACCOUNTS = """
INSERT INTO accounts (id, limits, api_key) SELECT 'account-' || n, %(limits)s, 'account-' || n
FROM generate_series(0, %(accounts)s - 1) AS n
ON CONFLICT (id) DO UPDATE SET limits = EXCLUDED.limits
"""

_FILL = """
INSERT INTO messages (id, account_id, recipient_id, priority, content, due_at, state)
SELECT %(run)s || '-' || n, 'account-' || n %% %(accounts)s, 'fan-' || %(run)s || '-' || n, 5, 'Hello', now(), 'queued'
FROM generate_series(0, %(messages)s - 1) AS n
"""

_LEFT = "SELECT coalesce(sum(n), 0)::int AS n FROM tallies WHERE state IN ('queued', 'held', 'sending', 'verifying')"


class Ours:
    """Filled past the API, in one statement: how messages come in is not what is measured here."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._accounts: list[str] = []

    def __enter__(self) -> "Ours":
        self._adapters = build(self.stack.settings, pool_size=2, name="paceline bench")
        return self

    def __exit__(self, *_: object) -> None:
        self._adapters.close()

    @property
    def adapters(self) -> Any:
        return self._adapters

    def open_accounts(self, accounts: int, limits: str | None = None) -> None:
        """account-0, account-1, …, all of their tokens free."""
        self._adapters.db.all(_ACCOUNTS, {"accounts": accounts, "limits": limits})
        self._adapters.db.transaction(lambda c: self._adapters.budgets().settle(c, "account-0"))
        self._accounts = [f"account-{n}" for n in range(accounts)]
        for account in self._accounts:
            self._adapters.tokens.open_new(account)

    def free_tokens(self) -> None:
        """As if all uses were long past; nothing may be under way."""
        self._adapters.redis.delete(*(f"paceline:{{{account}}}:uses" for account in self._accounts))

    def fill(self, messages: int) -> str:
        """The nth message goes out from the nth account, round and round. Returns what their ids begin with: the time,
        as of those that the API takes in, which is how the reconciler finds old ones."""
        run = f"msg_{ULID()}"
        self._adapters.db.all(_FILL, {"run": run, "messages": messages, "accounts": len(self._accounts)})
        return run

    def tidy(self) -> None:
        """Do now what autovacuum and the reconciler's chores would do in the middle of a measurement, in all databases
        of its server: those that come with a new one have never been analyzed either."""
        fold_tallies(self._adapters.db)
        for row in self._adapters.db.all("SELECT datname FROM pg_database WHERE datallowconn"):
            url = make_url(self.stack.settings.database_url).set(database=row["datname"])
            with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as database:
                database.execute("VACUUM ANALYZE")

    def await_ready(self, within_s: float = 30) -> None:
        """Until its processes have found their servers again."""
        deadline = time.monotonic() + within_s
        while missing := self._adapters.reader().ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready: {', '.join(missing)}")
            time.sleep(0.05)

    def release(self) -> None:
        """Wake all accounts."""
        self._adapters.wakeups.wake_all(self._accounts)

    def left(self) -> int:
        """Messages whose outcome is not recorded yet."""
        return int(self._adapters.db.all(_LEFT)[0]["n"])

    def await_left(self, at_most: int, within_s: float) -> int:
        """Wait until no more than so many are left."""
        deadline = time.monotonic() + within_s
        while (left := self.left()) > at_most and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def pids(self) -> list[int]:
        """Of all its processes, and of the servers if they are its own."""
        services: Iterable[Any] = self.stack.services.values()
        pids = [service.process.pid for service in services if service.process is not None]
        if self.stack.servers is not None:
            pids += [self.stack.servers.postgres.pid, self.stack.servers.valkey.pid]
        return pids

    def cpu_s(self) -> float:
        return cpu_s(self.pids())
