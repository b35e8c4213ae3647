"""Celery's broker: it carries wake-ups, which may be lost, but not its own bindings, without which none arrives."""

import os
from collections.abc import Iterator

import redis

from deploy.check.redis import Server
from deploy.check.rules import Finding
from workers.domain.remarks import Level
from workers.engine.celery_app import app
from workers.settings import Settings

WHAT = "Celery's broker"


def findings(settings: Settings) -> Iterator[Finding]:
    try:
        with app.connection_for_write(settings.broker_url) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except Exception as error:
        where = "CELERY_BROKER_URL" if os.environ.get("CELERY_BROKER_URL") else "REDIS_URL"
        yield Finding(Level.FAIL, WHAT, f"cannot connect ({error}); fix {where} or start the server")
        return
    try:
        policy = _evicts(settings)
    except redis.RedisError as error:
        yield Finding(Level.FAIL, WHAT, f"could not be asked whether it evicts ({error})")
        return
    words = f"{policy} may evict the bindings of queues, and then no drain arrives; set maxmemory-policy noeviction"
    yield Finding(Level.FAIL, WHAT, words) if policy else Finding(Level.OK, WHAT)


def _evicts(settings: Settings) -> str | None:
    """Of a broker that is a Redis of its own."""
    url = settings.celery_broker_url
    if not url.startswith(("redis://", "rediss://")) or url == settings.redis_url:
        return None
    with redis.Redis.from_url(url, decode_responses=True, socket_connect_timeout=5) as client:
        return Server(client).evicts()
