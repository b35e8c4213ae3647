"""How a connection to an upstream comes about: names, addresses, slow and silent ones, and what is said of it."""

import asyncio
import random
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ALICE
from tests.integration.peers import Authority, Peer, Swallows, answer_all, answering, broken, hear, loop, run
from workers.bootstrap import Adapters
from workers.channels.http.addresses import Addresses
from workers.channels.http.exchange import Answer, NoAnswer, NotSent, TooLate
from workers.channels.http.proxy import Proxy
from workers.channels.http.transport import LATE_DIALS, Transport
from workers.channels.http.upstream import Network, Upstream
from workers.channels.onlyfans import OnlyFans
from workers.clock import monotonic_s
from workers.services.submit import Receipt
from workers.store import queries

Serve = Callable[..., Peer]


@pytest.fixture(autouse=True)
def nothing_breaks_unheard() -> Iterator[None]:
    broken.clear()
    yield
    run(asyncio.sleep(0))
    assert broken == []


@pytest.fixture
def serve() -> Iterator[Serve]:
    peers: list[Peer] = []

    def make(handle: Callable[[Peer, socket.socket], object] = answer_all, **more: Any) -> Peer:
        peers.append(Peer(handle, **more))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture
def swallows() -> Iterator[Callable[..., Swallows]]:
    made: list[Swallows] = []

    def make(host: str, port: int = 0) -> Swallows:
        made.append(Swallows(host, port))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Names:
    """A name server's part: `upstream.test` has these addresses. asked: the names it was asked for."""

    def __init__(self, *hosts: str) -> None:
        self.hosts, self.asked = list(hosts), [""][:0]

    def __call__(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in self.hosts]


def say_nothing(_: Peer, connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def to(url: str, names: Callable[..., list[tuple[Any, ...]]] | None = None, **network: Any) -> Transport:
    """A transport to the upstream, which has a name of its own if `names` knows it."""
    if names is not None:
        network["addresses"] = Addresses(names)
        url = f"{url.partition('//')[0]}//upstream.test:{url.rpartition(':')[2]}"
    return Transport(Upstream.at(url, Network(**network)), connections=8)


def begin(transport: Transport, *, timeout_s: float = 5, **more: Any) -> "Future[Answer]":
    work = transport.request("POST", "/", headers={}, body=b"{}", timeout_s=timeout_s, **more)
    return asyncio.run_coroutine_threadsafe(work, loop())


def send(transport: Transport, **more: Any) -> bytes:
    return begin(transport, **more).result(30).body


def why_not(transport: Transport, **more: Any) -> str:
    with pytest.raises(NotSent) as refused:
        send(transport, **more)
    assert not isinstance(refused.value, TooLate)
    return str(refused.value)


# --- addresses


def test_an_address_that_swallows_packets_costs_a_quarter_of_a_second_and_only_once(
    serve: Serve, swallows: Callable[..., Swallows]
) -> None:
    peer = serve()
    swallows("127.0.0.2", peer.port)
    with closing(to(peer.url, Names("127.0.0.2", "127.0.0.1"))) as transport:
        began = time.monotonic()
        assert send(transport) == b'{"id": 1}'
        assert 0.25 <= time.monotonic() - began < 2
        first, *_ = run(transport._upstream.addresses.of("upstream.test", peer.port))
        assert first.where == ("127.0.0.1", peer.port)


def test_where_connections_take_long_the_next_address_is_tried_later(serve: Serve, tmp_path: Path) -> None:
    """Or every one of many messages would open a connection to each address."""
    authority = Authority(tmp_path)
    tls = authority.server_tls("upstream.test")
    slow = {"tls": tls, "before_tls": lambda: time.sleep(0.4)}
    peer = serve(**slow)
    other = serve(**slow, host="127.0.0.2", port=peer.port)
    names = Names("127.0.0.1", "127.0.0.2")
    transport = to(peer.url, names, ca_file=authority.file)
    with closing(transport):
        send(transport)
        assert (peer.connections, other.connections) == (1, 1)  # nothing was known yet
        again = Transport(transport._upstream, connections=1)
        with closing(again):
            send(again)
        assert (peer.connections, other.connections) == (2, 1)


def test_an_address_that_swallows_packets_costs_no_attempt(
    adapters: Adapters, submit: Callable[..., Receipt], serve: Serve, swallows: Callable[..., Swallows]
) -> None:
    peer = serve()
    swallows("127.0.0.2", peer.port)
    network = Network(addresses=Addresses(Names("127.0.0.2", "127.0.0.1")))
    with closing(OnlyFans(f"http://upstream.test:{peer.port}", network=network)) as channel:
        receipts = [submit(f"fan-{n}") for n in range(5)]
        replace(adapters.dispatcher(worker=1), channels={"onlyfans": channel}).drain("default")
    for receipt in receipts:
        assert [attempt["outcome"] for attempt in queries.attempts(adapters.db, receipt.message_id)] == ["accepted"]


def test_an_address_where_nobody_listens_costs_nothing(serve: Serve) -> None:
    peer = serve()
    with closing(to(peer.url, Names("127.0.0.2", "127.0.0.3", "127.0.0.1"))) as transport:
        began = time.monotonic()
        send(transport)
        assert time.monotonic() - began < 0.25


def test_an_address_that_takes_connections_and_says_nothing_is_passed_over(serve: Serve, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    peer = serve(tls=authority.server_tls("upstream.test"))
    silent = serve(say_nothing, host="127.0.0.2", port=peer.port)
    with closing(to(peer.url, Names("127.0.0.2", "127.0.0.1"), ca_file=authority.file)) as transport:
        assert send(transport) == b'{"id": 1}'
        assert silent.ended.acquire(timeout=10)  # it is not left open


def test_all_addresses_of_a_name_share_one_deadline_and_each_is_told(swallows: Callable[..., Swallows]) -> None:
    port = swallows("127.0.0.2").where[1]
    swallows("127.0.0.3", port)
    with closing(to(f"http://x:{port}", Names("127.0.0.2", "127.0.0.3", "127.0.0.4"))) as transport:
        began = time.monotonic()
        words = why_not(transport, timeout_s=0.8)
        assert 0.7 < time.monotonic() - began < 2
    assert words == (
        f"timed out while connecting to upstream.test (127.0.0.2:{port}: no answer;"
        f" 127.0.0.3:{port}: no answer; 127.0.0.4:{port}: connection refused)"
    )


def test_of_many_addresses_the_first_are_told(serve: Serve) -> None:
    with closing(to("http://x:1", Names(*(f"127.0.0.{n}" for n in range(2, 12))))) as transport:
        words = why_not(transport)
    assert words.startswith("cannot connect to upstream.test (127.0.0.2:1: connection refused; 127.0.0.3:1:")
    assert words.endswith("and 7 more addresses)")


def test_addresses_are_asked_for_again_once_none_of_them_works(serve: Serve) -> None:
    peer, names = serve(), Names("127.0.0.2")
    with closing(to(peer.url, names)) as transport:
        why_not(transport)
        names.hosts = ["127.0.0.1"]
        assert send(transport) == b'{"id": 1}'
        assert len(names.asked) == 2


def test_addresses_are_kept_for_a_moment(serve: Serve) -> None:
    def answer_once(_: Peer, connection: socket.socket) -> None:
        hear(connection)
        connection.sendall(answering(b"{}", headers="Connection: close\r\n"))

    peer, names = serve(answer_once), Names("127.0.0.1")
    with closing(to(peer.url, names)) as transport:
        for _ in range(3):
            send(transport)
    assert (peer.connections, len(names.asked)) == (3, 1)


def test_a_name_server_that_does_not_answer_has_one_thread_and_nobody_else_waits(serve: Serve) -> None:
    answers, peer = threading.Event(), serve()
    asked: list[str] = []

    def slow(host: str, port: int, **more: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        if host == "upstream.test":
            answers.wait(30)
        return socket.getaddrinfo("127.0.0.1", port, **more)

    network = Network(addresses=Addresses(slow))
    stuck = Transport(Upstream.at(f"http://upstream.test:{peer.port}", network), connections=1)
    others = Transport(Upstream.at(f"http://other.test:{peer.port}", network), connections=1)
    with closing(stuck), closing(others):
        waiting = [begin(stuck, timeout_s=0.5) for _ in range(50)]
        assert send(others) == b'{"id": 1}'
        for one in waiting:
            with pytest.raises(NotSent, match=r"^timed out while looking up the name upstream\.test$"):
                one.result(10)
        sending = begin(stuck)
        answers.set()
        assert sending.result(10).body == b'{"id": 2}'
    assert asked.count("upstream.test") == 1


def test_a_name_that_is_not_found_is_said_to_be() -> None:
    def unknown(*_: object, **__: object) -> list[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with closing(to("http://x:1", unknown)) as transport:
        assert why_not(transport) == "cannot look up the name upstream.test: Name or service not known"


def test_a_name_that_cannot_be_one_breaks_nothing() -> None:
    host = "a" * 64 + ".test"
    with closing(Transport(Upstream.at(f"http://{host}:1"), connections=1)) as transport:
        assert why_not(transport).startswith(f"cannot look up the name {host}: ")


# --- slow ones


class Gate:
    """Lets TLS handshakes begin, one for each `open`."""

    def __init__(self) -> None:
        self._semaphore = threading.Semaphore(0)

    def open(self, count: int = 1) -> None:
        self._semaphore.release(count)

    def wait(self) -> None:
        self._semaphore.acquire(timeout=30)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open(100)


@pytest.fixture
def slow(serve: Serve, gate: Gate, tmp_path: Path) -> Iterator[tuple[Peer, Transport]]:
    """An upstream whose handshakes wait at the gate."""
    authority = Authority(tmp_path)
    peer = serve(tls=authority.server_tls("127.0.0.1"), before_tls=gate.wait)
    with closing(to(peer.url, ca_file=authority.file)) as transport:
        yield peer, transport


def test_a_connection_may_take_longer_than_a_call_may_be_late(slow: tuple[Peer, Transport], gate: Gate) -> None:
    """`start_by_s` is for the beginning of the exchange: what comes after may take as long as the exchange may."""
    _, transport = slow
    sending = begin(transport, start_by_s=monotonic_s() + 0.2, timeout_s=10)
    time.sleep(0.4)
    gate.open()
    assert sending.result(10).body == b'{"id": 1}'


def test_what_begins_too_late_does_not_even_connect(slow: tuple[Peer, Transport]) -> None:
    peer, transport = slow
    with pytest.raises(TooLate):
        send(transport, start_by_s=monotonic_s() - 0.001)
    assert peer.connections == 0


def test_a_connection_that_comes_too_late_for_its_call_serves_the_next(
    slow: tuple[Peer, Transport], gate: Gate
) -> None:
    peer, transport = slow
    assert "its TLS handshake did not end" in why_not(transport, timeout_s=0.2)
    gate.open()
    wait_for(lambda: bool(transport._idle))
    assert send(transport) == b'{"id": 1}'
    assert peer.connections == 1


def test_a_connection_that_was_never_used_is_kept_until_the_upstream_is_tried_again(
    slow: tuple[Peer, Transport], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than one that was used, which a server may be about to close."""
    monkeypatch.setattr("workers.channels.http.transport.IDLE_S", -1.0)
    peer, transport = slow
    why_not(transport, timeout_s=0.2)
    gate.open()
    wait_for(lambda: bool(transport._idle))
    assert send(transport) == b'{"id": 1}'
    gate.open()
    assert send(transport) == b'{"id": 2}'  # the first one has been used
    assert peer.connections == 2


def test_a_call_that_waits_takes_a_connection_that_another_no_longer_needs(
    slow: tuple[Peer, Transport], gate: Gate
) -> None:
    peer, transport = slow
    why_not(transport, timeout_s=0.2)
    sending = begin(transport, timeout_s=10)
    wait_for(lambda: peer.connections == 2)
    gate.open()  # for the first
    assert sending.result(10).body
    assert len(transport._dials) == 1


def test_few_connections_are_made_for_calls_that_have_ended(slow: tuple[Peer, Transport]) -> None:
    peer, transport = slow
    calls = [begin(transport, timeout_s=0.3) for _ in range(20)]
    for call in calls:
        with pytest.raises(NotSent):
            call.result(10)
    wait_for(lambda: len(transport._dials) == LATE_DIALS)
    transport.close()
    wait_for(lambda: not transport._dials)
    assert peer.connections == 20


def test_a_call_whose_own_connection_fails_is_told_so_though_others_still_wait(serve: Serve) -> None:
    refuse = threading.Event()

    def names(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        refuse.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with closing(to("http://x:1", names)) as transport:
        calls = [begin(transport) for _ in range(3)]
        refuse.set()
        for call in calls:
            with pytest.raises(NotSent, match="Temporary failure in name resolution"):
                call.result(10)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_loop_that_ends_leaves_no_connection_half_made(slow: tuple[Peer, Transport]) -> None:
    """As a look-up's does: it has a loop of its own."""
    peer, _ = slow
    made, heard = asyncio.new_event_loop(), [{}][:0]
    made.set_exception_handler(lambda _, context: heard.append(context))
    transport = Transport(Upstream.at(peer.url), connections=1)
    with pytest.raises(NotSent):
        made.run_until_complete(transport.request("GET", "/", headers={}, timeout_s=0.2))
    transport.close()
    assert not asyncio.all_tasks(made)
    made.close()
    assert heard == []


def test_whatever_becomes_of_calls_each_has_its_own_answer_and_nothing_is_left_open(
    serve: Serve, tmp_path: Path
) -> None:
    """Connections and answers that take any time, deadlines shorter than that, and calls that are cancelled."""
    chance = random.Random(7)

    def echo(_: Peer, connection: socket.socket) -> None:
        while request := hear(connection):
            time.sleep(chance.choice([0, 0, 0.02, 0.3]))
            connection.sendall(answering(request.partition(b"X-Call: ")[2].partition(b"\r\n")[0]))

    def slowly() -> None:
        time.sleep(chance.choice([0, 0.05, 0.1, 0.15]))

    async def call(number: int) -> bool:
        wanted = transport.request(
            "GET", "/", headers={"X-Call": str(number)}, timeout_s=chance.choice([0.05, 0.1, 0.2, 5])
        )
        if chance.random() < 0.2:
            wanted = asyncio.wait_for(wanted, chance.choice([0, 0.01, 0.1]))
        try:
            answer = await wanted
        except (NotSent, NoAnswer, TimeoutError):
            return False
        assert answer.body == str(number).encode()
        return True

    async def call_all() -> int:
        calls = []
        for number in range(400):
            calls.append(asyncio.ensure_future(call(number)))
            await asyncio.sleep(chance.choice([0, 0, 0.01]))
        return sum(await asyncio.gather(*calls))

    authority = Authority(tmp_path)
    peer = serve(echo, tls=authority.server_tls("127.0.0.1"), before_tls=slowly)
    with closing(to(peer.url, ca_file=authority.file)) as transport:
        assert 100 < run(call_all()) < 400
        assert not transport._waiting
    for _ in range(peer.connections):
        assert peer.ended.acquire(timeout=10)
    wait_for(lambda: not transport._dials and not transport._idle)


# --- what is said of it


def test_a_certificate_that_is_not_trusted_is_said_to_be(serve: Serve, tmp_path: Path) -> None:
    peer = serve(tls=Authority(tmp_path).server_tls("127.0.0.1"))
    with closing(to(peer.url)) as transport:
        words = why_not(transport)
    assert words.startswith(f"cannot connect to 127.0.0.1 (127.0.0.1:{peer.port}: its TLS certificate is not trusted: ")
    assert words.endswith("unable to get local issuer certificate (CERTIFICATE_VERIFY_FAILED))")


def test_something_that_does_not_speak_tls_is_said_not_to(serve: Serve) -> None:
    def answer_in_plain(_: Peer, connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(answering(b"this is HTTP", "400 Bad Request"))

    peer = serve(answer_in_plain)
    with closing(to(peer.url.replace("http:", "https:"))) as transport:
        assert "the TLS handshake failed: " in why_not(transport)


def test_what_hangs_up_during_the_handshake_is_said_to(serve: Serve) -> None:
    peer = serve(lambda _, connection: connection.recv(100_000))
    with closing(to(peer.url.replace("http:", "https:"))) as transport:
        assert "hung up during the TLS handshake" in why_not(transport)


# --- certificates


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["ours", "another's", None])
def test_an_upstream_may_ask_for_a_certificate(
    serve: Serve, tmp_path: Path, version: ssl.TLSVersion, shown: str | None
) -> None:
    """If it does not accept what it is shown, nothing was sent: in TLS 1.3 too, where it says so after we began."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    tls = authority.server_tls("127.0.0.1")
    tls.maximum_version, tls.verify_mode = version, ssl.CERT_REQUIRED
    tls.load_verify_locations(authority.file)
    certificate, key = (authority if shown == "ours" else stranger).sign("paceline") if shown else (None, None)
    peer = serve(tls=tls)
    network = {"ca_file": authority.file, "client_certificate": certificate, "client_key": key}
    with closing(to(peer.url, **network)) as transport:
        if shown == "ours":
            assert send(transport) == b'{"id": 1}'
        else:
            assert "ALERT" in why_not(transport)


def test_a_key_may_be_in_the_file_of_its_certificate(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).sign("paceline")
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert Network(client_certificate=certificate).tls()


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).sign("paceline", password=b"secret")
    with pytest.raises(ssl.SSLError):
        Network(client_certificate=certificate, client_key=key).tls()


# --- through a proxy


class ConnectProxy(Peer):
    """An HTTP proxy that leads every name to one port of this machine. asked: the heads of what it was asked."""

    def __init__(self, port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.asked, self._to, self._answer = [b""][:0], port, answer
        super().__init__(lambda _, connection: self._lead(connection))

    def _lead(self, connection: socket.socket) -> None:
        self.asked.append(hear(connection))
        connection.sendall(self._answer)
        if b" 200 " not in self._answer.partition(b"\r\n")[0]:
            return
        with socket.create_connection(("127.0.0.1", self._to)) as upstream:
            back = threading.Thread(target=_copy, args=[upstream, connection], daemon=True)
            back.start()
            _copy(connection, upstream)
            back.join(10)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def lead_to() -> Iterator[Callable[..., ConnectProxy]]:
    made: list[ConnectProxy] = []

    def make(port: int = 1, **more: Any) -> ConnectProxy:
        made.append(ConnectProxy(port, **more))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


def through(proxy: Peer, authority: Authority | None = None, user: str = "", no_proxy: str = "") -> Transport:
    """To `https://api.example.com`, a name that only the proxy can make anything of."""
    network = Network(
        ca_file=authority and authority.file,
        https_proxy=Proxy.at(f"http://{user}127.0.0.1:{proxy.port}"),
        no_proxy=no_proxy,
    )
    return Transport(Upstream.at("https://api.example.com", network), connections=8)


def test_an_upstream_is_reached_through_the_proxy(
    serve: Serve, lead_to: Callable[..., ConnectProxy], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    peer = serve(tls=authority.server_tls("api.example.com"))
    proxy = lead_to(peer.port)
    with closing(through(proxy, authority, user="us%40er:pass%3Aword@")) as transport:
        assert [send(transport) for _ in range(3)] == [b'{"id": 1}'] * 3
    credentials = b64encode(b"us@er:pass:word").decode()
    assert [head.decode().splitlines() for head in proxy.asked] == [
        [
            "CONNECT api.example.com:443 HTTP/1.1",
            "Host: api.example.com:443",
            f"Proxy-Authorization: Basic {credentials}",
        ]
    ]


def test_the_upstreams_certificate_counts_and_not_the_proxys(
    serve: Serve, lead_to: Callable[..., ConnectProxy], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    peer = serve(tls=authority.server_tls("127.0.0.1", "proxy.example.com"))
    with closing(through(lead_to(peer.port), authority)) as transport:
        assert "is not valid for 'api.example.com'" in why_not(transport)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
            "the proxy answered CONNECT with 407 Proxy Authentication Required",
        ),
        (b"HTTP/1.1 502\r\n\r\n", "the proxy answered CONNECT with 502"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "what the proxy answered to CONNECT is not HTTP"),
        (b"", "the proxy hung up instead of answering CONNECT"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK", "the proxy says more than it was asked"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "the proxy says too much"),
    ],
    ids=["407", "no words", "not HTTP", "nothing", "more", "much"],
)
def test_what_the_proxy_refuses_was_certainly_not_sent(
    lead_to: Callable[..., ConnectProxy], answer: bytes, words: str
) -> None:
    proxy = lead_to(answer=answer)
    with closing(through(proxy, user="user:word@")) as transport:
        said = why_not(transport)
    where = f"127.0.0.1:{proxy.port}"
    assert said == f"cannot connect to api.example.com through the proxy 127.0.0.1 ({where}: {words})"


def test_a_proxy_that_does_not_answer_takes_no_longer_than_the_deadline(serve: Serve) -> None:
    with closing(through(serve(say_nothing))) as transport:
        assert "the proxy did not answer CONNECT" in why_not(transport, timeout_s=0.3)


def test_a_proxy_that_is_not_there_is_said_not_to_be() -> None:
    network = Network(https_proxy=Proxy("127.0.0.1", 1))
    with closing(Transport(Upstream.at("https://api.example.com", network), connections=1)) as transport:
        words = why_not(transport)
    assert words == "cannot connect to api.example.com through the proxy 127.0.0.1 (127.0.0.1:1: connection refused)"


@pytest.mark.parametrize(
    "base_url", ["https://localhost:9", "https://127.0.0.1:9", "https://[::1]:9", "http://api.example.com"]
)
def test_this_machine_and_plain_http_are_reached_without_it(base_url: str) -> None:
    assert Upstream.at(base_url, Network(https_proxy=Proxy("proxy", 3128))).proxy is None


def test_what_no_proxy_names_is_reached_without_it(serve: Serve, tmp_path: Path) -> None:
    network = Network(https_proxy=Proxy("proxy", 3128), no_proxy=".example.com")
    assert Upstream.at("https://api.example.com", network).proxy is None
    assert Upstream.at("https://example.org", network).proxy == Proxy("proxy", 3128)


def test_settings_reach_the_upstream(
    with_settings: Callable[..., Adapters], serve: Serve, lead_to: Callable[..., ConnectProxy], tmp_path: Path
) -> None:
    """From the environment to the message: a proxy, an authority and a certificate of our own."""
    authority = Authority(tmp_path)
    certificate, key = authority.sign("paceline")
    tls = authority.server_tls("api.example.com")
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(authority.file)
    proxy = lead_to(serve(tls=tls).port)
    adapters = with_settings(
        onlyfans={"base_url": "https://api.example.com"},
        https_proxy=f"http://user:word@127.0.0.1:{proxy.port}",
        upstream_ca_file=authority.file,
        upstream_client_cert=certificate,
        upstream_client_key=key,
    )
    receipt = adapters.submitter().submit({"recipient_id": "fan-1", "content": "Hello"}, "default", by=ALICE)
    adapters.dispatcher(worker=1).drain("default")
    row = queries.message(adapters.db, receipt.message_id, None)
    assert row is not None
    assert row["state"] == "sent"
    assert len(proxy.asked) == 1
