"""The onlyfans channel against a real HTTP server: each row of the contract's table, and what may have left."""

import asyncio
import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.sandbox import Fault, Sandbox
from tests.integration.peers import Authority, Peer, answer_all, answering, broken, hear, loop, run
from workers.channels.base import Sender
from workers.channels.http.answer import Incoming
from workers.channels.http.transport import Answer, NoAnswer, NotSent, TooLate, Transport, Upstream
from workers.channels.onlyfans import OnlyFans, outcome_of
from workers.clock import monotonic_s
from workers.domain.lookup import Evidence, History, compare
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Outcome, OutcomeKind

Scripted = Callable[..., str]


@pytest.fixture(autouse=True)
def nothing_breaks_unheard() -> Iterator[None]:
    broken.clear()
    yield
    run(asyncio.sleep(0))
    assert broken == []


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


OURS, HOUSE = Sender({"apiKey": "key-1"}), Sender()


def send(
    channel: OnlyFans,
    one: Claim | None = None,
    *,
    sender: Sender = OURS,
    start_in_s: float = 2.0,
    timeout_s: float = 1.0,
) -> Outcome:
    return run(channel.send(one or claim(), sender, start_by_s=monotonic_s() + start_in_s, timeout_s=timeout_s))


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


Serve = Callable[..., Peer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    peers: list[Peer] = []

    def make(handle: Callable[[Peer, socket.socket], object], tls: ssl.SSLContext | None = None) -> Peer:
        peers.append(Peer(handle, tls))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def test_an_accepted_message_brings_the_upstreams_id(channel: OnlyFans, upstream: Sandbox) -> None:
    outcome = send(channel)
    assert (outcome.kind, outcome.left, outcome.http_status) == (OutcomeKind.ACCEPTED, True, 200)
    (entry,) = upstream.ledger.entries
    assert outcome.upstream_id == entry.id
    assert (entry.arrival.message.key, entry.arrival.message.idempotency_key) == ("key-1", "msg_1")


@pytest.mark.parametrize(
    ("status", "kind", "blame"),
    [
        (400, OutcomeKind.REJECTED, Blame.MESSAGE),
        (401, OutcomeKind.REJECTED, Blame.CREDENTIAL),
        (402, OutcomeKind.REJECTED, Blame.CREDENTIAL),
        (403, OutcomeKind.REJECTED, None),
        (404, OutcomeKind.REJECTED, Blame.RECIPIENT),
        (408, OutcomeKind.UNKNOWN, Blame.UPSTREAM),
        (409, OutcomeKind.REJECTED, Blame.MESSAGE),
        (410, OutcomeKind.REJECTED, Blame.RECIPIENT),
        (422, OutcomeKind.REJECTED, Blame.MESSAGE),
        (425, OutcomeKind.UNKNOWN, Blame.UPSTREAM),
        (429, OutcomeKind.THROTTLED, None),
        (500, OutcomeKind.UNKNOWN, Blame.UPSTREAM),
        (503, OutcomeKind.UNKNOWN, Blame.UPSTREAM),
    ],
)
def test_every_status_has_its_outcome(
    channel: OnlyFans, upstream: Sandbox, status: int, kind: OutcomeKind, blame: Blame | None
) -> None:
    upstream.faults.add(Fault("status", status=status, error="because"))
    outcome = send(channel)
    assert (outcome.kind, outcome.blame) == (kind, blame)
    assert (outcome.http_status, outcome.error, outcome.left) == (status, "because", True)


def test_503_with_retry_after_was_refused_unread(channel: OnlyFans, upstream: Sandbox) -> None:
    upstream.faults.add(Fault("status", status=503, retry_after_s=7))
    outcome = send(channel)
    assert (outcome.kind, outcome.blame, outcome.retry_after_s) == (OutcomeKind.UNAVAILABLE, Blame.UPSTREAM, 7)
    assert outcome.left


def test_where_5xx_are_trusted_they_mean_not_sent(channel: OnlyFans, upstream: Sandbox) -> None:
    upstream.faults.add(Fault("status", status=500))
    assert send(channel, sender=Sender({"apiKey": "key-1"}, {"trust5xx": True})).kind is OutcomeKind.FAILED


def test_a_conflict_is_a_key_in_use_where_keys_are_honoured() -> None:
    conflict = Answer(409, {"Retry-After": "3"}, b"{}")
    assert outcome_of(conflict, idempotent=True).kind is OutcomeKind.IN_PROGRESS
    assert outcome_of(conflict, idempotent=True).retry_after_s == 3


def test_404_of_something_that_is_not_the_platform_blames_nobody_for_certain() -> None:
    assert outcome_of(Answer(404, {}, b"<html>nginx</html>")).blame is None


@pytest.mark.parametrize(("status", "kind"), [(302, OutcomeKind.UNKNOWN), (307, OutcomeKind.UNAVAILABLE)])
def test_a_redirect_is_not_followed(status: int, kind: OutcomeKind) -> None:
    outcome = outcome_of(Answer(status, {"Location": "http://elsewhere"}, b""))
    assert (outcome.kind, outcome.error) == (kind, f"HTTP {status}")


def test_what_an_upstream_quotes_of_the_message_or_the_key_is_left_out(channel: OnlyFans, upstream: Sandbox) -> None:
    upstream.faults.add(Fault("status", status=400, error="'Hello Anna' is not allowed for key-1"))
    assert send(channel, claim(content="Hello Anna")).error == "'…' is not allowed for …"


class Canned:
    """An exchange that sends nothing anywhere: it answers, or fails, as it was told."""

    def __init__(self, came_of_it: Answer | Exception) -> None:
        self._came_of_it = came_of_it
        self.asked: list[tuple[str, str]] = []

    async def request(self, method: str, path: str, **_: object) -> Answer:
        self.asked.append((method, path))
        if isinstance(self._came_of_it, Exception):
            raise self._came_of_it
        return self._came_of_it

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("came_of_it", "kind", "left", "interrupted"),
    [
        (Answer(200, {}, b'{"id": 7}'), OutcomeKind.ACCEPTED, True, False),
        (NotSent("connection refused"), OutcomeKind.UNAVAILABLE, False, False),
        (TooLate("too late to start"), OutcomeKind.FAILED, False, True),
        (NoAnswer("timed out"), OutcomeKind.UNKNOWN, True, False),
    ],
    ids=["answer", "not sent", "too late", "no answer"],
)
def test_a_kind_needs_no_more_than_an_exchange(
    came_of_it: Answer | Exception, kind: OutcomeKind, left: bool, interrupted: bool
) -> None:
    canned = Canned(came_of_it)
    outcome = send(OnlyFans("https://api.example.com", exchange=lambda *_, **__: canned))
    assert (outcome.kind, outcome.left, outcome.interrupted) == (kind, left, interrupted)
    assert canned.asked == [("POST", "/chats/send-message")]


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
    assert (outcome.kind, outcome.left, outcome.interrupted) == (OutcomeKind.UNAVAILABLE, False, False)


def test_a_name_that_does_not_resolve_certainly_never_left() -> None:
    outcome = send(OnlyFans("http://no-such-host.invalid"), timeout_s=5)
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNAVAILABLE, False)


def test_a_failed_tls_handshake_certainly_never_left(scripted: Scripted) -> None:
    url = scripted(b"this is not TLS").replace("http://", "https://")
    outcome = send(OnlyFans(url))
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNAVAILABLE, False)


def test_a_sleeper_that_wakes_too_late_does_not_send(channel: OnlyFans, upstream: Sandbox) -> None:
    outcome = send(channel, start_in_s=-0.001)
    assert (outcome.interrupted, outcome.left) == (True, False)
    assert upstream.summary()["arrivals"] == 0


def test_connections_are_kept_alive_but_not_for_long(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = serve(answer_all)
    with closing(OnlyFans(peer.url)) as channel:
        for _ in range(3):
            assert send(channel).kind is OutcomeKind.ACCEPTED
        assert peer.connections == 1
        monkeypatch.setattr("workers.channels.http.transport.IDLE_S", -1.0)
        assert send(channel).kind is OutcomeKind.ACCEPTED
        assert peer.connections == 2


def test_a_connection_that_nobody_uses_again_is_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.channels.http.transport.IDLE_S", 0.1)
    peer = serve(answer_all)
    with closing(OnlyFans(peer.url)) as channel:
        send(channel)
        assert peer.ended.acquire(timeout=10)


def test_the_upstreams_words_are_trimmed_and_made_plain() -> None:
    outcome = outcome_of(Answer(400, {}, b'{"error": {"message": "Not\\r\\n now ' + b"x" * 2000 + b'"}}'))
    assert outcome.error is not None
    assert outcome.error.startswith("Not now xxx")
    assert len(outcome.error) == 500


def find(channel: OnlyFans, one: Claim, *, ago_s: float = 5.0, known: frozenset[str] = frozenset()) -> Evidence:
    history = channel.history(one.recipient_id, OURS, since_s=ago_s, timeout_s=2)
    return compare(history, one, known).evidence


def test_the_history_proves_presence_and_absence(channel: OnlyFans) -> None:
    sent = send(channel, claim(content="here"))
    known = frozenset({str(sent.upstream_id)})
    assert find(channel, claim(content="here")) is Evidence.FOUND
    assert find(channel, claim(content="never"), known=known) is Evidence.ABSENT
    assert find(channel, claim(content="never")) is Evidence.UNCLEAR  # who knows what "here" was when it left
    assert find(channel, claim(content="here"), known=known) is Evidence.ABSENT


@pytest.mark.parametrize("told", [True, False])
def test_who_wrote_an_entry_is_told_apart_where_the_platform_says(
    channel: OnlyFans, upstream: Sandbox, told: bool
) -> None:
    upstream.ledger.chats.authors = told
    upstream.fan_says("key-1", "fan-1", "ok")
    assert find(channel, claim(content="ok")) is (Evidence.ABSENT if told else Evidence.FOUND)
    assert find(channel, claim(content="Hello")) is (Evidence.ABSENT if told else Evidence.UNCLEAR)
    upstream.typed_by_hand("key-1", "fan-1", "I am here")
    assert find(channel, claim(content="Hello")) is Evidence.UNCLEAR


def test_a_history_without_the_time_of_the_answer_proves_nothing(scripted: Scripted) -> None:
    """The upstream's clock may be an hour behind ours: then what has just arrived looks an hour old."""
    entry = b'{"id": 1, "text": "Hello", "created_at": "2026-01-01T00:00:00Z"}'
    page = b'{"messages": [%s], "next_id": null}' % entry
    with closing(OnlyFans(scripted(answering(page)))) as channel:
        assert find(channel, claim(content="Other")) is Evidence.UNAVAILABLE


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
VERY_LONG = 8_000_000  # more than any send buffer holds


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


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"], ids=["", "but half answered"]
)
def test_what_was_given_up_is_not_delivered_later(small_window: socket.socket, begun: bytes) -> None:
    with closing(OnlyFans(url_of(small_window))) as channel:
        work = channel.send(claim(content=LONG), OURS, start_by_s=float("inf"), timeout_s=0.5)
        sending = asyncio.run_coroutine_threadsafe(work, loop())
        with small_window.accept()[0] as peer:
            peer.sendall(begun)
            outcome = sending.result(10)
            assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "timed out")
            assert 0 < read_to_the_end(peer) < len(LONG)


def test_what_began_in_time_may_go_on_until_the_deadline(small_window: socket.socket) -> None:
    with closing(OnlyFans(url_of(small_window))) as channel:
        start_by_s = monotonic_s() + 2
        work = channel.send(claim(content="x" * VERY_LONG), HOUSE, start_by_s=start_by_s, timeout_s=30)
        sending = asyncio.run_coroutine_threadsafe(work, loop())
        with small_window.accept()[0] as peer:
            time.sleep(max(0, start_by_s - monotonic_s()))
            assert len(hear(peer)) > VERY_LONG
            peer.sendall(answering(b'{"id": 7}'))
            assert sending.result(10).kind is OutcomeKind.ACCEPTED


def test_what_a_killed_worker_was_sending_is_not_delivered_later(small_window: socket.socket) -> None:
    script = (
        "import asyncio, sys; from workers.channels.http.transport import Transport, Upstream\n"
        "asyncio.run(Transport(Upstream.at(sys.argv[1]), connections=1).request("
        "'POST', '/', headers={}, body=b'x' * int(sys.argv[2]), timeout_s=60))"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, url_of(small_window), str(len(LONG))])
    with small_window.accept()[0] as peer:
        time.sleep(0.5)  # its kernel has all of the request by now, which nothing here can see
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert 0 < read_to_the_end(peer) < len(LONG)


@pytest.mark.parametrize("half_closed", [False, True], ids=["", "and a hang-up halfway"])
@pytest.mark.parametrize("size", [len(LONG), VERY_LONG], ids=["in the kernel", "in our hands"])
def test_an_answer_before_the_end_of_the_request_does_not_cost_its_end(
    small_window: socket.socket, size: int, half_closed: bool
) -> None:
    answer = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n{"id": "1"}'
    with closing(OnlyFans(url_of(small_window))) as channel:
        outcomes: list[Outcome] = []
        sender = threading.Thread(target=lambda: outcomes.append(send(channel, claim(content="x" * size), timeout_s=9)))
        sender.start()
        with small_window.accept()[0] as peer:
            peer.sendall(answer)
            if half_closed:
                peer.shutdown(socket.SHUT_WR)
            sender.join()
            assert outcomes[0].kind is OutcomeKind.ACCEPTED
            assert read_to_the_end(peer) > size


def test_a_connection_with_a_request_still_to_write_is_nobody_elses(small_window: socket.socket) -> None:
    with closing(OnlyFans(url_of(small_window))) as channel:
        accepted: list[socket.socket] = []
        for size in (VERY_LONG, 5):
            work = channel.send(claim(content="x" * size), HOUSE, start_by_s=float("inf"), timeout_s=30)
            sending = asyncio.run_coroutine_threadsafe(work, loop())
            accepted.append(small_window.accept()[0])
            accepted[-1].sendall(answering(b'{"id": 7}'))
            assert sending.result(10).kind is OutcomeKind.ACCEPTED
        first, second = accepted
        assert len(hear(first)) > VERY_LONG
        first.close()
        second.close()


def test_an_answer_before_a_hang_up_in_the_middle_of_the_request_is_heard(small_window: socket.socket) -> None:
    with closing(OnlyFans(url_of(small_window))) as channel:
        outcomes: list[Outcome] = []
        much = claim(content="x" * VERY_LONG)
        sender = threading.Thread(target=lambda: outcomes.append(send(channel, much, timeout_s=9)))
        sender.start()
        with small_window.accept()[0] as peer:
            peer.recv(1)
            peer.sendall(answering(b'{"error": "too much"}', "413 Too Large"))
        sender.join()
    assert (outcomes[0].kind, outcomes[0].error) == (OutcomeKind.REJECTED, "too much")


def test_a_process_stopped_in_the_middle_of_a_request_does_not_go_on_after_its_deadline() -> None:
    """When it goes on, the socket takes more and the deadline is over: what it does first must not matter."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        request = Transport(Upstream.at(url_of(listener)), connections=1).request(
            "POST", "/", headers={}, body=b"x" * 4 * VERY_LONG, timeout_s=0.5
        )
        sending = asyncio.run_coroutine_threadsafe(request, loop())
        with listener.accept()[0] as peer:
            peer.recv(1)
            stopped, go_on = threading.Event(), threading.Event()
            loop().call_soon_threadsafe(lambda: (stopped.set(), go_on.wait(10)))
            assert stopped.wait(10)
            peer.settimeout(0.5)  # after which the deadline is over, too
            with suppress(TimeoutError):
                while peer.recv(65536):  # all that had been written: there is room for more
                    pass
            go_on.set()
            with pytest.raises(NoAnswer, match="stopped in the middle of the request"):
                sending.result(10)


def test_a_deadline_does_not_cut_the_next_call_on_the_same_connection(channel: OnlyFans, upstream: Sandbox) -> None:
    send(channel, timeout_s=1.0)
    (connection,) = channel._transport._idle
    upstream.latency_ms = 1500
    outcome = send(channel, claim(message_id="msg_2"), start_in_s=5, timeout_s=5)
    assert (outcome.kind, outcome.error) == (OutcomeKind.ACCEPTED, None)
    assert list(channel._transport._idle) == [connection]


def test_an_answer_that_came_in_time_is_not_lost_on_a_busy_loop(serve: Serve) -> None:
    """Nor does the deadline, noticed with it, cut the connection: it may be the next call's."""
    answered = threading.Semaphore(0)

    def answer(_: Peer, connection: socket.socket) -> None:
        while hear(connection):
            connection.sendall(answering(b'{"id": 7}'))
            answered.release()

    async def send_and_be_busy() -> Outcome:
        sending = asyncio.ensure_future(channel.send(claim(), HOUSE, start_by_s=float("inf"), timeout_s=0.5))
        await asyncio.sleep(0)  # the request is written
        assert answered.acquire(timeout=10)
        time.sleep(0.6)
        return await sending

    peer = serve(answer)
    with closing(OnlyFans(peer.url)) as channel:
        send(channel)
        assert answered.acquire(timeout=10)
        assert run(send_and_be_busy()).kind is OutcomeKind.ACCEPTED
        assert send(channel).kind is OutcomeKind.ACCEPTED
    assert peer.connections == 1


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
        history = channel.history("fan-1", HOUSE, since_s=5, timeout_s=1)
    assert outcome.left
    assert history.error
    for text in (outcome.upstream_id, outcome.error, history.error):
        assert text != ""
        assert "\0" not in (text or "").encode().decode()
        assert "hush" not in (text or "")


def test_ids_and_words_lose_only_what_cannot_be_kept() -> None:
    assert outcome_of(Answer(200, {}, b'{"id": "\\ud83d\\u0000 7"}')).upstream_id == "? 7"
    assert outcome_of(Answer(422, {}, b'{"error": "no \\ud83d\\ude00 \\ud83d"}')).error == "no \U0001f600 ?"


def test_a_status_counts_whatever_its_body_is() -> None:
    outcome = outcome_of(Answer(500, {}, b"[" * 100_000))
    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "[" * 500)


def test_a_surprise_after_the_request_left_is_an_unknown_outcome(
    channel: OnlyFans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise LookupError("private words")

    monkeypatch.setattr("workers.channels.onlyfans._json_object", surprise)
    outcome = send(channel)
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNKNOWN, True)
    assert outcome.error == "unreadable answer: LookupError"
    history = channel.history("fan-1", HOUSE, since_s=5, timeout_s=2)
    assert history == History(error="unreadable history: LookupError")
    for method in ("feed", "answer"):
        with monkeypatch.context() as patched:
            patched.setattr(Incoming, method, surprise)
            outcome = send(channel)
        assert (outcome.kind, outcome.left, outcome.error) == (OutcomeKind.UNKNOWN, True, "LookupError")


DATE = "Date: Fri, 27 Nov 2026 12:00:00 GMT\r\n"


def history(text: str, **entry: Any) -> bytes:
    one = {"id": "7", "created_at": "2999-01-01T00:00:00+00:00", "text": text} | entry
    return answering(json.dumps({"messages": [one]}).encode(), headers=DATE)


def test_a_page_of_long_messages_can_be_looked_through(scripted: Scripted) -> None:
    with closing(OnlyFans(scripted(history("\U0001f600" * 150_000)))) as channel:
        assert find(channel, claim(content="\U0001f600" * 150_000)) is Evidence.FOUND


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (history("private " * 2_200_000), "the answer is too long"),
        (history("private")[:-2], "cut off in the middle of the answer"),
        (answering(b'{"messages": "private"}', headers=DATE), "HTTP 200: not a page of messages"),
        (answering(b'["private"', headers=DATE), "HTTP 200: not a page of messages"),
        (history("private", created_at="private"), "unreadable history: ValueError"),
        (history("private", media_ids=7), "unreadable history: TypeError"),
    ],
    ids=["long", "cut", "no list", "no JSON", "no date", "no media"],
)
def test_a_look_up_that_fails_quotes_nobodys_message(scripted: Scripted, answer: bytes, error: str) -> None:
    with closing(OnlyFans(scripted(answer))) as channel:
        history = channel.history("fan-1", HOUSE, since_s=5, timeout_s=5)
    assert history.error is not None
    assert history.error.startswith(error)
    assert "private" not in history.error


def test_an_answer_that_is_too_long_is_none_and_leaves_nothing_behind(upstream: Sandbox) -> None:
    def me(max_answer: int) -> Answer:
        headers = {"Authorization": "Bearer key-1"}
        return run(transport.request("GET", "/me", headers=headers, timeout_s=2, max_answer=max_answer))

    with closing(Transport(Upstream.at(upstream.url), connections=1)) as transport:
        whole = me(1000).body
        with pytest.raises(NoAnswer, match="the answer is too long"):
            me(len(whole) // 2)
        assert me(len(whole)).body == whole


@pytest.mark.parametrize(
    ("id_", "kind"), [("0", "accepted"), ('"m-1"', "accepted"), ("null", "unknown"), ('""', "unknown")]
)
def test_any_id_is_an_id_but_none(id_: str, kind: str) -> None:
    assert outcome_of(Answer(200, {}, f'{{"id": {id_}}}'.encode())).kind == kind


# --- how an answer may come


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"id\r\n5;x=y\r\n": 7}\r\n0\r\n\r\n',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"id": 7}\r\n0\r\nContent-Encoding: gzip\r\n\r\n',
        b'HTTP/1.0 200 OK\r\n\r\n{"id": 7}',
        b'HTTP/1.1 200 OK\r\n\r\n{"id": 7}',
        b'HTTP/1.1 200\r\nContent-Length: 9\r\n\r\n{"id": 7}',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"id": 7}',
        b'HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\nLink: x\r\n\r\nHTTP/1.1 201 Created\r\n\r\n{"id": 7}',
    ],
    ids=["chunked", "trailers", "HTTP 1.0", "to the end", "no reason", "100", "103"],
)
@pytest.mark.parametrize("pause_s", [0.0, 0.001], ids=["at once", "byte by byte"])
def test_an_answer_in_any_form_is_read(scripted: Scripted, answer: bytes, pause_s: float) -> None:
    with closing(OnlyFans(scripted(answer, pause_s=pause_s))) as channel:
        outcome = send(channel, timeout_s=10)
    assert (outcome.kind, outcome.upstream_id) == (OutcomeKind.ACCEPTED, "7")


PACKED = gzip.compress(b'{"id": 7}')


@pytest.mark.parametrize(
    ("packed", "kind", "error"),
    [
        (PACKED, OutcomeKind.ACCEPTED, None),
        (PACKED[:-1], OutcomeKind.UNKNOWN, "cut off in the middle of the answer"),
        (b"private", OutcomeKind.UNKNOWN, "the answer cannot be unpacked"),
        (gzip.compress(b"x" * 10_000_000), OutcomeKind.UNKNOWN, "the answer is too long"),
    ],
    ids=["whole", "cut", "not packed", "a bomb"],
)
def test_an_answer_packed_unasked_is_unpacked(
    scripted: Scripted, packed: bytes, kind: OutcomeKind, error: str | None
) -> None:
    with closing(OnlyFans(scripted(answering(packed, headers="content-encoding: GZIP\r\n")))) as channel:
        outcome = send(channel, timeout_s=5)
    assert (outcome.kind, outcome.error) == (kind, error)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"private" * 50_000, "the head of the answer is too long"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Many: private\r\n" * 50_000, "the head of the answer is too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, "the head of the answer is too long"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: private\r\n\r\n", "cut off before an answer"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: private\r\n\r\n",
            "unreadable: HttpParserUpgrade",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nprivate", "cut off in the middle of the answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nprivate", "cut off in the middle of the answer"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 7\r\n\r\n{"id": 7}', "unreadable: HttpParserError"),
        (b"", "cut off before an answer"),
    ],
    ids=["long", "many", "1xx for ever", "1xx alone", "101", "chunks cut", "encoding cut", "two lengths", "nothing"],
)
def test_what_is_no_answer_says_why_and_quotes_nothing(scripted: Scripted, answer: bytes, error: str) -> None:
    with closing(OnlyFans(scripted(answer))) as channel:
        outcome = send(channel, timeout_s=10)
    assert (outcome.kind, outcome.left, outcome.error) == (OutcomeKind.UNKNOWN, True, error)


# --- what becomes of a connection


def test_one_that_the_upstream_closed_meanwhile_is_not_used_again(serve: Serve) -> None:
    close = threading.Event()

    def answer_once(peer: Peer, connection: socket.socket) -> None:
        hear(connection)
        connection.sendall(answering(b'{"id": %d}' % peer.connections))
        close.wait(10)

    async def send_just_after_it_closed() -> Outcome:
        """The loop, on which this does not wait, has no time to notice."""
        close.set()
        assert peer.ended.acquire(timeout=10)
        return await channel.send(claim(), HOUSE, start_by_s=float("inf"), timeout_s=5)

    peer = serve(answer_once)
    with closing(OnlyFans(peer.url)) as channel:
        assert send(channel).upstream_id == "1"
        assert run(send_just_after_it_closed()).upstream_id == "2"
        assert send(channel).upstream_id == "3"


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_ones(serve: Serve, at_once: bool) -> None:
    heard, said = threading.Event(), threading.Event()

    def say_more(peer: Peer, connection: socket.socket) -> None:
        answer, more = answering(b'{"id": %d}' % peer.connections), answering(b'{"id": "unasked"}')
        hear(connection)
        connection.sendall(answer + more if at_once else answer)
        if not at_once:
            heard.wait(10)
            connection.sendall(more)
        said.set()
        hear(connection)

    peer = serve(say_more)
    with closing(OnlyFans(peer.url)) as channel:
        assert send(channel).upstream_id == "1"
        heard.set()
        assert said.wait(10)
        assert send(channel).upstream_id == "2"


def test_one_that_the_upstream_wants_closed_is_closed(serve: Serve) -> None:
    def close_after(peer: Peer, connection: socket.socket) -> None:
        hear(connection)
        connection.sendall(answering(b'{"id": 7}', headers="connection: CLOSE\r\n"))
        connection.recv(1)  # until we close it

    peer = serve(close_after)
    with closing(OnlyFans(peer.url)) as channel:
        assert send(channel).kind is OutcomeKind.ACCEPTED
        assert not channel._transport._idle
        assert peer.ended.acquire(timeout=10)


def test_three_hundred_at_once_each_have_their_own_answer(serve: Serve) -> None:
    """None is answered before all of them are out."""
    all_out = threading.Barrier(300)

    def echo(peer: Peer, connection: socket.socket) -> None:
        while request := hear(connection):
            all_out.wait(60)
            key = request.partition(b"Idempotency-Key: ")[2].partition(b"\r\n")[0].decode()
            connection.sendall(answering(json.dumps({"id": f"for {key}"}).encode()))

    peer = serve(echo)

    async def send_all(turn: int) -> list[Outcome]:
        claims = [claim(message_id=f"msg_{turn}_{n}") for n in range(300)]
        sends = [channel.send(one, HOUSE, start_by_s=float("inf"), timeout_s=60) for one in claims]
        return await asyncio.gather(*sends)

    with closing(OnlyFans(peer.url, connections=300)) as channel:
        for turn in range(2):
            outcomes = run(send_all(turn))
            assert [outcome.upstream_id for outcome in outcomes] == [f"for msg_{turn}_{n}" for n in range(300)]


def test_no_more_are_kept_alive_than_wanted(serve: Serve) -> None:
    async def send_five() -> None:
        await asyncio.gather(*(channel.send(claim(), HOUSE, start_by_s=float("inf"), timeout_s=10) for _ in range(5)))

    peer = serve(answer_all)
    with closing(OnlyFans(peer.url, connections=2)) as channel:
        run(send_five())
        for _ in range(3):
            assert peer.ended.acquire(timeout=10)
        assert len(channel._transport._idle) == 2


def test_a_request_that_is_cancelled_is_not_delivered_later(small_window: socket.socket) -> None:
    with closing(OnlyFans(url_of(small_window))) as channel:
        work = channel.send(claim(content=LONG), HOUSE, start_by_s=float("inf"), timeout_s=60)
        sending = asyncio.run_coroutine_threadsafe(work, loop())
        with small_window.accept()[0] as peer:
            peer.recv(1)
            sending.cancel()
            run(asyncio.sleep(0))  # by then it is cut
            assert read_to_the_end(peer) < len(LONG)


def test_when_its_loop_is_closed_a_transport_goes_on_with_another(upstream: Sandbox) -> None:
    with closing(OnlyFans(upstream.url)) as channel:
        for _ in range(2):
            outcome = asyncio.run(channel.send(claim(), OURS, start_by_s=float("inf"), timeout_s=5))
            assert outcome.kind is OutcomeKind.ACCEPTED


# --- what must not get into a request


@pytest.mark.parametrize("key", ["key\r\nX-Evil: 1", "key\n", "key\0", "key\u20ac"])
def test_a_key_that_would_break_the_request_is_not_sent(upstream: Sandbox, key: str) -> None:
    with closing(OnlyFans(upstream.url)) as channel:
        outcome = run(channel.send(claim(), Sender({"apiKey": key}), start_by_s=float("inf"), timeout_s=5))
    assert (outcome.kind, outcome.left, outcome.interrupted) == (OutcomeKind.UNAVAILABLE, False, False)
    assert "key" not in (outcome.error or "")
    assert upstream.summary()["arrivals"] == 0


@pytest.mark.parametrize("path", ["/me HTTP/1.1\r\nX-Evil: 1\r\n\r\n", "/me me", "/m\u00e9"])
def test_a_path_that_would_break_the_request_is_not_sent(upstream: Sandbox, path: str) -> None:
    with closing(Transport(Upstream.at(upstream.url), connections=1)) as transport, pytest.raises(NotSent):
        run(transport.request("GET", path, headers={}, timeout_s=5))


@pytest.mark.parametrize(
    ("base_url", "host", "port", "netloc", "path"),
    [
        ("http://example.com", "example.com", 80, "example.com", ""),
        ("https://user:word@Example.com/v1/", "example.com", 443, "example.com", "/v1"),
        ("http://[::1]:9000/a b", "::1", 9000, "[::1]:9000", "/a%20b"),
        ("https://b\u00fccher.example:443", "b\u00fccher.example", 443, "xn--bcher-kva.example:443", ""),
    ],
)
def test_where_an_upstream_is_is_read_from_its_url(base_url: str, host: str, port: int, netloc: str, path: str) -> None:
    found = Upstream.at(base_url)
    assert (found.host, found.port, found.netloc, found.path) == (host, port, netloc, path)
    assert (found.tls is not None) == base_url.startswith("https")


# --- TLS


@pytest.fixture
def server_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """For 127.0.0.1, by a certificate that is trusted here."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority.server_tls("127.0.0.1")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_messages_of_any_length_go_over_one_tls_connection(
    serve: Serve, server_tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    server_tls.maximum_version = version
    heard: list[int] = []

    def answer_at_length(_: Peer, connection: socket.socket) -> None:
        while request := hear(connection):
            heard.append(len(request))
            connection.sendall(answering(json.dumps({"id": 7, "more": "x" * 500_000}).encode()))

    peer = serve(answer_at_length, server_tls)
    with closing(OnlyFans(peer.url)) as channel:
        for size in (5, VERY_LONG, 5):
            assert send(channel, claim(content="x" * size), start_in_s=30, timeout_s=30).upstream_id == "7"
    assert peer.connections == 1
    assert heard[1] > VERY_LONG


def test_a_certificate_that_nobody_vouches_for_is_not_taken(
    serve: Serve, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with closing(OnlyFans(serve(answer_all, server_tls).url)) as channel:
        outcome = send(channel)
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNAVAILABLE, False)
    assert "CERTIFICATE_VERIFY_FAILED" in (outcome.error or "")


def test_a_certificate_for_somebody_else_is_not_taken(serve: Serve, server_tls: ssl.SSLContext) -> None:
    with closing(OnlyFans(serve(answer_all, server_tls).url.replace("127.0.0.1", "localhost"))) as channel:
        outcome = send(channel)
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNAVAILABLE, False)
    assert "CERTIFICATE_VERIFY_FAILED" in (outcome.error or "")


def test_a_handshake_that_does_not_end_is_cut_at_the_deadline(serve: Serve) -> None:
    silent = serve(lambda _, connection: read_to_the_end(connection))
    with closing(OnlyFans(silent.url.replace("http:", "https:"))) as channel:
        outcome = send(channel, timeout_s=0.5)
    assert (outcome.kind, outcome.left) == (OutcomeKind.UNAVAILABLE, False)
    assert outcome.error == f"timed out while connecting to 127.0.0.1 ({silent.url[7:]}: its TLS handshake did not end)"
    assert silent.ended.acquire(timeout=10)


def test_what_was_given_up_over_tls_is_not_delivered_later(serve: Serve, server_tls: ssl.SSLContext) -> None:
    given_up = threading.Event()
    heard: list[int] = []

    def read_late(_: Peer, connection: socket.socket) -> None:
        given_up.wait(30)
        heard.append(read_to_the_end(connection))

    peer = serve(read_late, server_tls)
    with closing(OnlyFans(peer.url)) as channel:
        outcome = send(channel, claim(content="x" * VERY_LONG), timeout_s=1)
    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "timed out")
    given_up.set()
    assert peer.ended.acquire(timeout=30)
    assert all(count < VERY_LONG for count in heard)
