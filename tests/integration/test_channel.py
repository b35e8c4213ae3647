"""The onlyfans channel against a real HTTP server: each row of the contract's table, and what may have left."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from deploy.sandbox import Fault, Sandbox
from workers.channels.onlyfans import OnlyFans, outcome_of, retry_after_s
from workers.channels.transport import IDLE_S, Answer
from workers.clock import monotonic_s
from workers.domain.message import Claim
from workers.domain.outcome import Evidence, Outcome, OutcomeKind

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
