"""HTTP to one upstream: a pool of kept-alive connections, one overall deadline, and the one question that matters
afterwards: may any of the request have left?

urllib3 bounds each read; an upstream that drips a byte now and then would hold a sender for ever. So a watchdog shuts
the socket down at the deadline, whatever it is doing.
"""

import contextlib
import heapq
import itertools
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import connection_from_url

from workers.clock import monotonic_s

IDLE_S = 3.0
"""A connection idle for longer is not used again. Servers close idle ones after 5 s (Node) to 75 s (nginx), and a
request written into one that is just being closed has an unknown outcome."""
MAX_ANSWER = 1024 * 1024


class NotSent(Exception):
    """Certainly not a byte of the request left."""


class TooLate(NotSent):
    """Not a byte left, because the last moment to start had passed."""


class NoAnswer(Exception):
    """The request left, wholly or in part, and no whole answer came back."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class _Call:
    """The request in the hands of this thread."""

    start_by_s: float
    deadline_s: float
    left: bool = False
    late: bool = False
    over: bool = False
    timed_out: bool = False
    sock: socket.socket | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self) -> None:
        """The deadline has come: whoever reads from or writes to the socket is to stop."""
        with self.lock:
            if self.over or self.sock is None:
                return
            self.timed_out = True
            # The plain socket's method: an SSLSocket's own would tear its TLS state from under the reading thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


_calls = threading.local()


class _Watched:
    """What our connections add to urllib3's: they know the call they serve, and when they were last used."""

    last_used_s = 0.0
    sock: socket.socket | None

    def send(self, data: Any) -> None:
        call: _Call = _calls.current
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        if not call.left:
            with call.lock:
                call.sock = self.sock
            # The last look at the clock before the first byte: a process that was stopped or a machine that slept
            # since it borrowed its token must not send any more.
            if monotonic_s() > call.start_by_s:
                call.late = True
                raise OSError("too late to start")
            call.left = True
        elif monotonic_s() > call.deadline_s:
            raise OSError("stopped in the middle of the request")
        self.last_used_s = monotonic_s()
        super().send(data)  # type: ignore[misc]

    @property
    def is_connected(self) -> bool:
        return monotonic_s() - self.last_used_s < IDLE_S and super().is_connected  # type: ignore[misc]


class _Connection(_Watched, HTTPConnection):
    pass


class _SecureConnection(_Watched, HTTPSConnection):
    pass


class Transport:
    """Thread-safe. `base_url` may have a path."""

    def __init__(self, base_url: str, *, connections: int) -> None:
        parsed = urllib3.util.parse_url(base_url)
        self._path = (parsed.path or "").rstrip("/")
        self._pool = connection_from_url(base_url, maxsize=connections, block=False)
        secure = parsed.scheme == "https"
        self._pool.ConnectionCls = _SecureConnection if secure else _Connection
        self._watchdog = _Watchdog()

    def request(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str],
        body: bytes | None = None,
        start_by_s: float = float("inf"),
    ) -> Answer:
        """One exchange, never repeated. Raises `NotSent` (or its `TooLate`) or `NoAnswer`."""
        now = monotonic_s()
        call = _Call(min(start_by_s, now + timeout_s), now + timeout_s)
        _calls.current = call
        watch = self._watchdog.watch(call)
        try:
            response = self._pool.urlopen(
                method,
                self._path + path,
                body=body,
                headers=headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=timeout_s,
                preload_content=False,
                decode_content=True,
            )
            try:
                content = response.read(MAX_ANSWER)
            finally:
                with call.lock:
                    call.over = True  # before the connection goes back to the pool
                response.release_conn()
            return Answer(response.status, response.headers, content)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if call.late:
                raise TooLate("too late to start") from error
            words = "timed out" if call.timed_out else f"{type(error).__name__}: {error}"
            raise (NoAnswer if call.left else NotSent)(words) from error
        finally:
            with call.lock:
                call.over = True
            self._watchdog.forget(watch)

    def close(self) -> None:
        self._pool.close()


class _Watchdog:
    """One thread that cuts calls at their deadlines."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Call]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, call: _Call) -> _Call:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            heapq.heappush(self._heap, (call.deadline_s, next(self._numbers), call))
            if self._heap[0][2] is call:
                self._changed.notify()
        return call

    def forget(self, call: _Call) -> None:
        with self._changed:
            # Calls that are over lie in the heap until their time; only a pile of them is worth clearing.
            if len(self._heap) > 10_000:
                self._heap = [entry for entry in self._heap if not entry[2].over]
                heapq.heapify(self._heap)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._heap or self._heap[0][0] > monotonic_s():
                    self._changed.wait(self._heap[0][0] - monotonic_s() if self._heap else None)
                _, _, call = heapq.heappop(self._heap)
            call.cut()
