"""A Redis client that notices when it talks to another server than before.

Tokens live in Redis memory. A server restarted from a snapshot, or a replica promoted after a failover, answers as if
nothing had happened, but may have forgotten the latest uses. A new server means new connections, so every new
connection first compares the server's run id with the one its data was filled under (`know_server.lua`), before any
command of ours can reach it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from ratelimit.errors import TokensUnavailable

NAMESPACE = "paceline"

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

_KNOW_SERVER = Path(__file__).with_name("know_server.lua").read_text()


def connect(url: str, *, timeout_s: float = 2.0) -> redis.Redis:
    """A client for `Tokens`, safe to share between threads.

    A broken connection is tried once more at once (a pooled one may have died while idle); a time-out is not: the
    command may have run, and a token borrowed twice would stay out for its whole loan.
    """
    tcp = {} if url.startswith("unix://") else {"socket_keepalive": True}
    retry = Retry(ConstantBackoff(0.02), retries=1, supported_errors=(redis.ConnectionError,))
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=retry,
        redis_connect_func=_greet,
        **tcp,
    )


def answered(call: Callable[[], _T]) -> _T:
    """Make a call to Redis. Raises `TokensUnavailable` while it is away."""
    try:
        return call()
    except AWAY as error:
        raise TokensUnavailable(f"Redis did not answer: {error}") from error
    except redis.ResponseError as error:
        if not str(error).startswith(REFUSES):
            raise
        raise TokensUnavailable(f"Redis refuses: {error}") from error


def script(client: redis.Redis, path: Path) -> Any:
    """A registered script survives SCRIPT FLUSH: redis-py answers NOSCRIPT by loading it again, in pipelines too."""
    return client.register_script(path.read_text())


def know_server(client: redis.Redis) -> None:
    """Do now what every new connection does first. Emptied, the server has no run id on record either: the next new
    connection would take it for another one, and forget the gates that had been rebuilt by then."""
    client.eval(*_know_server(client.info("server")["run_id"]))


def _know_server(run_id: str) -> tuple[Any, ...]:
    keys = (f"{NAMESPACE}:server", f"{NAMESPACE}:known")
    return _KNOW_SERVER, len(keys), *keys, run_id, f"{NAMESPACE}:{{*}}:gate"


def _greet(connection: Any) -> None:
    connection.on_connect()
    connection.send_command("INFO", "server")
    info = _text(connection.read_response())
    run_id = next(line[7:] for line in info.splitlines() if line.startswith("run_id:"))
    connection.send_command("EVAL", *_know_server(run_id))
    connection.read_response()


def _text(answer: str | bytes) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer
