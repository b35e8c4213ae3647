"""Checks Redis: tokens, wake-ups and, without another broker, Celery's queue. It may lose data, but must not evict."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import redis

from deploy.check import clock
from deploy.check.rules import Finding, Rules
from workers.domain.remarks import Level, Remark, fail, note, warn
from workers.wakeups import NUDGE

ROOM_BYTES = 64 * 1024 * 1024
"""Tokens of some 50,000 accounts at 10/minute; a megabyte is gone with the connections alone."""
CLIENTS = 100
"""A worker has up to 32 threads that talk to it, and its broker connections."""
IDLE_S = 10
_WRITE = "redis.call('SET', KEYS[1], '1', 'PX', 1000) return redis.call('TIME')"
_SCRATCH = "paceline:{check}:write"

rules: Rules["Server"] = Rules(away=(redis.ConnectionError, redis.TimeoutError))


@dataclass(frozen=True)
class Server:
    """A server under inspection."""

    client: redis.Redis

    @cached_property
    def info(self) -> Mapping[str, Any]:
        return self.client.info()

    def now_s(self) -> float:
        seconds, microseconds = self.client.time()
        return int(seconds) + int(microseconds) / 1e6

    def evicts(self) -> str | None:
        """The policy by which it throws away what it holds, if it does."""
        policy = str(self.info.get("maxmemory_policy", "noeviction"))
        return None if policy == "noeviction" else policy


def findings(url: str) -> Iterator[Finding]:
    client = redis.Redis.from_url(url, decode_responses=True, socket_connect_timeout=5, socket_timeout=5)
    try:
        yield from rules.judge(Server(client))
    except redis.RedisError as error:
        yield Finding(Level.FAIL, "Redis", f"cannot connect ({error}); fix REDIS_URL or start the server")
    finally:
        client.close()


@rules.rule("Redis")
def _version(s: Server) -> Iterator[Remark]:
    version = str(s.info["redis_version"])
    words = f"version {version}"
    yield note(words) if int(version.split(".")[0]) >= 7 else fail(f"{words} is too old; needs Redis 7 or Valkey 8")


@rules.rule("Redis stands alone")
def _mode(s: Server) -> Iterator[Remark]:
    if s.info.get("redis_mode") == "sentinel":
        yield fail(
            "this is a Sentinel, which holds no data; set REDIS_URL to an address that leads to the current master"
        )
    elif s.info.get("cluster_enabled"):
        yield fail("it is a node of a cluster and would answer MOVED; set REDIS_URL to a single server")


@rules.rule("Redis takes writes")
def _writable(s: Server) -> Iterator[Remark]:
    if s.info.get("role") == "slave":
        yield fail("it is a replica; set REDIS_URL to an address that leads to the current master")
        return
    try:
        s.client.eval(_WRITE, 1, _SCRATCH)
    except redis.ResponseError as error:
        yield fail(
            f"it refuses ({error}); let this user write to paceline:* and run scripts; give the server enough memory"
        )


@rules.rule("Redis passes on what is published")
def _channel(s: Server) -> Iterator[Remark]:
    try:
        s.client.publish(NUDGE, "1")
    except redis.exceptions.NoPermissionError as error:
        yield fail(f"it refuses ({error}); allow this user to publish and subscribe: ACL SETUSER … &paceline:*")


@rules.rule("Redis evicts nothing")
def _eviction(s: Server) -> Iterator[Remark]:
    if policy := s.evicts():
        yield fail(f"{policy} evicts tokens, and too many messages would be sent; set maxmemory-policy noeviction")


@rules.rule("Redis has room")
def _room(s: Server) -> Iterator[Remark]:
    most, used = int(s.info.get("maxmemory", 0)), int(s.info.get("used_memory", 0))
    if most and most - used < ROOM_BYTES:
        yield warn(
            f"{(most - used) // 2**20} MiB are left, and a full Redis gives out no tokens; "
            f"raise maxmemory by {ROOM_BYTES // 2**20} MiB"
        )
    clients, connected = int(s.info.get("maxclients", 10_000)), int(s.info.get("connected_clients", 0))
    if clients - connected < CLIENTS:
        yield warn(f"{clients - connected} connections are left, and a worker may need 50; raise maxclients")


@rules.rule("Redis keeps connections")
def _idle(s: Server) -> Iterator[Remark]:
    with suppress(redis.ResponseError):  # a managed one may keep its configuration to itself
        idle_s = int(s.client.config_get("timeout").get("timeout") or 0)
        if 0 < idle_s < IDLE_S:
            yield warn(
                f"it closes idle connections after {idle_s} s, so most calls open a new connection; set timeout 0"
            )


@rules.rule("Redis's clock")
def _clock(s: Server) -> Iterator[Remark]:
    yield from clock.compare(s.now_s)
