"""Where a process keeps its counts, and who tells them. Every count is told at one place, so a scrape of everything
counts nothing twice:

* A worker or pacer with a METRICS_PORT keeps its counts to itself, in memory, and tells them there (`serve`).
* All others of one machine or container, above all the processes of one API, share a directory
  (`PROMETHEUS_MULTIPROC_DIR`), and the API tells whatever is in it.
* Without either, a process's counts are its own, and only the API tells them.

The shared files would be named after process ids, and each restart would leave its own behind. Here they are named
after *slots*: the lowest number that no living process has locked. The kernel lets go of the lock however the process
ends, and the slot's next owner goes on counting where the last one stopped. So there are never more files than there
were processes at once, and counters outlive restarts. What a process says only of itself (a `live…` gauge) ends with
it.
"""

import fcntl
import hmac
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import IO, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from workers.health import beside, pulse

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Read once, when the first metric is defined (`workers.telemetry`)."""

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Slots:
    """The slots of a shared directory, and the one of this process: another one after a fork."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise RuntimeError(f"{DIRECTORY}={directory} must name a directory that exists")
        self._directory = directory
        self._owner: int | None = None
        self._number = 0
        self._lock: IO[str] | None = None

    def mine(self) -> int:
        if self._owner != os.getpid():
            self._number, self._lock = self._take()
            self._owner = os.getpid()
        return self._number

    def close_dead(self) -> None:
        """Forget what processes that are gone said of themselves. Their counts stay."""
        for path in self._directory.glob("*.slot"):
            with path.open() as file:
                if _locked(file, fcntl.LOCK_SH):  # shared: several who look at once are not in each other's way
                    mark_process_dead(int(path.stem), str(self._directory))

    def _take(self) -> tuple[int, IO[str]]:
        for number in itertools.count(1):
            file = (self._directory / f"{number}.slot").open("w")
            if _locked(file, fcntl.LOCK_EX):
                mark_process_dead(number, str(self._directory))
                return number, file
            file.close()
        raise AssertionError("numbers do not end")


def _locked(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_slots = Slots(Path(os.environ[DIRECTORY])) if os.environ.get(DIRECTORY) else None
# prometheus-client's own way of naming the files otherwise: whatever identifies a process among those that run at once.
values.ValueClass = values.MutexValue if _slots is None else values.MultiProcessValue(_slots.mine)


def counted() -> CollectorRegistry:
    """What this process tells: its own counts, or those of all that share its directory."""
    if _slots is None:
        return REGISTRY
    _slots.close_dead()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry


def bearer_token(authorization: str) -> str | None:
    """The token of an Authorization header; None for another scheme or none. Schemes ignore case (RFC 9110 §11.1)."""
    scheme, _, credentials = authorization.strip().partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def may_see(authorization: str, token: str | None) -> bool:
    """Whether this Authorization header opens the metrics; any does, unless METRICS_TOKEN is set."""
    return not token or hmac.compare_digest((bearer_token(authorization) or "").encode(), token.encode())


def serve(port: int, token: str | None) -> None:
    """Tell this process's counts, and its health, on a port, from a thread of its own, for as long as it lives."""
    try:
        server = make_server("", port, beside(guarded(make_wsgi_app(REGISTRY), token), pulse), _Server, _Quiet)
    except OSError as error:
        remedy = "each worker and pacer of a host needs its own"
        raise RuntimeError(f"METRICS_PORT={port} cannot be served ({error.strerror}): {remedy}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def guarded(app: Wsgi, token: str | None) -> Wsgi:
    """The same for whoever may see it; a 401 for anybody else."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if may_see(environ.get("HTTP_AUTHORIZATION", ""), token):
            return app(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [b"Not authenticated\n"]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Scrapes are no events."""
