"""Bytes that no honest client sends, to the real server: each request is understood in one way or not at all.

What the server itself refuses (before there is a request to speak of) has an empty body; whatever gets through to us
is answered as JSON.
"""

import gzip
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.defence.conftest import Process

ROOT = "/api/onlyfans/messaging"
MIB = 1024 * 1024
BODY = b'{"recipientId":"fan-1","content":"Hello"}'
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass(frozen=True)
class Answers:
    """All that came back before the server hung up."""

    raw: bytes

    @property
    def statuses(self) -> list[int]:
        return list(map(int, re.findall(rb"HTTP/1\.1 (\d{3}) ", self.raw)))

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.raw.partition(b"\r\n\r\n")[2])

    @property
    def headers(self) -> list[str]:
        head = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1")
        return [line.partition(":")[0].lower() for line in head.split("\r\n")[1:]]


Say = Callable[..., Answers]


@pytest.fixture
def say(api: Process) -> Say:
    """Send bytes and hear all that comes back; a server that does not hang up is waited for in vain."""

    def do(*parts: bytes) -> Answers:
        heard = b""
        with api.connect() as connection:
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:  # refused before it was said: what was answered is there all the same
                pass
            try:
                while data := connection.recv(65536):
                    heard += data
            except ConnectionError:
                pass
        return Answers(heard)

    return do


@pytest.fixture
def send(api: Process, say: Say) -> Say:
    """POST /send by somebody who may, with these headers, and then these bytes."""

    def do(headers: str, *parts: bytes, path: str = f"{ROOT}/send") -> Answers:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {api.token()}\r\n"
        return say((head + "Content-Type: application/json\r\n" + headers + "\r\n").encode("latin-1"), *parts)

    return do


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode("latin-1")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


# --- one request or two ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        f"Content-Length: {len(BODY)}\r\nContent-Length: 3\r\n",
        f"Content-Length: {len(BODY)}, 3\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x29\r\n",
        f"Transfer-Encoding: xchunked\r\nContent-Length: {len(BODY)}\r\n",
        f"Transfer-Encoding : chunked\r\nContent-Length: {len(BODY)}\r\n",
        f"Transfer-Encoding: chunked, identity\r\nContent-Length: {len(BODY)}\r\n",
        f"X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: {len(BODY)}\r\n",
        f"X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: {len(BODY)}\r\n",
        f"X-A: \0\r\nContent-Length: {len(BODY)}\r\n",
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_refused(send: Say, headers: str) -> None:
    assert send(headers, BODY, SMUGGLED).statuses == [400]


@pytest.mark.parametrize("order", [("Content-Length: 6", "Transfer-Encoding: chunked"), None])
def test_what_stands_behind_a_chunked_body_with_a_length_is_not_a_request(
    api: Process, say: Say, order: tuple[str, str] | None
) -> None:
    """RFC 9112 §6.3: Transfer-Encoding goes before Content-Length, and the connection is closed afterwards."""
    lines = order or ("Transfer-Encoding: chunked", "Content-Length: 6")
    head = f"POST {ROOT}/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token()}\r\n"
    head += "Content-Type: application/json\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
    answers = say(head.encode() + chunked(b"") + SMUGGLED)
    assert answers.statuses == [400]
    assert answers.json["code"] == "invalid_request"


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\nhello",
        b"-5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_a_broken_chunk_queues_nothing(send: Say, chunks: bytes) -> None:
    assert set(send("Transfer-Encoding: chunked\r\n", chunks).statuses) <= {400}


def test_two_requests_on_one_connection_are_answered_in_turn(say: Say) -> None:
    first = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: one\r\n\r\n"
    answers = say(first + get("/nowhere", "X-Request-Id: two\r\n"))
    assert answers.statuses == [200, 404]
    assert answers.raw.index(b"x-request-id: one") < answers.raw.index(b"x-request-id: two")


def test_a_body_that_nobody_reads_is_not_taken_for_a_request(say: Say) -> None:
    first = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
    assert say(first + SMUGGLED + get("/nowhere")).statuses in ([200], [200, 404])  # hung up after the first, or not


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_the_method_is_the_one_of_the_request_line(send: Say, say: Say, api: Process, header: str) -> None:
    assert send(f"{header}: GET\r\nContent-Length: 0\r\n", path=f"{ROOT}/status").statuses == [405]
    asked = get("/healthz?_method=DELETE", f"{header}: DELETE\r\n")
    assert say(asked).statuses == [200]


def test_http_2_without_tls_is_not_spoken(say: Say) -> None:
    assert say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").statuses in ([], [400])
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    asked = f"GET /healthz HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode()
    assert say(asked + get("/healthz")).statuses == [200, 200]


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", b"GE\tT / HTTP/1.1\r\n\r\n", b"\r\n\r\nx\r\n\r\n"]
)
def test_what_is_not_http_is_refused(say: Say, garbage: bytes) -> None:
    assert say(garbage).statuses == [400]


# --- too much -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [1, 1000, MIB])
def test_more_than_8_mib_is_413_whether_it_says_so_or_not(send: Say, more: int) -> None:
    padded = BODY + b" " * (8 * MIB - len(BODY))
    extra = b"x" * more  # what is beyond the limit must not be forgotten either
    for answers in (
        send(f"Content-Length: {8 * MIB + more}\r\n", padded, extra),
        send("Transfer-Encoding: chunked\r\n", chunked(padded, extra)),
    ):
        assert answers.statuses == [413]
        assert answers.json["code"] == "too_large"


def test_8_mib_are_taken(send: Say) -> None:
    padded = BODY + b" " * (8 * MIB - len(BODY))
    assert send(f"Content-Length: {8 * MIB}\r\n", padded).statuses == [202]
    assert send("Transfer-Encoding: chunked\r\n", chunked(padded[:100], padded[100:])).statuses == [202]


def test_a_length_beyond_all_bounds_is_refused_before_anything_is_read(send: Say) -> None:
    assert send("Content-Length: 99999999999\r\n").statuses == [413]
    assert send("Content-Length: 99999999999\r\nExpect: 100-continue\r\n").statuses == [413]


def test_a_stranger_is_refused_before_anything_is_read(say: Say) -> None:
    head = f"POST {ROOT}/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    assert say(f"{head}Content-Length: {8 * MIB}\r\n\r\n".encode()).statuses == [401]


def test_a_bomb_is_not_unpacked(send: Say) -> None:
    bomb = gzip.compress(BODY[:-1] + b" " * (64 * MIB) + b"}")
    for coding in ("gzip", "x-gzip", "deflate", "br", "identity, gzip"):
        answers = send(f"Content-Encoding: {coding}\r\nContent-Length: {len(bomb)}\r\n", bomb)
        assert answers.statuses == [415]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/healthz", f"X-A: {'a' * MIB}\r\n"), 431),
        (get("/healthz", f"Authorization: Bearer {'a' * 300_000}\r\n"), 431),
        (get("/healthz", "".join(f"X-{n}: a\r\n" for n in range(1000))), 431),
        (get("/" + "a" * 70_000), 414),
        (get(f"{ROOT}/status?accountId=" + "a" * 70_000), 414),
        (get("/" + "a" * 30_000), 404),
        (get("/healthz", f"X-A: {'a' * 30_000}\r\n"), 200),
    ],
    ids=["header", "token", "headers", "path", "query", "long path", "long header"],
)
def test_a_head_of_much_more_than_64_kib_is_refused(say: Say, request_: bytes, status: int) -> None:
    assert say(request_).statuses[0] in ({status} if status < 414 else {414, 431})


def test_a_client_that_says_nothing_keeps_nobody_else_waiting(api: Process, say: Say) -> None:
    """Threads are taken by requests, not by connections: more of these than there are threads do no harm."""
    silent: list[socket.socket] = [api.connect() for _ in range(64)]
    try:
        for connection in silent:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
        assert say(get("/healthz")).statuses == [200]
    finally:
        for connection in silent:
            connection.close()


# --- into the answer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_id", ["a\r\n X-Evil: 1", "a\nX-Evil: 1", "a%0d%0aX-Evil: 1", "\u560d\u560aX-Evil: 1", "a;X-Evil=1"]
)
def test_no_request_id_becomes_a_header(say: Say, request_id: str) -> None:
    raw = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: " + request_id.encode() + b"\r\n\r\n"
    assert "x-evil" not in say(raw).headers


@pytest.mark.parametrize(
    "path", ["/%0d%0aX-Evil:%201", f"{ROOT}/messages/%0d%0aX-Evil:%201", "/docs/%0d%0aX-Evil:%201"]
)
def test_no_path_becomes_a_header(say: Say, path: str) -> None:
    answers = say(get(path))
    assert answers.statuses[0] in (401, 404)
    assert "x-evil" not in answers.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:443", "x\r\nHost: evil.example", "'\"><script>"])
def test_the_host_that_is_named_is_never_repeated(api: Process, say: Say, host: str) -> None:
    head = f"Host: {host}\r\nConnection: close\r\nX-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n"
    for path in ("/docs/", "/docs", "/openapi.json", "/nowhere", f"{ROOT}/test/"):
        assert b"evil" not in say(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()).raw
    sent = f"{head}Authorization: Bearer {api.token()}\r\nContent-Type: application/json\r\n"
    answers = say(f"POST {ROOT}/send HTTP/1.1\r\n{sent}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    assert answers.statuses == [202]
    assert b"location: /api/" in answers.raw


@pytest.mark.parametrize(
    "path", ["/docs/../../../etc/passwd", "/docs/..%2f..%2f..%2fetc%2fpasswd", "/docs/%2e%2e/%2e%2e/x"]
)
def test_no_path_leads_out_of_the_documentation(say: Say, path: str) -> None:
    assert say(get(path)).statuses == [404]


@pytest.mark.parametrize("line", ["GET http://evil.example/healthz HTTP/1.1", "CONNECT evil.example:443 HTTP/1.1"])
def test_it_is_nobodys_proxy(say: Say, line: str) -> None:
    answers = say(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answers.statuses[0] in (200, 400, 404)  # our own /healthz, or nothing
    assert b"evil" not in answers.raw
