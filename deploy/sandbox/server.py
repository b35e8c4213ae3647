"""The sandbox on the wire: sockets, threads, HTTP/1.1 with keep-alive, and misbehaviour as a client feels it.

Promises that a request is judged only once it has been read to its end, at the time of the clock read inside
the one lock; that a request cut off on its way here leaves no trace; and that after `stop` the ledger stays
as it is. Leaves every decision to `ledger` and `faults`.

http.server and not a framework, because a cut needs the socket. Head and body leave in one send.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from operator import attrgetter
from socketserver import TCPServer
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from deploy.sandbox.chats import AS_SENT, Chats, user_of
from deploy.sandbox.faults import Fault, Faults
from deploy.sandbox.ledger import Answer, Arrival, Ledger, summarize
from deploy.sandbox.message import Message, parse_message, parse_object

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
STOP_WITHIN_S: Final = 0.8
"""How long `stop` waits for the connections it has cut to be seen off by their threads."""
ANSWER_FIRST_S: Final = 0.1
"""Before an outage begins, so that whoever asked for it hears that it will."""
LONGEST_OUTAGE_S: Final = 3600
SWITCHES: Final[Mapping[str, str]] = {
    "enforce": "ledger.enforce",
    "idempotent": "ledger.idempotent",
    "keeps_refusals": "ledger.keeps_refusals",
    "keeps": "ledger.chats.keeps",
    "authors": "ledger.chats.authors",
    "history": "history",
    "history_hangs": "history_hangs",
    "latency_ms": "latency_ms",
}
"""The attributes of a `Sandbox` that may be changed while it runs, by the names that the control API has for them."""


def _is_keeps(value: object) -> bool:
    return isinstance(value, str) and bool(Chats(value))  # ValueError, with the reason, if there is no such way


_POSITIONS: Final[Mapping[str, Callable[[Any], bool]]] = dict.fromkeys(
    SWITCHES, lambda value: isinstance(value, bool)
) | {
    "keeps": _is_keeps,
    "history_hangs": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "latency_ms": lambda value: type(value) in (int, float) and value >= 0,
}


class Sandbox:
    """An upstream for tests and the demo, in threads of this process.

        with Sandbox(limits="10/2s") as upstream:
            upstream.faults.add(Fault("cut", times=1))
            ...                                       # send to upstream.url
            assert upstream.summary()["duplicates"] == 0

    The attributes named in SWITCHES may be changed while it runs, and so may `away`. Stopped and started again it is
    the same upstream back from an outage: same port, same ledger.
    """

    def __init__(
        self,
        limits: str = "10/minute",
        *,
        enforce: bool = True,
        idempotent: bool = True,
        keeps_refusals: bool = False,
        history: bool = True,
        keeps: str = AS_SENT,
        authors: bool = True,
        latency_ms: float = 0,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        chats = Chats(keeps, authors=authors)
        self.ledger = Ledger(limits, enforce=enforce, idempotent=idempotent, keeps_refusals=keeps_refusals, chats=chats)
        self.faults = Faults(seed)
        self.history = history
        self.history_hangs: Collection[str] = ()
        """The chats, and the API keys, whose history is asked for and never answered."""
        self.latency_ms = latency_ms
        self.away: Fault | None = None
        """What every request meets, whatever it asks for; None: the upstream is there. Must accept nothing."""
        self.host = host
        self.port = port
        self._lock = threading.Lock()
        self._started_ns = time.monotonic_ns()
        self._media = count(1)
        self._server: _Server | None = None
        self._stopped = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens, for ONLYFANS_BASE_URL. With port 0 the port is known from `start` on."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> Sandbox:
        """Listen, and answer from threads of its own."""
        self._stopped.clear()
        self._server = _Server(self)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="sandbox", daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop within a second, cutting whatever is connected: idle, hanging or half answered."""
        self._stopped.set()
        self._hang_up()

    def go_away(self, for_s: float, fault: Fault | None = None) -> None:
        """An outage, from a moment from now on, for so long.

        Without a fault everything connected is cut, and nobody can connect. With one, which must accept nothing, every
        request meets it: `Fault("status", retry_after_s=5)` is a 503 with Retry-After, and `Fault("swallow")` connects
        and says nothing.
        """
        if fault is not None and fault.accepts:
            raise ValueError("an upstream that is away accepts nothing: status, cut_before or swallow")

        def outage() -> None:
            if self._stopped.wait(ANSWER_FIRST_S):
                return
            if fault is None:
                self._hang_up()
            else:
                self.away = fault
            if self._stopped.wait(for_s):
                return
            if fault is None:
                self.start()
            elif self.away is fault:  # not replaced meanwhile by another outage
                self.away = None

        threading.Thread(target=outage, name="outage", daemon=True).start()

    def _hang_up(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def receive(self, message: Message, held: Fault | None = None) -> Answer:
        """Judge a request that has just been read, or that has been `held` long enough. The only place where a message
        meets the clock."""
        with self._lock:
            return self.ledger.judge(self._arrival(message), self.faults.next_for, held)

    def finish(self, answer: Answer) -> None:
        """End the work on a message that was held with its Idempotency-Key in use."""
        with self._lock:
            self.ledger.finish(answer)

    def turn_away(self, message: Message, fault: Fault) -> Answer:
        """Record a request to send that came while the upstream was away."""
        with self._lock:
            return self.ledger.turn_away(self._arrival(message), fault)

    def fan_says(self, key: str, chat_id: str, text: str) -> dict[str, object]:
        """A message of the recipient's own appears in the chat."""
        with self._lock:
            return self.ledger.write(key, chat_id, text, datetime.now(UTC), by_fan=True)

    def typed_by_hand(self, key: str, chat_id: str, text: str) -> dict[str, object]:
        """A message that the account's user typed somewhere else appears in the chat. It counts in no window."""
        with self._lock:
            return self.ledger.write(key, chat_id, text, datetime.now(UTC), by_fan=False)

    def refuse(self, message: Message, status: int, words: str) -> Answer:
        """Record a request that is no message."""
        with self._lock:
            return self.ledger.refuse(self._arrival(message), status, words)

    def page(self, key: str, chat_id: str, limit: int, before_id: str | None) -> dict[str, object]:
        """A page of a chat's history; ValueError for an unknown id."""
        with self._lock:
            messages, next_id = self.ledger.chats.page(key, chat_id, limit, before_id)
        return {"messages": messages, "next_id": next_id}

    def chats(self, key: str) -> dict[str, object]:
        """The chats of a key."""
        with self._lock:
            return {"chats": self.ledger.chats.of(key)}

    def new_media_id(self) -> str:
        """An id for an uploaded file. The file itself is not kept."""
        return f"media_{next(self._media)}"

    def entries(self, since: int = 0) -> dict[str, object]:
        """The ledger's entries after the nth as JSON shows them, and `last`, to ask with next time."""
        with self._lock:
            entries = self.ledger.entries[since:]
        last = entries[-1].n if entries else since
        return {"entries": [entry.to_json() for entry in entries], "last": last}

    def summary(self) -> dict[str, Any]:
        """The counts and the fullest windows; see `ledger.summarize`."""
        with self._lock:
            entries = self.ledger.entries[:]
        # Counted outside the lock: it must not keep arrivals waiting.
        return summarize(entries, self.ledger.limits)

    def switches(self) -> dict[str, object]:
        """The SWITCHES as they are."""
        switches = {name: attrgetter(path)(self) for name, path in SWITCHES.items()}
        return switches | {"history_hangs": sorted(self.history_hangs)}

    def switch(self, wanted: Mapping[str, object]) -> None:
        """Change some of SWITCHES; ValueError if there is no such switch, or no such position of it."""
        if unknown := wanted.keys() - SWITCHES.keys():
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SWITCHES)}")
        for name, value in wanted.items():
            if not _POSITIONS[name](value):
                raise ValueError(f"{name} cannot be {value!r}")
        for name, value in wanted.items():
            owner, _, attribute = SWITCHES[name].rpartition(".")
            setattr(attrgetter(owner)(self) if owner else self, attribute, value)

    def reset(self) -> None:
        """Forget all that arrived. The faults stay; to recipients who misbehave every message is new."""
        with self._lock:
            self.ledger.clear()
            self.faults.forget()

    def _arrival(self, message: Message) -> Arrival:
        return Arrival(message, time.monotonic_ns() - self._started_ns, datetime.now(UTC))


def serve(
    host: str = "127.0.0.1",
    port: int = 9000,
    *,
    listening: Callable[[str], None] = lambda url: print(f"sandbox {url}", flush=True),
    **options: Any,
) -> None:
    """Run a sandbox in the foreground until SIGTERM or SIGINT; `options` are those of `Sandbox`.

    For the main thread. The signals are blocked and waited for, not handled: a handler could run at any
    instruction, also inside a lock.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        with Sandbox(host=host, port=port, **options) as upstream:
            listening(upstream.url)
            signal.sigwait(signals)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Server(ThreadingHTTPServer):
    """A thread per connection, and a list of the connections, for `stop` to cut."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.stopping = threading.Event()
        self._connections: set[Any] = set()
        self._change = threading.Condition()
        super().__init__((sandbox.host, sandbox.port), _Handler)

    def server_bind(self) -> None:
        """Bind, without HTTPServer's reverse lookup of our own name, which may ask a DNS server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._change:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._change:
            self._connections.discard(request)
            self._change.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error; anything else is a bug of the sandbox's, and is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._change:
            for connection in self._connections:
                with suppress(OSError):  # gone already
                    connection.shutdown(socket.SHUT_RDWR)
            self._change.wait_for(lambda: not self._connections, STOP_WITHIN_S)


class _RefusedError(Exception):
    """Ends a call with an error answer: the status, and words for the caller."""

    def answer(self) -> Answer:
        status, words = self.args
        return Answer(status, {"error": words})


_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_NOT_AUTHENTICATED: Final = (401, "Missing or empty bearer token")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def answer_call(self) -> None:
        """One call, from its first byte to its last."""
        try:
            answer = self._route(self._read_body())
        except _RefusedError as refused:
            answer = refused.answer()
        if not self.path.startswith("/_sandbox/"):
            self._pause(self.server.sandbox.latency_ms / 1000)
        self._play(answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer_call  # noqa: N815 - http.server's names

    # -- in

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        self.close_connection, keep = True, self.close_connection  # unless the body has been read to its end
        if "Transfer-Encoding" in self.headers:
            raise _RefusedError(411, "Send the body with a Content-Length")
        if not (length.isascii() and length.isdecimal()):
            raise _RefusedError(400, "Content-Length is not a number")
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            raise _RefusedError(413, f"The body may have {MAX_BODY_BYTES} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionAbortedError("the client went away before the request was whole")
        self.close_connection = keep
        return body

    def _route(self, body: bytes) -> Answer:
        sandbox = self.server.sandbox
        url = urlsplit(self.path)
        if sandbox.away is not None and not url.path.startswith("/_sandbox/"):
            return self._turn_away(sandbox.away, url.path, body)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        match self.command, [unquote(part) for part in url.path.split("/")[1:]]:
            case "POST", ["chats", "send-message"]:
                return self._send_message(body)
            case "POST", ["medias"]:
                return self._upload(body)
            case "GET", ["chats", chat_id, "messages"] if sandbox.history:
                key, limit = self._key(), _number(query, "limit", 10, least=1, most=100)
                if {key, chat_id} & {*sandbox.history_hangs}:
                    return Answer(200, {}, fault=Fault("hang"))
                with _told_as_400():
                    return Answer(200, sandbox.page(key, chat_id, limit, query.get("next_id")))
            case "GET", ["chats"]:
                return Answer(200, sandbox.chats(self._key()))
            case "GET", ["me"]:
                return Answer(200, user_of(self._key()))
            case method, ["_sandbox", *rest]:
                return self._control(method, rest, query, body)
        raise _RefusedError(404, f"There is no {self.command} {url.path} here")

    def _send_message(self, body: bytes) -> Answer:
        sandbox = self.server.sandbox
        key, idempotency_key = self._bearer(), self.headers.get("Idempotency-Key") or None
        no_message = Message(key, "", "", (), idempotency_key)
        if not key:
            return sandbox.refuse(no_message, *_NOT_AUTHENTICATED)
        try:
            message = parse_message(body, key, idempotency_key)
        except ValueError as problem:
            return sandbox.refuse(no_message, 400, str(problem))
        answer = sandbox.receive(message)
        return self._hold(message, answer, answer.fault) if answer.held and answer.fault else answer

    def _hold(self, message: Message, answer: Answer, fault: Fault) -> Answer:
        """The rest of a request that is not over yet."""
        sandbox = self.server.sandbox
        if not fault.uses_key:
            self._pause(fault.wait_s)
            return sandbox.receive(message, held=fault)
        if fault.kind == "in_use_cut":
            with suppress(OSError):  # the client was quicker
                self.connection.shutdown(socket.SHUT_RDWR)
        try:
            self._pause(fault.wait_s)
        finally:  # an upstream that cuts everybody off still does what it has begun
            sandbox.finish(answer)
        return answer

    def _turn_away(self, fault: Fault, path: str, body: bytes) -> Answer:
        if path != "/chats/send-message":
            headers = {} if fault.retry_after_s is None else {"Retry-After": str(math.ceil(fault.retry_after_s))}
            return Answer(fault.status, {"error": fault.error or "The sandbox is away"}, headers, fault)
        key, idempotency_key = self._bearer(), self.headers.get("Idempotency-Key") or None
        try:
            message = parse_message(body, key, idempotency_key)
        except ValueError:
            message = Message(key, "", "", (), idempotency_key)
        return self.server.sandbox.turn_away(message, fault)

    def _upload(self, body: bytes) -> Answer:
        self._key()
        head = f"Content-Type: {self.headers.get('Content-Type', '')}\r\n\r\n"
        parts = BytesParser(policy=HTTP).parsebytes(head.encode("latin-1") + body).iter_parts()
        if not any(part.get_param("name", header="content-disposition") == "file" for part in parts):
            raise _RefusedError(400, "Send multipart/form-data with a part named file")
        return Answer(200, {"media_id": self.server.sandbox.new_media_id()})

    def _control(self, method: str, path: list[str], query: Mapping[str, str], body: bytes) -> Answer:
        sandbox = self.server.sandbox
        match method, path:
            case "GET", ["health"]:
                return Answer(200, {"status": "ok"})
            case "GET", ["summary"]:
                return Answer(200, sandbox.summary())
            case "GET", ["ledger"]:
                return Answer(200, sandbox.entries(_number(query, "since", 0)))
            case "DELETE", ["ledger"]:
                sandbox.reset()
                return Answer(200, {"status": "emptied"})
            case "POST", ["faults"]:
                with _told_as_400():
                    sandbox.faults.add(Fault.from_json(parse_object(body)))
            case "DELETE", ["faults"]:
                sandbox.faults.clear()
            case "PUT", ["rates"]:
                with _told_as_400():
                    sandbox.faults.set_rates_from_json(parse_object(body))
            case "GET", ["faults"]:
                pass
            case "POST", ["outage"]:
                with _told_as_400():
                    sandbox.go_away(*_outage(parse_object(body)))
            case "GET", ["switches"]:
                return Answer(200, sandbox.switches())
            case "PATCH", ["switches"]:
                with _told_as_400():
                    sandbox.switch(parse_object(body))
                return Answer(200, sandbox.switches())
            case "POST", ["chats", chat_id, "messages"]:
                with _told_as_400():
                    return Answer(200, _write(sandbox, chat_id, parse_object(body)))
            case _:
                raise _RefusedError(404, f"There is no {method} /_sandbox/{'/'.join(path)} here")
        return Answer(200, sandbox.faults.to_json())

    def _bearer(self) -> str:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def _key(self) -> str:
        key = self._bearer()
        if not key:
            raise _RefusedError(*_NOT_AUTHENTICATED)
        return key

    # -- out

    def _play(self, answer: Answer) -> None:
        kind, wait_s = (answer.fault.kind, answer.fault.wait_s) if answer.fault else ("", 0.0)
        body = {name: value for name, value in answer.body.items() if name != "id" or kind != "no_id"}
        content = _encode(body).encode() if kind != "garbage" else b"\x00<html>it works</html>"
        if kind in ("cut", "cut_before", "cut_midway", "late", "hang", "swallow", "in_use_cut"):
            self.close_connection = True
        head = self._head(answer, len(content))
        match kind:
            case "cut" | "cut_before" | "late" | "in_use_cut":
                return
            case "cut_midway":
                self.wfile.write(head + content[: len(content) // 2])
            case "hang" | "swallow":
                self._pause(wait_s)
            case "drip":
                self._drip(head + content, wait_s)
            case _:
                self._pause(wait_s if kind == "delay" else 0)
                self.wfile.write(head + content)

    def _head(self, answer: Answer, length: int) -> bytes:
        lines = [
            f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}",
            f"Date: {self.date_time_string()}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            f"Connection: {'close' if self.close_connection else 'keep-alive'}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _drip(self, answer: bytes, within_s: float) -> None:
        start = time.monotonic()
        for number, byte in enumerate(answer, start=1):
            self._pause(start + within_s * number / len(answer) - time.monotonic())
            self.wfile.write(bytes([byte]))

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self.server.stopping.wait(seconds):
            raise ConnectionAbortedError("the sandbox is stopping")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself has to say against a request: as JSON, not as a page."""
        self.close_connection = True
        self._play(Answer(code, {"error": message or responses.get(code, "Unknown")}))


@contextmanager
def _told_as_400() -> Iterator[None]:
    try:
        yield
    except ValueError as problem:
        raise _RefusedError(400, str(problem)) from problem


def _outage(body: Mapping[str, Any]) -> tuple[float, Fault | None]:
    """How long, and which fault meanwhile, if not a refused connection; ValueError if that makes no sense."""
    for_s = body.get("for_s")
    if type(for_s) not in (int, float) or not 0 < for_s <= LONGEST_OUTAGE_S:  # type: ignore[operator]
        raise ValueError(f"for_s must be a number of seconds, up to {LONGEST_OUTAGE_S}")
    fault = {name: value for name, value in body.items() if name != "for_s"}
    return float(for_s), Fault.from_json(fault) if fault else None  # type: ignore[arg-type]


def _write(sandbox: Sandbox, chat_id: str, body: Mapping[str, object]) -> dict[str, object]:
    """A message that no request brought: {"key", "text", "by": "fan" | "user"}; ValueError if it is none."""
    key, text, by = body.get("key"), body.get("text"), body.get("by", "fan")
    if not (isinstance(key, str) and key and isinstance(text, str) and by in ("fan", "user")):
        raise ValueError('wanted: {"key": an API key, "text": words, "by": "fan" or "user"}')
    return sandbox.fan_says(key, chat_id, text) if by == "fan" else sandbox.typed_by_hand(key, chat_id, text)


def _number(query: Mapping[str, str], name: str, default: int, *, least: int = 0, most: int = 2**63) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise _RefusedError(400, f"{name} must be a whole number from {least} to {most}")
    return int(text)
