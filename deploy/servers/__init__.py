"""A real PostgreSQL and a real Valkey for a machine that has none, from their wheels, under one data directory.

For one machine and one person: both listen on Unix sockets only, and Valkey keeps nothing on disk. It need not:
PostgreSQL is the truth, and what Valkey held is rebuilt from it.

    postgres.py   PostgreSQL
    valkey.py     Valkey
    places.py     directories: short enough for sockets, and open to the user that PostgreSQL runs as
    wheels.py     the programs, from optional dependencies
"""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from deploy.local.stopping import Stop
from deploy.servers.places import make_data_dir
from deploy.servers.postgres import Postgres
from deploy.servers.valkey import Valkey

__all__ = ["Breakable", "BreakablePostgres", "BreakableRedis", "DataDirBusy", "Postgres", "Servers", "Valkey", "lock"]


class DataDirBusy(RuntimeError):
    """Another Paceline is using this data directory."""


class BreakablePostgres(Protocol):
    """What the fault suite does to a PostgreSQL; `Postgres` says what each means."""

    def start(self) -> object: ...
    def stop(self) -> None: ...
    def crash(self) -> None: ...
    def send_signal(self, number: signal.Signals) -> None: ...


class BreakableRedis(Protocol):
    """What the fault suite does to a Redis; `Valkey` says what each means."""

    def start(self) -> object: ...
    def kill(self) -> None: ...
    def empty(self) -> None: ...
    def fail_over(self) -> None: ...
    def fail_back(self) -> None: ...
    def send_signal(self, number: signal.Signals) -> None: ...


class Breakable(Protocol):
    """Servers that somebody holds in hand, and may break."""

    @property
    def postgres(self) -> BreakablePostgres: ...
    @property
    def valkey(self) -> BreakableRedis: ...


def lock(data_dir: Path) -> int:
    """Keep a data directory for oneself until the descriptor that this returns is closed. Raises DataDirBusy."""
    make_data_dir(data_dir)
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DataDirBusy(f"Another Paceline is using {data_dir}; stop it, or choose another --data-dir") from None
    return descriptor


class Servers:
    """Both, on one data directory that nobody else uses meanwhile. A context manager.

    say: gets a line for people now and then. stopping: when it is set, the start ends with Interrupted.
    """

    def __init__(
        self, data_dir: Path, *, say: Callable[[str], None] = lambda _: None, stopping: Stop | None = None
    ) -> None:
        self._data_dir = data_dir
        self._lock: int | None = None
        self.postgres = Postgres(data_dir / "postgres", say=say, stopping=stopping)
        self.valkey = Valkey(data_dir / "valkey")
        self.database_url = ""
        self.redis_url = ""

    @property
    def environ(self) -> dict[str, str]:
        """All that Paceline needs to know of them, as environment variables."""
        return {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}

    def __enter__(self) -> Self:
        self._lock = lock(self._data_dir)
        try:
            self.database_url = self.postgres.start()
            self.redis_url = self.valkey.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self.valkey, self.postgres):
            server.stop()
            server.clean_up()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
