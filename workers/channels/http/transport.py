"""HTTP to one upstream: a pool of kept-alive connections, one overall deadline, and the one question that matters
afterwards: may any of the request have left?

Everything here happens on one event loop, whose many requests cost one thread.

A connection is made in a task of its own. If a call ends before its connection is ready, the connection is finished all
the same, and serves the next call: otherwise an upstream that is slower to connect than one deadline would never be
reached.
"""

import asyncio
import re
from collections import deque
from collections.abc import Mapping

from workers.channels.http.connection import Call, Connection
from workers.channels.http.dial import Dial
from workers.channels.http.exchange import MAX_ANSWER, Answer, Exchange, NoAnswer, NotSent, TooLate
from workers.channels.http.upstream import Network, Upstream
from workers.clock import monotonic_s

__all__ = ["IDLE_S", "MAX_ANSWER", "Answer", "Network", "NoAnswer", "NotSent", "TooLate", "Transport", "Upstream"]

IDLE_S = 3.0
"""A connection idle for longer is not used again. Servers close idle ones after 5 s (Node) to 75 s (nginx), and a
request written into one that is just being closed has an unknown outcome."""
FRESH_S = 15.0
"""The same of a connection that has not been used yet. Servers wait longer for a first request: 20 s (Apache) to 60 s
(nginx, Node). It must be longer than an upstream rests that could not be reached, or its next message starts anew."""
DIAL_FOR_S = 30.0
"""A connection that takes longer to make, and longer than the call may take that it is made for, is given up."""
LATE_DIALS = 4
"""Connections that are still made for calls that have ended. More would only be a burden to an upstream in trouble."""
_BREAKS_A_LINE = re.compile(r"[\x00-\x1f\x7f]")

Waiter = asyncio.Future[Connection]


class Transport(Exchange):
    """Belongs to the loop that uses it, until that is closed. Keeps `connections` alive."""

    def __init__(self, upstream: Upstream, *, connections: int) -> None:
        self._upstream = upstream
        self._idle: deque[Connection] = deque(maxlen=connections)
        self._waiting: dict[Waiter, None] = {}  # for a connection, in the order in which they came
        self._dials: dict[asyncio.Task[None], Waiter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
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
        began_s = monotonic_s()
        if began_s > start_by_s:
            raise TooLate("too late to start")
        call = Call(self._written(method, path, headers, body), deadline_s=began_s + timeout_s, max_answer=max_answer)
        dial = Dial(self._upstream)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(call, dial, timeout_s)
        except (NotSent, NoAnswer):
            raise
        except TimeoutError as error:
            raise (NoAnswer("timed out") if call.left else NotSent(dial.timed_out())) from error
        except Exception as error:
            raise (NoAnswer if call.left else NotSent)(_why(error)) from error

    async def _exchange(self, call: Call, dial: Dial, timeout_s: float) -> Answer:
        connection = self._idle_one() or await self._new_one(dial, max(timeout_s, DIAL_FOR_S))
        try:
            return await connection.serve(call)
        finally:
            self._put_back(connection, call)

    def _written(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        """The request, as it goes over the wire. Raises NotSent for what would break a line of it."""
        lines = [f"{method} {self._upstream.path}{path} HTTP/1.1", f"Host: {self._upstream.netloc}"]
        lines += ["Accept-Encoding: identity", *(f"{name}: {value}" for name, value in headers.items())]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        if " " in path or not path.isascii() or any(_BREAKS_A_LINE.search(line) for line in lines):
            raise NotSent(
                "the credential, or another header or the path, holds characters that would break the request"
            )
        try:
            return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + (body or b"")
        except UnicodeEncodeError as error:
            raise NotSent("the credential, or another header, holds characters that HTTP cannot carry") from error

    def _idle_one(self) -> Connection | None:
        """The one used last, if it may be used again."""
        self._belong_to(asyncio.get_running_loop())
        while self._idle:
            connection = self._idle.pop()
            if not _has_expired(connection) and connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _new_one(self, dial: Dial, for_s: float) -> Connection:
        """A connection made for this call; or for one that has ended, if that is ready before."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        self._waiting[waiter] = None
        task = loop.create_task(self._make(dial, waiter, for_s))
        self._dials[task] = waiter
        task.add_done_callback(self._dials.pop)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:  # it came in the same instant
                self._keep(waiter.result())
            raise
        finally:
            del self._waiting[waiter]
            if not task.done():
                self._end_late_dials(most=LATE_DIALS)

    async def _make(self, dial: Dial, waiter: Waiter, for_s: float) -> None:
        """Make a connection for this waiter; if it has gone, for the one that has waited longest, or for the next."""
        try:
            async with asyncio.timeout(for_s):
                connection = Connection(await dial.run())
        except Exception as error:
            if not waiter.done():
                waiter.set_exception(NotSent(dial.timed_out()) if isinstance(error, TimeoutError) else error)
            return
        for one in (waiter, *self._waiting):
            if not one.done():
                one.set_result(connection)
                return
        self._keep(connection)

    def _end_late_dials(self, most: int) -> None:
        late = [task for task, waiter in self._dials.items() if waiter.done()]
        for task in late[most:]:
            task.cancel()

    def _put_back(self, connection: Connection, call: Call) -> None:
        if not call.left:
            self._keep(connection)
        elif not call.incoming.whole:
            connection.cut()
        elif call.incoming.reusable and connection.is_reusable():
            self._keep(connection)
        else:
            connection.finish(call)

    def _keep(self, connection: Connection) -> None:
        """For the next call."""
        if self._closed or len(self._idle) == self._idle.maxlen:
            connection.close()
            return
        connection.idle_since_s = monotonic_s()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_S, self._sweep_out)

    def _sweep_out(self) -> None:
        """Close those that nobody will use again."""
        self._sweep = None
        expired = [connection for connection in self._idle if _has_expired(connection)]
        for connection in expired:
            self._idle.remove(connection)
            connection.close()
        if self._idle:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_S, self._sweep_out)

    def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("a transport belongs to one loop")
        self._close_idle()
        self._waiting, self._dials = {}, {}
        self._loop, self._sweep = loop, None

    def close(self) -> None:
        """From any thread. What is still out ends as it may; what only waits for the next call ends now."""
        self._closed = True
        if self._loop is None or self._loop.is_closed():
            self._close_idle()
        elif self._loop.is_running():
            self._loop.call_soon_threadsafe(self._end)
        else:
            self._end()
            self._loop.run_until_complete(_ended(self._dials))

    def _end(self) -> None:
        self._close_idle()
        self._end_late_dials(most=0)

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _has_expired(connection: Connection) -> bool:
    return monotonic_s() - connection.idle_since_s >= (FRESH_S if connection.fresh else IDLE_S)


async def _ended(tasks: Mapping[asyncio.Task[None], object]) -> None:
    if tasks:
        await asyncio.wait(list(tasks))


def _why(error: Exception) -> str:
    """The error's kind; and its words, where they are the system's."""
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
