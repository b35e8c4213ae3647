"""A Redis client with timeouts, and scripts that survive a restart of the server.

A client does not remember which server it talked to before, nor greets one in any way of its own: the scripts compare
the server that they run on with the one that filled its data (`this_server.lua`), in every grant.
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

NAMESPACE = "paceline"
PAUSE_S = 0.02

KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}
"""A server that is gone without a word is found out within some 10 s, also by who only listens. Not everywhere can it
be set."""

_T = TypeVar("_T")

AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
)
"""What Redis answers, or does not, when nothing can be done with it right now."""
REFUSES = ("NOREPLICAS", "MISCONF", "MASTERDOWN")
"""The same, of a server that is there and may not write just now: too few replicas, no room on its disk, no master."""


def connect(url: str, *, timeout_s: float = 2.0) -> redis.Redis:
    """A client for `Tokens`, safe to share between threads.

    A broken connection is tried once more at once (a pooled one may have died while idle); a time-out is not: the
    command may have run, and a token borrowed twice would stay out for its whole loan.
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
    """Make a call to Redis. Raises `TokensUnavailable` while it is away."""
    try:
        return call()
    except AWAY as error:
        raise TokensUnavailable(f"Redis did not answer: {error}") from error
    except redis.ResponseError as error:
        # In front of what a command in a pipeline was answered, redis-py says which one it was.
        if not str(error).rpartition(" of pipeline caused error: ")[2].startswith(REFUSES):
            raise
        raise TokensUnavailable(f"Redis refuses: {error}") from error


class Script:
    """A Lua script, called over a connection that the calling thread keeps to itself. By way of redis-py's pool, its
    retries and hooks, the client's part of a call costs twice as much; and a drain makes one every turn.

    Survives SCRIPT FLUSH: NOSCRIPT is answered by loading it again, in pipelines too.
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
        except redis.ConnectionError:  # see `connect`: it may have died while nobody used it
            connection.disconnect()
            time.sleep(PAUSE_S)
        except redis.ResponseError as error:
            if isinstance(error, redis.exceptions.ReadOnlyError):  # it leads to a master that is none any more
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
        """This thread's own. It goes with the thread, and is not inherited by a fork."""
        if getattr(self._own, "pid", None) != os.getpid():
            self._own.connection = self._pool.connection_class(**self._pool.connection_kwargs)
            self._own.pid = os.getpid()
        return self._own.connection


_by_client: weakref.WeakKeyDictionary[redis.Redis, threading.local] = weakref.WeakKeyDictionary()


def _connections(client: redis.Redis) -> threading.local:
    """Where a client's scripts, all of them, keep each thread's connection."""
    return _by_client.setdefault(client, threading.local())


def script(client: redis.Redis, *paths: Path) -> Script:
    """The script in the last of these files; in front of it what it uses of the others."""
    return Script(client, "".join(path.read_text() for path in paths))
