"""`paceline check`: is everything in place? One line each, with its fix where something is not."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import redis

from api.app import create_app
from workers.bootstrap import build
from workers.settings import BadSetting, Settings, problems
from workers.store import migrations


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    fix: str | None
    """What to do; None if it is in order."""


def run(say: Callable[[str], None]) -> bool:
    """Check, and say what was found. Returns whether all is well."""
    if wrong := problems():
        for error in wrong:
            say(f"FAIL  settings: {error}")
        return False
    settings = Settings.from_env()
    findings = [
        Finding("settings", None),
        *_auth(settings),
        *_database(settings),
        *_redis(settings),
        *_broker(settings),
    ]
    for finding in findings:
        say(f"{'FAIL' if finding.fix else 'ok  '}  {finding.what}{': ' + finding.fix if finding.fix else ''}")
    return not any(finding.fix for finding in findings)


def _auth(settings: Settings) -> Iterator[Finding]:
    try:
        create_app(build(settings))
        yield Finding("token keys", None)
    except BadSetting as error:
        yield Finding("token keys", str(error))


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        with psycopg.connect(settings.database_url, connect_timeout=5) as connection:
            version = connection.info.server_version
            old = version < 150000
            yield Finding(f"PostgreSQL {version // 10000}", "needs PostgreSQL 15 or newer" if old else None)
    except psycopg.Error as error:
        yield Finding("PostgreSQL", f"cannot connect ({str(error).strip()}); mend DATABASE_URL or start the server")
        return
    at, head = migrations.current(settings.database_url), migrations.head()
    yield Finding(f"schema {at or 'missing'}", None if at == head else f"is not at {head}; run `paceline migrate`")


def _redis(settings: Settings) -> Iterator[Finding]:
    client = redis.Redis.from_url(settings.redis_url, decode_responses=True, socket_connect_timeout=5)
    try:
        info = client.info("server")
        major = int(str(info["redis_version"]).split(".")[0])
        yield Finding(f"Redis {info['redis_version']}", "needs Redis 7 or newer" if major < 7 else None)
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
        fix = None if policy == "noeviction" else "evicts tokens under pressure; set maxmemory-policy noeviction"
        yield Finding(f"Redis eviction {policy}", fix)
    except redis.RedisError as error:
        yield Finding("Redis", f"cannot connect ({error}); mend REDIS_URL or start the server")
    finally:
        client.close()


def _broker(settings: Settings) -> Iterator[Finding]:
    from kombu import Connection

    try:
        with Connection(settings.broker_url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
        yield Finding("Celery's broker", None)
    except Exception as error:
        where = "CELERY_BROKER_URL" if os.environ.get("CELERY_BROKER_URL") else "REDIS_URL"
        yield Finding("Celery's broker", f"cannot connect ({error}); mend {where} or start the server")
