"""Callers over HTTP that are no bottleneck: requests made ready beforehand, kept-alive connections, one request after
the other on each.

    python -m tests.bench.load PORT SECONDS CONNECTIONS < requests      (one JSON object per line)

A line is {"path": …, "token": …, "body": …}; they are used in turn, again and again, and every `{n}` in a body becomes
a number of its own. Prints what came of it as JSON.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import Any


@dataclass(frozen=True, slots=True)
class Told:
    """requests: answered within `took_s`, all of them with the expected status."""

    requests: int
    took_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.took_s


class Refused(AssertionError):
    """Requests were answered otherwise than expected."""


def drive(port: int, requests: Iterable[dict[str, Any]], *, for_s: float, connections: int, status: int = 202) -> Told:
    """Call from a process of its own. Raises Refused if any answer has another status."""
    lines = "\n".join(json.dumps(one) for one in requests)
    command = [sys.executable, "-m", "tests.bench.load", str(port), str(for_s), str(connections)]
    done = subprocess.run(command, input=lines, text=True, capture_output=True, check=True)
    answer = json.loads(done.stdout)
    if set(answer["statuses"]) != {str(status)}:
        raise Refused(f"answers: {answer['statuses']}; one of them: {answer['odd']}")
    return Told(answer["statuses"][str(status)], answer["took_s"])


# Its process


class _Requests:
    """The bytes of the next request, as long as there is time."""

    def __init__(self, lines: Iterable[dict[str, Any]], until_s: float) -> None:
        self._templates = cycle([(self._head(line), line["body"].split("{n}")) for line in lines])
        self._until_s = until_s
        self._n = 0
        self._run = time.time_ns()
        self.statuses: Counter[int] = Counter()
        self.odd = ""

    @staticmethod
    def _head(line: dict[str, Any]) -> str:
        return (
            f"POST {line['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {line['token']}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )

    def next(self) -> bytes | None:
        if time.monotonic() > self._until_s:
            return None
        head, parts = next(self._templates)
        body = self._numbered(parts)
        return f"{head}{len(body)}\r\n\r\n{body}".encode()

    def _numbered(self, parts: list[str]) -> str:
        filled = parts[:1]
        for part in parts[1:]:
            self._n += 1
            filled += (f"{self._run}-{self._n}", part)
        return "".join(filled)


class _Caller(asyncio.Protocol):
    def __init__(self, requests: _Requests) -> None:
        self._requests = requests
        self._read = bytearray()
        self._wanted = -1
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._wanted < 0:
            end = self._read.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._read[:end]).lower()
            at = head.index(b"content-length:") + 15
            stop = head.find(b"\r\n", at)
            self._wanted = end + 4 + int(head[at : stop if stop >= 0 else None])
        if len(self._read) >= self._wanted:
            status = int(self._read[9:12])
            self._requests.statuses[status] += 1
            if status >= 300 and not self._requests.odd:
                self._requests.odd = bytes(self._read[:1000]).decode()
            self._read.clear()
            self._wanted = -1
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _ask(self) -> None:
        request = self._requests.next()
        if request is None:
            self._transport.close()
        else:
            self._transport.write(request)


async def _call(port: int, for_s: float, connections: int) -> None:
    lines = [json.loads(line) for line in sys.stdin]
    loop = asyncio.get_running_loop()
    began_s = time.monotonic()
    requests = _Requests(lines, began_s + for_s)
    callers = [
        (await loop.create_connection(lambda: _Caller(requests), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    took_s = time.monotonic() - began_s
    print(json.dumps({"statuses": requests.statuses, "took_s": took_s, "odd": requests.odd}))


if __name__ == "__main__":
    asyncio.run(_call(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
