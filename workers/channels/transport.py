"""HTTP to one upstream: a pool of kept-alive connections, one overall deadline, and the one question that matters
afterwards: may any of the request have left?

Everything here happens on one event loop, whose many requests cost one thread.
"""

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from workers.channels.answer import Answer, NoAnswer
from workers.channels.connection import Call, Connection, NotSent, TooLate, connect
from workers.clock import monotonic_s

__all__ = ["IDLE_S", "MAX_ANSWER", "Answer", "NoAnswer", "NotSent", "TooLate", "Transport", "Upstream"]

IDLE_S = 3.0
"""A connection idle for longer is not used again. Servers close idle ones after 5 s (Node) to 75 s (nginx), and a
request written into one that is just being closed has an unknown outcome."""
MAX_ANSWER = 1024 * 1024
_BREAKS_A_LINE = re.compile(r"[\x00-\x1f\x7f]")
_IN_A_PATH = "/%:@!$&'()*+,;=~"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where it is. path: what stands before each path. tls: None for plain HTTP."""

    host: str
    port: int
    netloc: str
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def at(cls, base_url: str) -> "Upstream":
        """`base_url` may have a path."""
        parsed = urlsplit(base_url)
        secure = parsed.scheme == "https"
        host, port = parsed.hostname or "", parsed.port or (443 if secure else 80)
        name = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
        netloc = name if parsed.port is None else f"{name}:{port}"
        return cls(host, port, netloc, quote(parsed.path.rstrip("/"), safe=_IN_A_PATH), _tls() if secure else None)


class Transport:
    """Belongs to the loop that uses it, until that is closed. Keeps up to `connections` alive."""

    def __init__(self, upstream: Upstream, *, connections: int) -> None:
        self._upstream = upstream
        self._idle: deque[Connection] = deque(maxlen=connections)
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
        """One exchange, never repeated. Raises `NotSent` (or its `TooLate`) or `NoAnswer`, and nothing else.

        max_answer: bytes of the answer's body, unpacked; a longer one is no answer.
        """
        deadline_s = monotonic_s() + timeout_s
        call = Call(
            self._written(method, path, headers, body),
            start_by_s=min(start_by_s, deadline_s),
            deadline_s=deadline_s,
            max_answer=max_answer,
        )
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(call)
        except (NotSent, NoAnswer):
            raise
        except TimeoutError as error:
            raise (NoAnswer if call.left else NotSent)("timed out") from error
        except Exception as error:
            raise (NoAnswer if call.left else NotSent)(_why(error)) from error

    async def _exchange(self, call: Call) -> Answer:
        connection = self._idle_one() or await connect(self._upstream.host, self._upstream.port, self._upstream.tls)
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
            raise NotSent("the path or a header would break the request")
        try:
            return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + (body or b"")
        except UnicodeEncodeError as error:
            raise NotSent("the path or a header is not of this alphabet") from error

    def _idle_one(self) -> Connection | None:
        """The one used last, if it may be used again."""
        self._belong_to(asyncio.get_running_loop())
        while self._idle:
            connection = self._idle.pop()
            if monotonic_s() - connection.idle_since_s < IDLE_S and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _put_back(self, connection: Connection, call: Call) -> None:
        if not call.incoming.whole:
            connection.cut()
        elif self._closed or not (call.incoming.reusable and connection.is_reusable()):
            connection.finish(call)
        elif len(self._idle) == self._idle.maxlen:
            connection.close()
        else:
            connection.idle_since_s = monotonic_s()
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(IDLE_S, self._sweep_out)

    def _sweep_out(self) -> None:
        """Close those that nobody will use again."""
        self._sweep = None
        while self._idle and monotonic_s() - self._idle[0].idle_since_s >= IDLE_S:
            self._idle.popleft().close()
        if self._idle:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_S, self._sweep_out)

    def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("a transport belongs to one loop")
        self._close_idle()
        self._loop, self._sweep = loop, None

    def close(self) -> None:
        """From any thread. What is still out ends as it may."""
        self._closed = True
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._close_idle)
        else:
            self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _why(error: Exception) -> str:
    """The error's kind; and its words, where they are the system's."""
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
