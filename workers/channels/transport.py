"""HTTP to one upstream: a pool of kept-alive connections, one overall deadline, and the one question that matters
afterwards: may any of the request have left?

urllib3 bounds each read; an upstream that drips a byte now and then would hold a sender for ever. So a watchdog shuts
the socket down at the deadline, whatever it is doing.

A request that we give up must not arrive later: the kernel goes on delivering what is in a closed socket's send buffer
for minutes. So until the answer begins a socket lingers for no time at all (SO_LINGER 1, 0): closed, by us or by the
death of this process, it throws its buffer away and sends a RST.
"""

import contextlib
import heapq
import itertools
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import connection_from_url
from urllib3.util.connection import create_connection

from workers.clock import monotonic_s

IDLE_S = 3.0
"""A connection idle for longer is not used again. Servers close idle ones after 5 s (Node) to 75 s (nginx), and a
request written into one that is just being closed has an unknown outcome."""
MAX_ANSWER = 1024 * 1024
_AFTER_US_S = 1.0
"""urllib3's own timeouts come this much later than the deadline, so that it is the watchdog that cuts."""
_DROP = struct.pack("ii", 1, 0)
_DELIVER = struct.pack("ii", 0, 0)


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
    connection: "_Watched | None" = None
    sock: socket.socket | None = None
    """Kept apart from the connection's, which lets go of it as soon as it has read `Connection: close`."""

    def cut(self) -> None:
        """The deadline has come: whoever reads from or writes to the socket is to stop, and what it has not delivered
        is not to be delivered."""
        if self.connection is None:  # not before its first byte, which looks at the clock itself
            return
        with self.connection.lock:
            # urllib3 puts a connection back into the pool inside the last read(): it may be another call's by now.
            if self.over or self.connection.call is not self:
                return
            self.timed_out = self.connection.severed = True
            self._linger(_DROP)
            # Only wakes its thread, which closes it. The plain socket's method: an SSLSocket's own would tear its TLS
            # state from under the reading thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # type: ignore[arg-type]

    def begin(self, connection: "_Watched") -> None:
        with connection.lock:
            self.connection, self.sock = connection, connection.sock
            self._linger(_DROP)

    def answered(self) -> None:
        """An upstream that answers before it has read everything is to get the rest all the same."""
        if self.connection is not None:
            with self.connection.lock:
                if not self.timed_out:
                    self._linger(_DELIVER)

    def _linger(self, how: bytes) -> None:
        with contextlib.suppress(OSError):  # closed already
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)  # type: ignore[union-attr]


_calls = threading.local()


class _Watched:
    """What our connections add to urllib3's: they know the call they serve, and when they were last used."""

    last_used_s = 0.0
    sock: socket.socket | None
    call: _Call | None = None
    severed = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lock = threading.Lock()
        """Held to cut this connection, and to take it over from the call before."""

    def request(self, *args: Any, **options: Any) -> None:
        with self.lock:
            self.call = _calls.current
        if self.severed:  # at the deadline of the call before, after the pool had found it sound
            self.close()  # type: ignore[attr-defined]
        super().request(*args, **options)  # type: ignore[misc]

    def connect(self) -> None:
        self.severed = False
        super().connect()  # type: ignore[misc]

    def _new_conn(self) -> socket.socket:
        """As urllib3's, which gives each address of a name the whole timeout: here they share what is left of the
        call's, and the TLS handshake has the rest."""
        call: _Call = _calls.current
        host, port = self._dns_host, self.port  # type: ignore[attr-defined]
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(host, self, error) from error  # type: ignore[arg-type]
        refused: OSError | None = None
        for *_, address in found:
            left_s = call.deadline_s - monotonic_s()
            if left_s <= 0:
                call.late = refused is None
                refused = refused or TimeoutError("too late to start")
                break
            try:
                sock = create_connection(
                    (str(address[0]), port),
                    left_s,
                    socket_options=self.socket_options,  # type: ignore[attr-defined]
                )
            except OSError as error:
                refused = error
            else:
                sock.settimeout(max(0.001, call.deadline_s - monotonic_s()))
                return sock
        raise urllib3.exceptions.NewConnectionError(self, f"cannot connect: {refused}") from refused  # type: ignore[arg-type]

    def send(self, data: Any) -> None:
        call: _Call = _calls.current
        if self.sock is None:
            self.connect()
        assert self.sock is not None
        if not call.left:
            call.begin(self)
            self.sock.settimeout(max(0.001, call.deadline_s - monotonic_s() + _AFTER_US_S))
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
        max_answer: int = MAX_ANSWER,
    ) -> Answer:
        """One exchange, never repeated. Raises `NotSent` (or its `TooLate`) or `NoAnswer`, and nothing else.

        max_answer: bytes of the answer's body, unpacked; a longer one is no answer.
        """
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
                timeout=timeout_s + _AFTER_US_S,
                preload_content=False,
                decode_content=True,
            )
            call.answered()
            try:
                content = response.read(max_answer + 1)
                if len(content) > max_answer:
                    raise NoAnswer("the answer is too long")
            except BaseException:
                response.close()  # what is left unread must not be taken for another's answer
                raise
            finally:
                call.over = True
                response.release_conn()
            return Answer(response.status, response.headers, content)
        except NoAnswer:
            raise
        except Exception as error:
            if call.late:
                raise TooLate("too late to start") from error
            raise (NoAnswer if call.left else NotSent)("timed out" if call.timed_out else _why(error)) from error
        finally:
            call.over = True
            self._watchdog.forget(watch)

    def close(self) -> None:
        self._pool.close()


def _why(error: Exception) -> str:
    """The error's kind; and its words, unless they may quote the answer."""
    aborted = isinstance(error, urllib3.exceptions.ProtocolError) and error.args
    cause = error.args[-1] if aborted and isinstance(error.args[-1], Exception) else error
    quoting = isinstance(cause, urllib3.exceptions.InvalidHeader | HTTPException)
    quoting = quoting and not isinstance(cause, OSError | IncompleteRead)
    if quoting or not isinstance(cause, urllib3.exceptions.HTTPError | HTTPException | OSError):
        return type(cause).__name__
    return f"{type(cause).__name__}: {cause}"


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
