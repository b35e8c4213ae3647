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
import re
import socket
import ssl
import struct

from workers.channels.http.answer import Incoming
from workers.channels.http.exchange import Answer, NoAnswer, NotSent, TooLate
from workers.clock import monotonic_s

_CHUNK = 64 * 1024  # more than a TLS record, so that nothing stays behind where no selector sees it
_DROP = struct.pack("ii", 1, 0)
_DELIVER = struct.pack("ii", 0, 0)
_OUR_CERTIFICATE = re.compile(
    "ALERT_(CERTIFICATE_(REQUIRED|REVOKED|EXPIRED|UNKNOWN)|BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA|DECRYPT_ERROR"
    "|ACCESS_DENIED|HANDSHAKE_FAILURE)"
)
"""How a server says that it does not accept a client's certificate, or the lack of one (RFC 8446 §6.2)."""
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Call:
    """One request, and what comes of it.

    deadline_s: by `clock.monotonic_s`, the last moment for any byte of it. left: whether any of it may have left.
    ended: done when its answer is whole, or there will be none.
    """

    __slots__ = ("deadline_s", "ended", "incoming", "left", "request")

    def __init__(self, request: bytes, *, deadline_s: float, max_answer: int) -> None:
        self.request = request
        self.deadline_s = deadline_s
        self.incoming = Incoming(max_answer)
        self.left = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Connection:
    """Serves one call at a time. To be used on its own loop only, but for `close` once that has stopped.

    fresh: the upstream has not answered anything on it yet.
    """

    __slots__ = ("_call", "_fd", "_loop", "_sock", "_unwritten", "_writing", "closed", "fresh", "idle_since_s")

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock, self._fd = sock, sock.fileno()
        self._call: Call | None = None
        self._unwritten = memoryview(b"")
        self._writing = False
        self.fresh = True
        self.closed = False
        self.idle_since_s = 0.0
        self._loop.add_reader(self._fd, self._on_readable)

    async def serve(self, call: Call) -> Answer:
        """Raises NoAnswer or OSError; the caller cuts it at the deadline. Raises TooLate if the deadline has passed
        before the first byte: then the connection is as good as it was."""
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
            # The last look at the clock before bytes leave: a process that was stopped or a machine that slept since it
            # borrowed its token must not send any more.
            if monotonic_s() > call.deadline_s:
                self._stop(call)
                return
            call.left = True
        self._write()
        if call is None and not self._writing:  # it was answered before its end, which has left now
            self.close()

    def _stop(self, call: Call) -> None:
        """Write no more of it."""
        if call.left:
            self._end(NoAnswer("stopped in the middle of the request"))
        else:
            self._call, self._unwritten = None, memoryview(b"")
            call.ended.set_exception(TooLate("too late to start"))

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
            self._end(self._broken(error))
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

    def _broken(self, error: OSError) -> NotSent | NoAnswer:
        """In TLS 1.3 a server looks at our certificate after we have begun to write. A server that ends the handshake
        over it has not read any of the request: it may not before."""
        if self.fresh and isinstance(error, ssl.SSLError) and _OUR_CERTIFICATE.search(error.reason or ""):
            return NotSent(f"the upstream does not accept our TLS certificate, or wants one ({error.reason})")
        return NoAnswer(f"{type(error).__name__}: {error}")

    def _take(self, call: Call, data: bytes) -> None:
        incoming, begun = call.incoming, call.incoming.begun
        if data:
            incoming.feed(data)
        else:
            incoming.end()
        self.fresh = False
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
