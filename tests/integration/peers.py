"""Upstreams of one's own, whose every byte is chosen: servers on sockets, certificates, and the loop that requests are
made on."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

T = TypeVar("T")

broken: list[dict[str, Any]] = []
"""What broke on the loop, and nobody was told."""


@cache
def loop() -> asyncio.AbstractEventLoop:
    """What requests are made on, in a thread of its own, as in a worker."""
    made = asyncio.new_event_loop()
    made.set_exception_handler(lambda _, context: broken.append(context))
    threading.Thread(target=made.run_forever, daemon=True).start()
    return made


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop()).result(60)


class Peer:
    """An upstream of one's own: each connection is handled by `handle`, in a thread of its own."""

    def __init__(
        self,
        handle: Callable[["Peer", socket.socket], object],
        tls: ssl.SSLContext | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        before_tls: Callable[[], object] = lambda: None,
    ) -> None:
        self._handle, self._tls, self._before_tls = handle, tls, before_tls
        self._listener = socket.create_server((host, port), backlog=512)
        self.host, self.port = self._listener.getsockname()
        self.connections = 0
        self.ended = threading.Semaphore(0)
        """Released whenever a connection has been handled, and is closed."""
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self._tls:
                self._before_tls()
                connection = self._shake_hands(connection, self._tls)
            with connection:
                self._handle(self, connection)
        self.ended.release()

    def _shake_hands(self, connection: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
        """As a server does that has good manners: what it says of a handshake that fails can be read."""
        secured = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        try:
            secured.do_handshake()
        except ssl.SSLError:
            with secured:
                secured.settimeout(10)
                plain = socket.socket(fileno=secured.detach())
                with plain:
                    plain.shutdown(socket.SHUT_WR)
                    while plain.recv(65536):
                        pass
            raise
        return secured

    def close(self) -> None:
        self._listener.close()


class Swallows:
    """An address that answers no SYN: a listener whose backlog is full."""

    def __init__(self, host: str, port: int = 0) -> None:
        self._listener = socket.create_server((host, port), backlog=0)
        self.where = self._listener.getsockname()
        self._waiting = [socket.socket() for _ in range(2)]
        for one in self._waiting:
            one.setblocking(False)
            one.connect_ex(self.where)

    def close(self) -> None:
        for one in (*self._waiting, self._listener):
            one.close()


def hear(connection: socket.socket) -> bytes:
    """One whole request, head and body; b"" if no more come."""
    heard = b""
    while b"\r\n\r\n" not in heard:
        if not (data := connection.recv(65536)):
            return b""
        heard += data
    head, _, body = heard.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    parts, missing = [body], length - len(body)
    while missing > 0:
        parts.append(connection.recv(65536))
        missing -= len(parts[-1])
    return head + b"".join(parts)


def answering(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode("latin-1") + body


def answer_all(peer: Peer, connection: socket.socket) -> None:
    """Every message is accepted, under the number of its connection."""
    mine = peer.connections
    while hear(connection):
        connection.sendall(answering(b'{"id": %d}' % mine))


class Authority:
    """A certificate authority in a directory: what it signs is trusted by whoever trusts `file`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory, self._name = directory, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._signed = 0
        basic = x509.BasicConstraints(ca=True, path_length=None)
        own = self._certificate(self._name, self._key.public_key()).add_extension(basic, critical=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def sign(self, *names: str, password: bytes | None = None) -> tuple[Path, Path]:
        """The files of a certificate for these names or addresses, and of its key."""
        self._signed += 1
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = self._certificate(subject, key.public_key()).add_extension(alternatives, critical=False)
        pem = self.file.with_name(f"{self.file.stem}-{self._signed}.pem")
        private = pem.with_suffix(".key")
        pem.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        private.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return pem, private

    def server_tls(self, *names: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.sign(*names))
        return context

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
