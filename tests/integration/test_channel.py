"""The onlyfans channel against a real HTTP server: each row of the contract's table, and what may have left."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import urllib3

from deploy.sandbox import Fault, Sandbox
from workers.channels.onlyfans import OnlyFans, outcome_of, retry_after_s
from workers.channels.transport import IDLE_S, Answer, NoAnswer, Transport, _Connection
from workers.clock import monotonic_s
from workers.domain.message import Claim
from workers.domain.outcome import Evidence, Finding, Outcome, OutcomeKind

Scripted = Callable[..., str]


def claim(recipient_id: str = "fan-1", content: str = "Hello", message_id: str = "msg_1") -> Claim:
    return Claim(
        message_id=message_id,
        account_id="default",
        recipient_id=recipient_id,
        priority=5,
        content=content,
        media_ids=(),
        attempt=1,
        tries=1,
        token="t.1",
    )


def send(channel: OnlyFans, one: Claim | None = None, *, start_in_s: float = 2.0, timeout_s: float = 1.0) -> Outcome:
    return channel.send(one or claim(), "key-1", start_by_s=monotonic_s() + start_in_s, timeout_s=timeout_s)


@pytest.fixture
def channel(upstream: Sandbox) -> Iterator[OnlyFans]:
    with closing(OnlyFans(upstream.url)) as made:
        yield made


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that answers each connection with these bytes, slowly if wanted, and then closes or holds it."""
    listeners: list[socket.socket] = []

    def serve(answer: bytes, *, pause_s: float = 0.0, hold_s: float = 0.0) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    try:
                        for byte in answer if pause_s else [answer]:
                            connection.sendall(bytes([byte]) if isinstance(byte, int) else byte)
                            time.sleep(pause_s)
                        time.sleep(hold_s)
                    except OSError:
                        pass

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for listener in listeners:
        listener.close()


def test_an_accepted_message_brings_the_upstreams_id(channel: OnlyFans, upstream: Sandbox) -> None:
    outcome = send(channel)
    assert (outcome.kind, outcome.left, outcome.http_status) == (OutcomeKind.ACCEPTED, True, 200)
    (entry,) = upstream.ledger.entries
    assert outcome.upstream_id == entry.id
    assert (entry.arrival.message.key, entry.arrival.message.idempotency_key) == ("key-1", "msg_1")


@pytest.mark.parametrize(
    ("status", "kind", "account_fault"),
    [
        (400, OutcomeKind.REJECTED, False),
        (401, OutcomeKind.REJECTED, True),
        (403, OutcomeKind.REJECTED, True),
        (404, OutcomeKind.REJECTED, False),
        (408, OutcomeKind.FAILED, False),
        (422, OutcomeKind.REJECTED, False),
        (425, OutcomeKind.FAILED, False),
        (429, OutcomeKind.THROTTLED, False),
        (500, OutcomeKind.FAILED, False),
        (503, OutcomeKind.FAILED, False),
    ],
)
def test_every_status_has_its_outcome(
    channel: OnlyFans, upstream: Sandbox, status: int, kind: OutcomeKind, account_fault: bool
) -> None:
    upstream.faults.add(Fault("status", status=status, error="because"))
    outcome = send(channel)
    assert (outcome.kind, outcome.account_fault) == (kind, account_fault)
    assert (outcome.http_status, outcome.error, outcome.left) == (status, "because", True)


def test_a_redirect_is_a_failure_and_is_not_followed() -> None:
    outcome = outcome_of(Answer(302, {"Location": "http://elsewhere"}, b""), 0.1)
    assert (outcome.kind, outcome.error) == (OutcomeKind.FAILED, "HTTP 302")


@pytest.mark.parametrize("fault", ["cut", "cut_before", "cut_midway", "garbage", "no_id"])
def test_what_cannot_be_read_is_unknown(channel: OnlyFans, upstream: Sandbox, fault: str) -> None:
    upstream.faults.add(Fault(fault))
    outcome = send(channel)
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNKNOWN, True)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_one_deadline_bounds_the_whole_exchange(channel: OnlyFans, upstream: Sandbox, fault: str) -> None:
    upstream.faults.add(Fault(fault, delay_s=20))
    began = time.monotonic()
    outcome = send(channel, timeout_s=0.5)
    assert outcome.kind is OutcomeKind.UNKNOWN
    assert 0.4 < time.monotonic() - began < 10


def test_a_head_that_drips_is_cut_off_too(scripted: Scripted) -> None:
    url = scripted(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000, pause_s=0.05)
    began = time.monotonic()
    outcome = send(OnlyFans(url), timeout_s=0.5)
    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "timed out")
    assert time.monotonic() - began < 10


def test_a_refused_connection_certainly_never_left() -> None:
    outcome = send(OnlyFans("http://127.0.0.1:1"))
    assert (outcome.kind, outcome.left, outcome.interrupted) == (OutcomeKind.FAILED, False, False)


def test_a_name_that_does_not_resolve_certainly_never_left() -> None:
    outcome = send(OnlyFans("http://no-such-host.invalid"), timeout_s=5)
    assert (outcome.kind, outcome.left) == (OutcomeKind.FAILED, False)


def test_a_failed_tls_handshake_certainly_never_left(scripted: Scripted) -> None:
    url = scripted(b"this is not TLS").replace("http://", "https://")
    outcome = send(OnlyFans(url))
    assert (outcome.kind, outcome.left) == (OutcomeKind.FAILED, False)


def test_a_sleeper_that_wakes_too_late_does_not_send(channel: OnlyFans, upstream: Sandbox) -> None:
    outcome = send(channel, start_in_s=-0.001)
    assert (outcome.interrupted, outcome.left) == (True, False)
    assert upstream.summary()["arrivals"] == 0


def test_connections_are_kept_alive_but_not_for_long(
    channel: OnlyFans, upstream: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = channel._transport._pool
    for n in range(3):
        send(channel, claim(message_id=f"msg_{n}"))
    assert pool.num_connections == 1
    monkeypatch.setattr("workers.channels.transport.IDLE_S", -1.0)
    send(channel, claim(message_id="msg_4"))
    assert pool.num_connections == 1  # the same object, connected anew
    assert IDLE_S > 0
    assert upstream.summary()["accepted"] == 4


def test_the_upstreams_words_are_trimmed_and_made_plain() -> None:
    outcome = outcome_of(Answer(400, {}, b'{"error": {"message": "Not\\r\\n now ' + b"x" * 2000 + b'"}}'), 0.1)
    assert outcome.error is not None
    assert outcome.error.startswith("Not now xxx")
    assert len(outcome.error) == 500


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("Fri, 20 Nov 2026 12:01:00 GMT", 60.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_upstreams_clock(value: str, seconds: float | None) -> None:
    headers = {"Retry-After": value, "Date": "Fri, 20 Nov 2026 12:00:00 GMT"}
    assert retry_after_s(headers) == seconds


def find(channel: OnlyFans, one: Claim, *, ago_s: float = 5.0, known: frozenset[str] = frozenset()) -> Evidence:
    return channel.find(one, "key-1", started_ago_s=ago_s, known_ids=known, timeout_s=2).evidence


def test_the_history_proves_presence_and_absence(channel: OnlyFans) -> None:
    sent = send(channel, claim(content="here"))
    assert find(channel, claim(content="here")) is Evidence.FOUND
    assert find(channel, claim(content="never")) is Evidence.ABSENT
    assert find(channel, claim(content="here"), known=frozenset({str(sent.upstream_id)})) is Evidence.ABSENT


def test_only_history_newer_than_the_attempt_counts(channel: OnlyFans) -> None:
    send(channel, claim(content="same"))
    time.sleep(1.1)
    assert find(channel, claim(content="same"), ago_s=-3.0) is Evidence.ABSENT


def test_the_history_is_read_page_by_page(channel: OnlyFans) -> None:
    for n in range(120):
        send(channel, claim(content=f"message {n}", message_id=f"msg_{n}"))
    assert find(channel, claim(content="message 0"), ago_s=60) is Evidence.FOUND


def test_an_upstream_without_history_proves_nothing(channel: OnlyFans, upstream: Sandbox) -> None:
    upstream.history = False
    assert find(channel, claim()) is Evidence.UNAVAILABLE


LONG = "x" * 300_000  # more than a small receive buffer takes, less than a send buffer holds


@pytest.fixture
def small_window() -> Iterator[socket.socket]:
    """A listener whose connections take a few KiB and then close their window until somebody reads."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(10)
        yield listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def read_to_the_end(peer: socket.socket) -> int:
    """How many bytes there were to read."""
    peer.settimeout(10)
    count = 0
    try:
        while data := peer.recv(65536):
            count += len(data)
    except ConnectionResetError:
        pass
    return count


def test_what_was_given_up_is_not_delivered_later(small_window: socket.socket) -> None:
    with closing(OnlyFans(url_of(small_window))) as channel:
        outcome = send(channel, claim(content=LONG), timeout_s=0.5)
        assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "timed out")
        with small_window.accept()[0] as peer:
            assert 0 < read_to_the_end(peer) < len(LONG)


def test_what_a_killed_worker_was_sending_is_not_delivered_later(small_window: socket.socket) -> None:
    script = (
        "import sys; from workers.channels.transport import Transport\n"
        "Transport(sys.argv[1], connections=1).request("
        "'POST', '/', headers={}, body=b'x' * int(sys.argv[2]), timeout_s=60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, url_of(small_window), str(len(LONG))])
    with small_window.accept()[0] as peer:
        time.sleep(0.5)  # its kernel has all of the request by now, which nothing here can see
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert 0 < read_to_the_end(peer) < len(LONG)


def test_an_answer_before_the_end_of_the_request_does_not_cost_its_end(small_window: socket.socket) -> None:
    answer = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n{"id": "1"}'
    with closing(OnlyFans(url_of(small_window))) as channel:
        outcomes: list[Outcome] = []
        sender = threading.Thread(target=lambda: outcomes.append(send(channel, claim(content=LONG), timeout_s=5)))
        sender.start()
        with small_window.accept()[0] as peer:
            peer.sendall(answer)
            sender.join()
            assert outcomes[0].kind is OutcomeKind.ACCEPTED
            assert read_to_the_end(peer) > len(LONG)


@pytest.mark.parametrize("taken", ["and sends", "and is about to send"])
def test_a_deadline_does_not_cut_the_next_call_on_the_same_connection(
    channel: OnlyFans, upstream: Sandbox, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    """urllib3 puts the connection back into the pool inside the last read(), while the call is not over yet."""
    real_read, real_connected = urllib3.HTTPResponse.read, _Connection.is_connected
    read, go_on = threading.Event(), threading.Event()
    slow = threading.Thread(target=lambda: send(channel, timeout_s=1.0))

    def read_and_dawdle(self: urllib3.HTTPResponse, *args: Any, **options: Any) -> bytes:
        content = real_read(self, *args, **options)
        if threading.current_thread() is slow:
            read.set()
            go_on.wait(10)
        return content

    def connected_and_dawdle(self: _Connection) -> bool:
        connected = real_connected.fget(self)  # type: ignore[attr-defined]
        time.sleep(1.5)  # past the deadline of the call before
        return bool(connected)

    monkeypatch.setattr(urllib3.HTTPResponse, "read", read_and_dawdle)
    slow.start()
    assert read.wait(5)
    if taken == "and sends":
        upstream.latency_ms = 1500
    else:
        monkeypatch.setattr(_Connection, "is_connected", property(connected_and_dawdle))
    outcome = send(channel, claim(message_id="msg_2"), start_in_s=5, timeout_s=5)
    go_on.set()
    slow.join()
    assert (outcome.kind, outcome.error) == (OutcomeKind.ACCEPTED, None)
    assert channel._transport._pool.num_connections == 1


def test_all_addresses_of_a_name_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        for waiting in (first, second):  # a full backlog: whoever comes next hears nothing
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        time.sleep(0.1)
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", full.getsockname())
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *a, **o: [address] * 5 if host == "many" else real(host, *a, **o)
        )
        began = time.monotonic()
        outcome = send(OnlyFans(f"http://many:{full.getsockname()[1]}"), timeout_s=0.5)
        assert (outcome.kind, outcome.left, outcome.interrupted) == (OutcomeKind.FAILED, False, False)
        assert 0.4 < time.monotonic() - began < 1.5


def answering(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode("latin-1") + body


STRANGE = [
    answering(b'{"id": "\\ud83d\\u0000 7"}'),
    answering(b'{"id": "\\u0000"}'),
    answering(b'{"error": "no \\ud83d\\u0000"}', "422 Unprocessable"),
    answering(b'{"error": {"message": ["\\ud83d"]}}', "422 Unprocessable"),
    answering(b'{"error": "slower"}', "429 Slow", "Retry-After: Fri, 20 Nov 99999999999999 12:01:00 GMT\r\n"),
    answering(b'{"id": ' + b"9" * 10_000 + b"}"),
    answering(b'{"id": ' + b"[" * 100_000),
    answering(b"[" * 100_000, "500 Oops"),
    answering(b"not gzip", headers="Content-Encoding: gzip\r\n"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhush\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\x00hush\r\nContent-Length: 3\r\n\r\nx",
    b"HTTP/1.1 hush\x00\r\n\r\n",
    b"hush\x00" * 20_000,
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
]


@pytest.mark.parametrize("answer", STRANGE, ids=lambda answer: repr(answer[:60]))
def test_nothing_that_an_upstream_says_breaks_a_drain(scripted: Scripted, answer: bytes) -> None:
    """Neither by raising, nor by what cannot be stored: text in PostgreSQL is UTF-8 without NUL."""
    with closing(OnlyFans(scripted(answer))) as channel:
        outcome = send(channel)
        finding = channel.find(claim(), None, started_ago_s=5, known_ids=frozenset(), timeout_s=1)
    assert outcome.left
    assert finding.evidence is Evidence.UNAVAILABLE
    for text in (outcome.upstream_id, outcome.error, finding.error):
        assert text != ""
        assert "\0" not in (text or "").encode().decode()
        assert "hush" not in (text or "")


def test_ids_and_words_lose_only_what_cannot_be_kept() -> None:
    assert outcome_of(Answer(200, {}, b'{"id": "\\ud83d\\u0000 7"}'), 0.1).upstream_id == "? 7"
    assert outcome_of(Answer(422, {}, b'{"error": "no \\ud83d\\ude00 \\ud83d"}'), 0.1).error == "no \U0001f600 ?"


def test_a_status_counts_whatever_its_body_is() -> None:
    outcome = outcome_of(Answer(500, {}, b"[" * 100_000), 0.1)
    assert (outcome.kind, outcome.error) == (OutcomeKind.FAILED, "[" * 500)


def test_a_surprise_after_the_request_left_is_an_unknown_outcome(
    channel: OnlyFans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise LookupError("private words")

    monkeypatch.setattr("workers.channels.onlyfans._json_object", surprise)
    outcome = send(channel)
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNKNOWN, True)
    assert outcome.error == "unreadable answer: LookupError"
    finding = channel.find(claim(), None, started_ago_s=5, known_ids=frozenset(), timeout_s=2)
    assert finding == Finding(Evidence.UNAVAILABLE, error="unreadable history: LookupError")
    monkeypatch.setattr(urllib3.HTTPResponse, "read", surprise)
    outcome = send(channel)
    assert (outcome.kind, outcome.left, outcome.error) == (OutcomeKind.UNKNOWN, True, "LookupError")


def history(text: str, **entry: Any) -> bytes:
    one = {"id": "7", "created_at": "2999-01-01T00:00:00+00:00", "text": text} | entry
    return answering(json.dumps({"messages": [one]}).encode())


def test_a_page_of_long_messages_can_be_looked_through(scripted: Scripted) -> None:
    with closing(OnlyFans(scripted(history("\U0001f600" * 150_000)))) as channel:
        assert find(channel, claim(content="\U0001f600" * 150_000)) is Evidence.FOUND


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (history("private " * 2_200_000), "the answer is too long"),
        (history("private")[:-2], "IncompleteRead"),
        (answering(b'{"messages": "private"}'), "HTTP 200: not a page of messages"),
        (answering(b'["private"'), "HTTP 200: not a page of messages"),
        (history("private", created_at="private"), "unreadable history: ValueError"),
        (history("private", media_ids=7), "unreadable history: TypeError"),
    ],
    ids=["long", "cut", "no list", "no JSON", "no date", "no media"],
)
def test_a_look_up_that_fails_quotes_nobodys_message(scripted: Scripted, answer: bytes, error: str) -> None:
    with closing(OnlyFans(scripted(answer))) as channel:
        finding = channel.find(claim(), None, started_ago_s=5, known_ids=frozenset(), timeout_s=5)
    assert finding.evidence is Evidence.UNAVAILABLE
    assert finding.error is not None
    assert finding.error.startswith(error)
    assert "private" not in finding.error


def test_an_answer_that_is_too_long_is_none_and_leaves_nothing_behind(upstream: Sandbox) -> None:
    def me(max_answer: int) -> Answer:
        headers = {"Authorization": "Bearer key-1"}
        return transport.request("GET", "/me", headers=headers, timeout_s=2, max_answer=max_answer)

    with closing(Transport(upstream.url, connections=1)) as transport:
        whole = me(1000).body
        with pytest.raises(NoAnswer, match="the answer is too long"):
            me(len(whole) // 2)
        assert me(len(whole)).body == whole


@pytest.mark.parametrize(
    ("id_", "kind"), [("0", "accepted"), ('"m-1"', "accepted"), ("null", "unknown"), ('""', "unknown")]
)
def test_any_id_is_an_id_but_none(id_: str, kind: str) -> None:
    assert outcome_of(Answer(200, {}, f'{{"id": {id_}}}'.encode()), 0.1).kind == kind
