"""One connection to an upstream, on an event loop: writes a request, reads its answer, and knows what may have left.

The sockets are our own. asyncio's transports write what they have buffered whatever the time, so a process that was
stopped in the middle of a request would write the rest of it when it goes on. Here a look at the clock comes before
every write.

A request that we give up must not arrive later: the kernel goes on delivering what is in a closed socket's send buffer
for minutes. So until the answer begins a socket lingers for no time at all (SO_LINGER 1, 0): closed, by us or by the
death of this process, it throws its buffer away and sends a RST.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable

from workers.channels.answer import Answer, Incoming, NoAnswer
from workers.clock import monotonic_s

_CHUNK = 64 * 1024  # more than a TLS record, so that nothing stays behind where no selector sees it
_DROP = struct.pack("ii", 1, 0)
_DELIVER = struct.pack("ii", 0, 0)
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class NotSent(Exception):
    """Certainly not a byte of the request left."""


class TooLate(NotSent):
    """Not a byte left, because the last moment to start had passed."""


class Call:
    """One request, and what comes of it.

    start_by_s, deadline_s: by `clock.monotonic_s`, the last moment for its first byte, and for all of it.
    left: whether any of it may have left. ended: done when its answer is whole, or there will be none.
    """

    __slots__ = ("deadline_s", "ended", "incoming", "left", "request", "start_by_s")

    def __init__(self, request: bytes, *, start_by_s: float, deadline_s: float, max_answer: int) -> None:
        self.request = request
        self.start_by_s, self.deadline_s = start_by_s, deadline_s
        self.incoming = Incoming(max_answer)
        self.left = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Connection:
    """Serves one call at a time. To be used on its own loop only, but for `close` once that has stopped."""

    __slots__ = ("_call", "_fd", "_loop", "_sock", "_unwritten", "_writing", "closed", "idle_since_s")

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock, self._fd = sock, sock.fileno()
        self._call: Call | None = None
        self._unwritten = memoryview(b"")
        self._writing = False
        self.closed = False
        self.idle_since_s = 0.0
        self._loop.add_reader(self._fd, self._on_readable)

    async def serve(self, call: Call) -> Answer:
        """Raises TooLate, NoAnswer or OSError; the caller cuts it at the deadline."""
        self._call, self._unwritten = call, memoryview(call.request)
        self._linger(_DROP)
        self._on_writable()
        try:
            await call.ended
        except asyncio.CancelledError:
            if call.ended.cancelled():  # else it had ended before: the loop was busy
                raise
            call.ended.result()
        return call.incoming.answer()

    def is_quiet(self) -> bool:
        """Whether it is still open, and nothing has been said that nobody asked for. To be asked while it is idle."""
        if not self.closed:
            self._on_readable()
        return not self.closed

    def is_reusable(self) -> bool:
        """Whether it has served its call, and can serve another."""
        return not (self.closed or self._call or self._unwritten)

    def finish(self, call: Call) -> None:
        """Close it, after an answer; but first write the rest of the request, if it was answered before its end."""
        if self.closed or not self._writing:
            self.close()
        else:
            self._loop.remove_reader(self._fd)
            self._loop.call_later(max(0.0, call.deadline_s - monotonic_s()), self.close)

    def cut(self) -> None:
        """Close it, and have the kernel forget what it has not delivered."""
        if not self.closed:
            self._linger(_DROP)
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._sock.close()

    def _on_writable(self) -> None:
        call = self._call
        if call is not None:
            # The last look at the clock before a byte leaves: a process that was stopped or a machine that slept since
            # it borrowed its token must not send any more.
            if monotonic_s() > (call.deadline_s if call.left else call.start_by_s):
                late = TooLate("too late to start")
                self._end(NoAnswer("stopped in the middle of the request") if call.left else late)
                return
            call.left = True
        self._write()
        if call is None and not self._writing:  # it was answered before its end, which has left now
            self.close()

    def _write(self) -> None:
        """As much as the kernel takes."""
        more = True
        try:
            self._unwritten = self._unwritten[self._sock.send(self._unwritten) :]
            more = bool(self._unwritten)
        except _NOT_NOW:
            pass
        except OSError:
            more = False  # the upstream has hung up; what it said before that is still to be read
        if more and not self._writing:
            self._loop.add_writer(self._fd, self._on_writable)
        elif self._writing and not more:
            self._loop.remove_writer(self._fd)
        self._writing = more

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except _NOT_NOW:
            return
        except OSError as error:
            self._end(NoAnswer(f"{type(error).__name__}: {error}"))
            return
        if self._call is None:  # Idle: the upstream hangs up, or says what nobody asked for.
            self.close()
            return
        try:
            self._take(self._call, data)
        except NoAnswer as error:
            self._end(error)
        except Exception as error:  # whatever it was that the upstream thought of
            self._end(NoAnswer(type(error).__name__))

    def _take(self, call: Call, data: bytes) -> None:
        incoming, begun = call.incoming, call.incoming.begun
        if data:
            incoming.feed(data)
        else:
            incoming.end()
        if incoming.begun and not begun:  # An upstream that answers before it has read everything gets the rest.
            self._linger(_DELIVER)
        if incoming.whole:
            self._end()

    def _end(self, error: Exception | None = None) -> None:
        """The call is over. Without an answer, so is this connection."""
        call, self._call = self._call, None
        if error is not None:
            self.cut()
        if call is not None and not call.ended.done():
            if error is None:
                call.ended.set_result(None)
            else:
                call.ended.set_exception(error)

    def _linger(self, how: bytes) -> None:
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)


async def connect(host: str, port: int, tls: ssl.SSLContext | None) -> Connection:
    """To the first address of that name which takes us, all of them within the caller's deadline. Raises OSError."""
    loop = asyncio.get_running_loop()
    refused = OSError("the name has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return Connection(await _connected(socket.socket(family, kind, protocol), address, host, tls))
        except OSError as error:
            refused = error
    raise refused


async def _connected(sock: socket.socket, address: tuple, host: str, tls: ssl.SSLContext | None) -> socket.socket:
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            await _shake_hands(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _shake_hands(sock: ssl.SSLSocket) -> None:
    loop, fd = asyncio.get_running_loop(), sock.fileno()
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(fd, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(fd, loop.add_writer, loop.remove_writer)


async def _ready(fd: int, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
    ready = asyncio.Event()
    watch(fd, ready.set)
    try:
        await ready.wait()
    finally:
        unwatch(fd)
