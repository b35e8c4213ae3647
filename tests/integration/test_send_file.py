"""`deploy.send` against the API over HTTP, with whatever may lie between the two."""

import io
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from api.app import create_app
from deploy import send
from deploy.send import SUBJECT, Messages, Sender, SendFailed
from ratelimit import Limits
from tests.conftest import ALICE
from workers.bootstrap import Adapters

TEN = "".join(f'{{"recipientId":"fan-{n}","content":"Hello {n}"}}\n' for n in range(10)).encode()


def read(data: bytes, name: str, **defaults: str) -> Messages:
    return send.read(io.BytesIO(data), name, **defaults)


class Wire:
    """The API behind a real socket. faults: what befalls the next requests; a status, or "cut" after it was served."""

    def __init__(self, adapters: Adapters) -> None:
        self.faults: deque[int | str] = deque()
        self.keys: list[str] = []
        wire, client = self, create_app(adapters).test_client()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.give(client.get(self.path, headers=list(self.headers.items())))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                wire.keys.append(self.headers["Idempotency-Key"])
                fault = wire.faults.popleft() if wire.faults else None
                if isinstance(fault, int):
                    self.send_response(fault)
                    self.send_header("Location" if fault < 400 else "Retry-After", "7")
                    self.end_headers()
                    return
                answer = client.post(self.path, data=body, headers=list(self.headers.items()))
                if fault == "cut":
                    self.close_connection = True
                    return
                self.give(answer)

            def give(self, answer: Any) -> None:
                self.send_response(answer.status_code)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def wire(adapters: Adapters) -> Iterator[Wire]:
    wire = Wire(adapters)
    yield wire
    wire.server.shutdown()
    wire.server.server_close()


@pytest.fixture
def sender(wire: Wire, bearer: Callable[..., dict[str, str]]) -> Callable[..., Sender]:
    """Someone who starts `paceline send`, and has no time to wait: `waits` says what they did not."""

    def make(run: str = "a file") -> Sender:
        token = bearer(subject=SUBJECT)["Authorization"].removeprefix("Bearer ")
        sender = Sender(wire.url, token, run)
        sender.waits, sender.words = [], []  # type: ignore[attr-defined]
        sender.wait, sender.say = sender.waits.append, sender.words.append  # type: ignore[attr-defined]
        return sender

    return make


def queued(adapters: Adapters) -> list[str]:
    return [row["recipient_id"] for row in adapters.db.all("SELECT recipient_id FROM messages ORDER BY seq")]


FANS = [f"fan-{n}" for n in range(10)]
Make = Callable[..., Sender]


def test_a_file_goes_in_lists_one_after_the_other(sender: Make, wire: Wire, adapters: Adapters) -> None:
    steps: list[int] = []
    sent = sender().send(read(TEN, "f"), 4, steps.append)
    assert (sent.queued, sent.again, steps) == (10, 0, [4, 4, 2])
    assert sent.done_at is not None
    assert queued(adapters) == FANS
    assert len(set(wire.keys)) == 3


def test_again_it_queues_nothing_and_under_another_name_all(sender: Make, adapters: Adapters) -> None:
    sender().send(read(TEN, "f"), 4)
    again = sender().send(read(TEN, "f"), 4)
    assert (again.queued, again.again, queued(adapters)) == (10, 10, FANS)
    assert sender("another file").send(read(TEN, "f"), 4).again == 0
    assert queued(adapters) == FANS * 2


def test_an_answer_that_got_lost_is_asked_for_again(sender: Make, wire: Wire, adapters: Adapters) -> None:
    wire.faults += [502, "cut", "cut"]
    sent = sender().send(read(TEN, "f"), 4)
    assert (sent.queued, sent.again) == (10, 0)
    assert queued(adapters) == FANS
    assert len(set(wire.keys[:4])) == 1


def test_it_waits_for_as_long_as_it_is_told(sender: Make, wire: Wire, adapters: Adapters) -> None:
    wire.faults += [429, 503]
    someone = sender()
    someone.send(read(TEN, "f"), 10)
    assert someone.waits == [7, 7]  # type: ignore[attr-defined]
    assert someone.words == ["waiting 7 s: 429 Too Many Requests", "waiting 7 s: 503 Service Unavailable"]  # type: ignore[attr-defined]
    assert queued(adapters) == FANS


def test_an_api_that_never_answers_is_given_up(sender: Make, wire: Wire, adapters: Adapters) -> None:
    wire.faults += [500, 500]
    someone = sender()
    someone.give_up_after_s = 0.0
    with pytest.raises(SendFailed, match="does not answer: HTTP Error 500"):
        someone.send(read(TEN, "f"), 10)
    assert queued(adapters) == []


def test_a_full_queue_is_waited_for(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    full = with_settings(max_queue_depth=6, rate_limit=Limits.parse("1/hour"))
    wire = Wire(full)
    token = bearer(subject=SUBJECT)["Authorization"].removeprefix("Bearer ")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        full.db.all("UPDATE messages SET state = 'cancelled', ended_at = now() WHERE state IN ('queued', 'held')")

    sent = Sender(wire.url, token, "a file", wait=wait).send(read(TEN, "f"), 5)
    wire.server.shutdown()
    wire.server.server_close()
    # Four too many: the first of the waiting ones may go at once, the fourth in three hours.
    assert sent.queued == 10
    assert [round(seconds / 3600) for seconds in waits] == [3]


def test_a_full_queue_of_a_paused_account_is_said_and_not_waited_for(
    with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]]
) -> None:
    full = with_settings(max_queue_depth=6)
    wire = Wire(full)
    full.accounts().pause("default", reason="Holidays", until=None, by=ALICE)
    token = bearer(subject=SUBJECT)["Authorization"].removeprefix("Bearer ")

    def wait(_: float) -> None:
        raise AssertionError("waits for a queue that does not move")

    sender = Sender(wire.url, token, "a file", wait=wait)
    try:
        with pytest.raises(SendFailed, match=r"^lines 6 to 10 do not fit: Account default .*\(Holidays\)"):
            sender.send(read(TEN, "f"), 5)
        full.accounts().resume("default", by=ALICE)
        with pytest.raises(AssertionError, match="does not move"):
            sender.send(read(TEN, "f"), 5)
    finally:
        wire.server.shutdown()
        wire.server.server_close()


def test_what_is_waited_for_is_said_once(sender: Make, wire: Wire, adapters: Adapters) -> None:
    wire.faults += [429, 429, 429, 503]
    someone = sender()
    someone.send(read(TEN, "f"), 10)
    assert someone.words == ["waiting 7 s: 429 Too Many Requests", "waiting 7 s: 503 Service Unavailable"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_loopback(
    sender: Make, adapters: Adapters, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    sender().send(read(TEN, "f"), 10)
    assert queued(adapters) == FANS


def test_a_redirect_is_not_followed(sender: Make, wire: Wire, adapters: Adapters) -> None:
    wire.faults += [302]
    with pytest.raises(SendFailed, match="the API's address redirects to 7; give that as --url"):
        sender().send(read(TEN, "f"), 10)
    assert queued(adapters) == []


def test_an_answer_that_is_not_ours_is_told(bearer: Callable[..., dict[str, str]]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"hello": "world"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        with pytest.raises(SendFailed, match="does not answer as Paceline does"):
            Sender(f"http://127.0.0.1:{server.server_port}", "token", "a file").send(read(TEN, "f"), 10)
    finally:
        server.shutdown()
        server.server_close()


def test_a_list_that_has_changed_since_is_not_queued_again(sender: Make, wire: Wire, adapters: Adapters) -> None:
    sender().send(read(TEN, "f"), 4)
    mended = TEN.replace(b"Hello 5", b"Hullo 5")
    someone = sender()
    with pytest.raises(SendFailed, match=r"^some of lines 5 to 8 were queued before, in a list that was another then"):
        someone.send(read(mended, "f"), 4)
    assert someone.sent.queued == 4
    assert queued(adapters) == FANS
    with pytest.raises(SendFailed, match="some of lines 1 to 5 were queued before"):
        sender().send(read(TEN, "f"), 5)


def test_what_the_api_refuses_is_told_by_line(sender: Make, adapters: Adapters) -> None:
    past = TEN + b'\n{"recipientId":"fan-x","content":"x","expiresAt":"2020-01-01T00:00:00Z"}\n'
    someone = sender()
    with pytest.raises(SendFailed) as refused:
        someone.send(read(past, "f"), 4)
    assert str(refused.value).splitlines() == [
        "lines 9 to 12 were refused: The request is not valid; see details",
        "line 12: expiresAt: Is in the past; leave it out or choose a later time.",
    ]
    assert queued(adapters) == FANS[:8]
    with pytest.raises(SendFailed, match="line 1: accountId: No account nobody"):
        sender("another file").send(read(TEN, "f", accountId="nobody"), 4)


def test_nobody_there_is_said_and_asked_again(sender: Make, wire: Wire) -> None:
    wire.server.shutdown()
    wire.server.server_close()
    someone = sender()

    def wait(_: float) -> None:
        someone.give_up_after_s = 0.0

    someone.wait = wait
    with pytest.raises(SendFailed, match=r"does not answer: .*Connection refused"):
        someone.send(read(TEN, "f"), 10)
    [said] = someone.words  # type: ignore[attr-defined]
    assert said.startswith("no answer (")


def test_a_token_that_is_none_is_said_at_once(wire: Wire, adapters: Adapters) -> None:
    with pytest.raises(SendFailed, match="lines 1 to 10 were refused: Not authenticated"):
        Sender(wire.url, "nonsense", "a file").send(read(TEN, "f"), 10)
