"""Checks that PostgreSQL, the source of truth, keeps confirmed commits and behaves as the SQL statements expect.

Everything is asked over a connection like the pool's own, so settings of the role, of the database and of a pooler in
between are seen as the processes will see them.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg

from deploy.check import clock
from deploy.check.rules import Finding, Rules
from deploy.check.settings import DAY_S
from workers.bootstrap import build
from workers.channels.registry import kinds
from workers.credentials import Vault, is_sealed
from workers.domain.errors import StoreUnavailable, Unreadable
from workers.domain.remarks import Level, Remark, fail, note, warn
from workers.engine.presence import BEAT_S
from workers.engine.processes import PACERS_POOL_SIZE, POOL_SIZE
from workers.settings import Settings
from workers.store import accounts, migrations
from workers.store.accounts import Account
from workers.store.schema import Base
from workers.store.session import ASKED_FOR, SERVER_TCP, Database

OLDEST = 150000
CONNECTIONS = {"api": 16, "worker": POOL_SIZE + 1, "pacer": PACERS_POOL_SIZE + 1}
"""Of one process each: its pool, and a worker's or pacer's connection that says that it lives."""
SMALLEST = {"api": 1, "worker": 1, "pacer": 2}
NAMED = 5
"""Accounts that a remark names, of many."""
PATIENT_MS = 5000
"""A statement may have to wait for a lock that long under load."""
rules: Rules["Server"] = Rules(away=(StoreUnavailable,))


@dataclass(frozen=True)
class Server:
    """A server under inspection."""

    settings: Settings
    db: Database

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """As they are in force in a session of the pool; times in ms."""
        return {row["name"]: row["setting"] for row in self.db.all("SELECT name, setting FROM pg_settings")}

    @cached_property
    def tables(self) -> Sequence[Mapping[str, Any]]:
        """Those of ours that exist, whether they are logged, and what this role may not do with them."""
        return self.db.all(
            """
            SELECT c.relname AS name, c.relpersistence = 'p' AS logged, ARRAY(
                SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
                WHERE NOT has_table_privilege(c.oid, p)) AS forbidden
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relname = ANY(%(names)s) AND c.relkind = 'r' AND n.nspname = ANY(current_schemas(false))
            """,
            {"names": list(Base.metadata.tables)},
        )

    @cached_property
    def is_migrated(self) -> bool:
        """Whether our statements find the tables and columns that they name."""
        return migrations.reached(migrations.current(self.settings.database_url))

    def credential(self, account: Account) -> str | None:
        """A name for the key that an account sends with; None if it can't be read."""
        try:
            own = self.settings.vault.credentials(account.sealed_key)
        except Unreadable:
            return None
        kind = kinds().get(account.channel)
        config = self.settings.channels.get(account.channel)
        identity = kind.identity(config, own) if kind else None
        return f"{account.channel}\0{identity or ''}"

    def off(self, *names: str) -> list[str]:
        return [name for name in names if self.parameters[name] == "off"]


def findings(settings: Settings) -> Iterator[Finding]:
    adapters = build(settings, pool_size=1, name="paceline check")
    try:
        yield from rules.judge(Server(settings, adapters.db))
    except StoreUnavailable as error:
        yield Finding(Level.FAIL, "PostgreSQL", _cannot_connect(str(error.__cause__ or error)))
    finally:
        adapters.close()


def _cannot_connect(words: str) -> str:
    if "unsupported startup parameter" in words:
        return (
            "PgBouncer refuses startup parameters of connections; allow them "
            "(ignore_startup_parameters = extra_float_digits,options) and see docs/operations.md for what else to set"
        )
    return f"cannot connect ({' '.join(words.split())}); fix DATABASE_URL or start the server"


@rules.rule("PostgreSQL")
def _version(s: Server) -> Iterator[Remark]:
    version = int(s.parameters["server_version_num"])
    words = f"version {version // 10000}"
    yield note(words) if version >= OLDEST else fail(f"{words} is too old; needs PostgreSQL 15 or newer")


@rules.rule("schema")
def _schema(s: Server) -> Iterator[Remark]:
    at, head = migrations.current(s.settings.database_url), migrations.head()
    if at == head:
        yield note(head)
    elif migrations.reached(at):
        yield warn(f"{at} is newer than this version ({head}): correct only for a rollback by one release")
    else:
        yield fail(f"{at or 'missing'}, and not at {head}; run `paceline migrate`")


@rules.rule("what is written")
def _writable(s: Server) -> Iterator[Remark]:
    if s.parameters.get("in_hot_standby") == "on":
        yield fail("this server is a hot standby and takes no writes; set DATABASE_URL to the primary")
    elif s.parameters["transaction_read_only"] == "on":
        yield fail("transactions are read-only; set default_transaction_read_only = off for the role and the database")
    for table in s.tables:
        if table["forbidden"]:
            yield fail(f"this role may not {', '.join(table['forbidden'])} on {table['name']}; GRANT it")


@rules.rule("what is confirmed, is kept")
def _durable(s: Server) -> Iterator[Remark]:
    for name in s.off("fsync", "full_page_writes", "synchronous_commit"):
        yield fail(f"{name} = off loses messages after their 202, or the whole database, in a crash; set it to on")
    for table in s.tables:
        if not table["logged"]:
            yield fail(f"a crash empties {table['name']}: ALTER TABLE {table['name']} SET LOGGED")


@rules.rule("transactions")
def _isolation(s: Server) -> Iterator[Remark]:
    if (level := s.parameters["default_transaction_isolation"]) != "read committed":
        yield fail(
            f"default_transaction_isolation = {level!r}: concurrent claims fail instead of skipping each other's rows; "
            "set it to 'read committed' for the role"
        )


@rules.rule("text")
def _encoding(s: Server) -> Iterator[Remark]:
    if (encoding := s.parameters["server_encoding"]) != "UTF8":
        yield fail(
            f"the database has encoding {encoding} and cannot store every message; create it with ENCODING 'UTF8'"
        )


@rules.rule("sessions")
def _sessions(s: Server) -> Iterator[Remark]:
    with _like_presence(s.settings) as one, _like_presence(s.settings) as other:
        if shared([_backend(connection) for connection in (one, other, one, other)]):
            yield fail(
                "a pooler shares sessions between clients, so the advisory lock of a live worker is meaningless "
                "and other workers take its messages over; use pool_mode = session"
            )


@rules.rule("what the pool asks for")
def _asked_for(s: Server) -> Iterator[Remark]:
    for name, asked in ASKED_FOR.items():  # a pooler may swallow it
        if s.parameters[name] != asked:
            yield warn(
                f"{name} is {s.parameters[name]!r}, so a pooler may have dropped Paceline's {asked!r}; "
                f"ALTER ROLE {s.db.all('SELECT quote_ident(current_user) AS role')[0]['role']} SET {name} = '{asked}'"
            )


@rules.rule("timeouts")
def _timeouts(s: Server) -> Iterator[Remark]:
    idle_ms = int(s.parameters.get("idle_session_timeout", 0))
    if 0 < idle_ms <= 2 * BEAT_S * 1000:
        yield fail(
            f"idle_session_timeout = {idle_ms} ms closes the connection of a worker's advisory lock; set it to 0"
        )
    for name in ("lock_timeout", "transaction_timeout"):  # the latter since PostgreSQL 17
        if 0 < int(s.parameters.get(name, 0)) < PATIENT_MS:
            yield warn(f"{name} = {s.parameters[name]} ms makes waiting statements fail; set it to 0 for the role")


@rules.rule("connections")
def _connections(s: Server) -> Iterator[Remark]:
    room, least, needed = room_for(s), connections_of(SMALLEST), connections_of(_living(s))
    if room < least:
        yield fail(f"{room} are allowed, and an API, a worker and two pacers need {least}; raise the limit")
    elif room < needed:
        yield warn(
            f"{room} are allowed, and the running processes may need {needed}; raise max_connections, or use PgBouncer"
        )


@rules.rule("vacuum")
def _vacuum(s: Server) -> Iterator[Remark]:
    for name in s.off("autovacuum", "track_counts"):
        yield warn(f"{name} = off: queue tables grow, and claims become slow, within hours; set it to on")


@rules.rule("PostgreSQL's clock")
def _clock(s: Server) -> Iterator[Remark]:
    yield from clock.compare(lambda: float(s.db.all("SELECT extract(epoch FROM clock_timestamp()) AS now")[0]["now"]))


@rules.rule("limits of accounts")
def _limits(s: Server) -> Iterator[Remark]:
    if not s.is_migrated:
        return
    keep_s = s.settings.retention_days * DAY_S
    long = [a.id for a in accounts.all_of(s.db) if a.limits and a.limits.longest_period_s + DAY_S > keep_s]
    if long:
        yield warn(
            f"RETENTION_DAYS={s.settings.retention_days} will be exceeded: {len(long)} accounts "
            f"(first: {long[0]}) have a limit with a longer period, for which attempts must be kept"
        )


@rules.rule("credentials of accounts")
def _credentials(s: Server) -> Iterator[Remark]:
    if not s.is_migrated:
        return
    stored = accounts.sealed_keys(s.db)
    unreadable = [account_id for account_id, sealed in stored if not _opens(s.settings.vault, sealed)]
    if unreadable:
        yield fail(
            f"{len(unreadable)} accounts' keys (first: {unreadable[0]}) cannot be decrypted; add the key that "
            "encrypted them to CREDENTIALS_KEY, or set the accounts' keys again (PATCH /accounts/<id>)"
        )
    clear = [account_id for account_id, sealed in stored if not is_sealed(sealed)]
    if clear:
        yield warn(f"{len(clear)} accounts' keys (first: {clear[0]}) are unencrypted; run `paceline rekey`")
    if stored and not s.settings.credentials_key:
        yield note(
            "encrypted under a key derived from JWT_SECRET_KEY; set CREDENTIALS_KEY before you change JWT_SECRET_KEY"
        )


@rules.rule("budgets of accounts")
def _budgets(s: Server) -> Iterator[Remark]:
    """By the keys themselves: what is stored beside them may be out of date."""
    if not s.is_migrated:
        return
    by_credential: defaultdict[str, list[Account]] = defaultdict(list)
    for account in accounts.all_of(s.db):
        if name := s.credential(account):
            by_credential[name].append(account)
    for together in by_credential.values():
        named = ", ".join(account.id for account in together[:NAMED]) + (" and others" if together[NAMED:] else "")
        limits = sorted({str(account.limits or s.settings.rate_limit) for account in together})
        if len(limits) > 1:
            yield warn(
                f"{named} send with one key and have different limits ({'; '.join(limits)}): all of them apply; give "
                "them the same limits, or keys of their own (PATCH /accounts/<id>)"
            )
        if len({account.budget for account in together}) > 1:
            yield warn(
                f"{named} send with one key but have separate budgets, so they may send more than the upstream "
                "allows; start a worker of this version, which merges the budgets at its next send for one of them, "
                "and stop workers of older versions"
            )


def _opens(vault: Vault, sealed: str) -> bool:
    try:
        vault.open(sealed)
    except Unreadable:
        return False
    return True


def connections_of(processes: Mapping[str, int]) -> int:
    return sum(CONNECTIONS[kind] * n for kind, n in processes.items())


def room_for(s: Server) -> int:
    """How many connections this role may have on this database."""
    reserved = ("superuser_reserved_connections", "reserved_connections")  # the latter since PostgreSQL 16
    room = int(s.parameters["max_connections"]) - sum(int(s.parameters.get(name, 0)) for name in reserved)
    limits = s.db.all(
        "SELECT rolconnlimit AS most FROM pg_roles WHERE rolname = current_user"
        " UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database()"
    )
    return min([room, *(row["most"] for row in limits if row["most"] >= 0)])


def shared(backends: Sequence[int]) -> bool:
    """Whether two clients, asked in turn, were answered by other than one session each."""
    ones, others = set(backends[::2]), set(backends[1::2])
    return len(ones) > 1 or len(others) > 1 or ones == others


def _living(s: Server) -> dict[str, int]:
    """Processes that are connected now, and no fewer than there should be."""
    rows = s.db.all(
        "SELECT split_part(application_name, ' ', 2) AS kind, count(*) AS pool,"
        "       count(*) FILTER (WHERE application_name LIKE '%% presence') AS alive"
        " FROM pg_stat_activity WHERE application_name LIKE 'paceline %%' GROUP BY 1"
    )
    found = {row["kind"]: row["alive"] or math.ceil(row["pool"] / CONNECTIONS["api"]) for row in rows}
    return {kind: max(least, found.get(kind, 0)) for kind, least in SMALLEST.items()}


def _like_presence(settings: Settings) -> psycopg.Connection[Any]:
    name = "paceline check"
    return psycopg.connect(
        settings.database_url, autocommit=True, connect_timeout=5, options=SERVER_TCP, application_name=name
    )


def _backend(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
