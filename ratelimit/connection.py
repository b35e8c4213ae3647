"""A Redis client with timeouts, and scripts that survive a restart of the server.

A client does not remember which server it talked to before. Instead, in every grant, the scripts compare the server
that they run on with the server that filled the data (`this_server.lua`).
"""

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from ratelimit.errors import TokensUnavailable

PAUSE_S = 0.02

KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}
"""TCP keepalive: a server that vanishes silently is detected within about 10 s, also on connections that only listen.
Some platforms do not support these options."""

_T = TypeVar("_T")

AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
)
"""Errors that mean that Redis is unavailable."""
REFUSES = ("NOREPLICAS", "MISCONF", "MASTERDOWN")
"""Also unavailable: a server that answers but refuses writes (too few replicas, disk full, no master)."""


def connect(url: str, *, timeout_s: float = 2.0) -> redis.Redis:
    """Return a client for `Tokens` that threads can share.

    A broken connection is retried once, because a pooled connection may have died while idle. A timeout is not retried:
    the command may have run, and a token borrowed twice would stay on loan until the loan ends.
    """
    tcp: dict[str, Any] = {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
    retry = Retry(ConstantBackoff(PAUSE_S), retries=1, supported_errors=(redis.ConnectionError,))
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=retry,
        **({} if url.startswith("unix://") else tcp),
    )


def answered(call: Callable[[], _T]) -> _T:
    """Make a call to Redis. Raises `TokensUnavailable` if Redis is unavailable."""
    try:
        return call()
    except AWAY as error:
        raise TokensUnavailable(f"Redis did not answer: {error}") from error
    except redis.ResponseError as error:
        # In a pipeline, redis-py puts the name of the command in front of the error.
        if not str(error).rpartition(" of pipeline caused error: ")[2].startswith(REFUSES):
            raise
        raise TokensUnavailable(f"Redis refuses: {error}") from error


class Script:
    """A Lua script, called over a connection that belongs to the calling thread. The client's share of a call takes
    13 µs of CPU. With redis-py's pool, retries and hooks it would take 34 µs, and a drain makes one call every turn.

    Survives SCRIPT FLUSH: after NOSCRIPT it is loaded again, in pipelines too.
    """

    def __init__(self, client: redis.Redis, source: str) -> None:
        self._registered = client.register_script(source)
        self._pool, self._own = client.connection_pool, _connections(client)

    def __call__(self, keys: Sequence[str], args: Sequence[Any], client: redis.client.Pipeline | None = None) -> Any:
        if client is not None:
            return self._registered(keys=keys, args=args, client=client)
        try:
            return self._ask("EVALSHA", self._registered.sha, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            self._ask("SCRIPT", "LOAD", self._registered.script)
            return self._ask("EVALSHA", self._registered.sha, len(keys), *keys, *args)

    def _ask(self, *command: Any) -> Any:
        connection = self._connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        except redis.ConnectionError:  # see `connect`: it may have died while idle
            connection.disconnect()
            time.sleep(PAUSE_S)
        except redis.ResponseError as error:
            if isinstance(error, redis.exceptions.ReadOnlyError):  # it leads to a former master
                connection.disconnect()
            raise
        except BaseException:  # half an answer may be on its way
            connection.disconnect()
            raise
        try:
            connection.send_command(*command)
            return connection.read_response()
        except BaseException:
            connection.disconnect()
            raise

    def _connection(self) -> Any:
        """Return the connection of this thread. It ends with the thread, and a fork does not inherit it."""
        if getattr(self._own, "pid", None) != os.getpid():
            self._own.connection = self._pool.connection_class(**self._pool.connection_kwargs)
            self._own.pid = os.getpid()
        return self._own.connection


_by_client: weakref.WeakKeyDictionary[redis.Redis, threading.local] = weakref.WeakKeyDictionary()


def _connections(client: redis.Redis) -> threading.local:
    """Return the storage of each thread's connection, shared by all scripts of a client."""
    return _by_client.setdefault(client, threading.local())


def script(client: redis.Redis, *paths: Path) -> Script:
    """Return the script in the last file, preceded by the functions of the other files."""
    return Script(client, "".join(path.read_text() for path in paths))
