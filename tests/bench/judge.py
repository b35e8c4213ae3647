"""An upstream that is no bottleneck: it takes every message at once, and remembers what arrived, when, on whose key.

One process, one thread, an HTTP parser of a few lines: about ten times as fast as the sandbox, because it enforces
nothing and misbehaves never. Times are CLOCK_MONOTONIC, which all processes of a machine share.

    POST   /chats/send-message          200 {"id": "up_7"}, after --latency-ms
    GET    /_judge/await?n=…&within=…   wait until n messages have arrived, or so many seconds have passed
    GET    /_judge/arrivals?since=n     [[monotonic seconds, API key, Idempotency-Key], …] after the nth
    DELETE /_judge                      forget them all
    PUT    /_judge/latency?ms=…         from now on
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

ROOM = 65536


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    key: str
    idempotency_key: str


class Judge:
    """A judge's process, as the one who started it sees it."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.pid = url, pid

    def await_arrivals(self, n: int, within_s: float) -> int:
        """How many there are, as soon as it is n, or after within_s."""
        return self._ask(f"await?n={n}&within={within_s}", timeout_s=within_s + 10)["arrived"]

    def count(self) -> int:
        return self.await_arrivals(0, 0)

    def arrivals(self) -> list[Arrival]:
        return [Arrival(*one) for one in self._ask("arrivals?since=0")]

    def forget(self) -> None:
        self._ask("", "DELETE")

    def answer_after(self, latency_ms: float) -> None:
        self._ask(f"latency?ms={latency_ms}", "PUT")

    def _ask(self, path: str, method: str = "GET", timeout_s: float = 60) -> Any:
        with urlopen(Request(f"{self.url}/_judge/{path}", method=method), timeout=timeout_s) as answer:
            return json.load(answer)


@contextmanager
def judge(latency_ms: float = 0) -> Iterator[Judge]:
    """A judge, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.judge", str(latency_ms)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield Judge(process.stdout.readline().strip(), process.pid)
    finally:
        process.terminate()
        process.wait()


# Its process


class _Book:
    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.arrivals: list[tuple[float, str, str]] = []
        self.waiting: list[tuple[int, asyncio.Event]] = []

    def note(self, head: bytes) -> None:
        self.arrivals.append(
            (time.monotonic(), _header(head, b"\r\nauthorization: bearer "), _header(head, b"\r\nidempotency-key: "))
        )
        if self.waiting:
            for n, arrived in self.waiting:
                if len(self.arrivals) >= n:
                    arrived.set()

    async def control(self, method: str, target: str) -> Any:
        path, asked = urlsplit(target).path, parse_qs(urlsplit(target).query)
        match method, path.removeprefix("/_judge"):
            case "GET", "/await":
                await self._await(int(asked["n"][0]), float(asked["within"][0]))
                return {"arrived": len(self.arrivals)}
            case "GET", "/arrivals":
                return self.arrivals[int(asked["since"][0]) :]
            case "DELETE", _:
                self.arrivals = []
                return {}
            case "PUT", "/latency":
                self.latency_s = float(asked["ms"][0]) / 1000
                return {}
        return {"error": "no such question"}

    async def _await(self, n: int, within_s: float) -> None:
        if len(self.arrivals) >= n:
            return
        mine = (n, asyncio.Event())
        self.waiting.append(mine)
        try:
            await asyncio.wait_for(mine[1].wait(), within_s)
        except TimeoutError:
            pass
        finally:
            self.waiting.remove(mine)


class _Connection(asyncio.Protocol):
    """Requests come one after the other (nobody here pipelines), with a Content-Length or without a body."""

    def __init__(self, book: _Book) -> None:
        self._book = book
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._read[:end]
        lowered = head.lower()
        length = int(_header(lowered, b"\r\ncontent-length: ") or 0)
        if len(self._read) < end + 4 + length:
            return
        self._read = self._read[end + 4 + length :]
        if head.startswith(b"POST /chats/send-message"):
            self._book.note(head)
            body = b'{"id":"up_%d"}' % len(self._book.arrivals)
            if self._book.latency_s:
                asyncio.get_running_loop().call_later(self._book.latency_s, self._answer, body)
            else:
                self._answer(body)
        elif head.startswith(b"GET /chats"):
            self._answer(b'{"messages":[],"next_id":null}')
        else:
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            task = asyncio.ensure_future(self._book.control(method, target))
            task.add_done_callback(lambda done: self._answer(json.dumps(done.result()).encode()))

    def _answer(self, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )


def _header(head: bytes, name: bytes) -> str:
    """The value of a header, its name given in lower case with what stands around it; empty if it is not there."""
    at = head.find(name)
    if at < 0:
        at = head.lower().find(name)
    if at < 0:
        return ""
    start = at + len(name)
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].decode()


async def _serve(latency_s: float) -> None:
    loop = asyncio.get_running_loop()
    book = _Book(latency_s)
    server = await loop.create_server(lambda: _Connection(book), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]) / 1000))
