"""Makes one connection to an upstream: looks its name up, tries its addresses, and says what it has tried.

Every address has its own share of the time ("Happy Eyeballs", RFC 8305): the next one is tried a quarter of a second
after the last one, or as soon as that has failed, and the first whose TLS handshake ends wins. An address that swallows
packets costs a quarter of a second, and only once: afterwards the one that worked is tried first. Where connections
usually take longer, the next address is tried later: else many messages would each open a connection to each address.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from workers.channels.http.addresses import Address
from workers.channels.http.exchange import NotSent
from workers.channels.http.proxy import Refused
from workers.channels.http.upstream import Upstream
from workers.clock import monotonic_s

STAGGER_S, LONGEST_STAGGER_S = 0.25, 2.0
"""How long after one address the next is tried: RFC 8305 §5 recommends the first, and no more than the second."""
_TOLD = 3
"""Addresses whose fate is told; the others are counted."""
_NO_ANSWER = "no answer"
_NO_HANDSHAKE = "its TLS handshake did not end"


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class Dial:
    """To be run once. What it has come to may be asked at any time."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        first = upstream.proxy or upstream
        self._host, self._port = first.host, first.port
        self._fates: dict[Address, str] = {}
        """What became of each address that was tried, or what it is waiting for."""

    async def run(self) -> socket.socket:
        """A connected socket, of which no byte of a request has left. Raises NotSent, with what was tried."""
        addresses = self._upstream.addresses
        try:
            found = await addresses.of(self._host, self._port)
        except Exception as error:
            raise NotSent(f"cannot look up the name {self._host}: {_plain(error)}") from error
        usual_s = addresses.usual_s(self._host, self._port)
        stagger_s = min(max(STAGGER_S, 2 * usual_s), LONGEST_STAGGER_S)
        try:
            return await first_of([partial(self._connected, address) for address in found], stagger_s=stagger_s)
        except Exception as error:
            addresses.forget(self._host, self._port)
            raise NotSent(f"cannot connect to {self._fate()}") from error

    def timed_out(self) -> str:
        """Says what it was waiting for."""
        if not self._fates:
            return f"timed out while looking up the name {self._host}"
        return f"timed out while connecting to {self._fate()}"

    async def _connected(self, address: Address) -> socket.socket:
        """TCP, the proxy's CONNECT, TLS: whatever stands between us and the upstream."""
        upstream, began_s = self._upstream, monotonic_s()
        sock = socket.socket(address.family, address.kind, address.protocol)
        try:
            self._fates[address] = _NO_ANSWER
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, address.where)
            if upstream.proxy is not None:
                self._fates[address] = "the proxy did not answer CONNECT"
                await upstream.proxy.lead_to(sock, upstream.authority)
            if upstream.tls is not None:
                self._fates[address] = _NO_HANDSHAKE
                sock = upstream.tls.wrap_socket(sock, server_hostname=upstream.host, do_handshake_on_connect=False)
                await _shake_hands(sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, Exception):
                self._fates[address] = _plain(error, in_tls=self._fates[address] == _NO_HANDSHAKE)
            raise
        upstream.addresses.worked(self._host, self._port, address, monotonic_s() - began_s)
        return sock

    def _fate(self) -> str:
        """`api.example.com: 192.0.2.1:443: connection refused; 192.0.2.2:443: no answer`"""
        upstream = self._upstream
        name = upstream.host if upstream.proxy is None else f"{upstream.host} through the proxy {self._host}"
        told = [f"{address}: {fate}" for address, fate in self._fates.items()]
        if len(told) > _TOLD:
            told[_TOLD:] = [f"and {len(told) - _TOLD} more addresses"]
        return f"{name} ({'; '.join(told)})"


async def first_of(attempts: Sequence[Callable[[], Coroutine[Any, Any, T]]], *, stagger_s: float) -> T:
    """The result of the attempt that succeeds first.

    Each attempt begins when the one before has failed, or `stagger_s` after that began. Those that are still under way
    in the end are cancelled, and closed if they succeed all the same. Raises what the last one raised if all fail.
    """
    waiting = deque(attempts)
    running: set[asyncio.Task[T]] = set()
    failure: BaseException | None = None
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(waiting.popleft()()))
            done, _ = await asyncio.wait(
                running, timeout=stagger_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                running.discard(task)
                failure = task.exception()
                if failure is None:
                    return task.result()
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close)
    assert failure is not None, "there is at least one attempt"
    raise failure


def _close(task: "asyncio.Task[T]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _shake_hands(sock: ssl.SSLSocket) -> None:
    loop, fd = asyncio.get_running_loop(), sock.fileno()
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(fd, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(fd, loop.add_writer, loop.remove_writer)


async def _ready(fd: int, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
    ready = asyncio.Event()
    watch(fd, ready.set)
    try:
        await ready.wait()
    finally:
        unwatch(fd)


def _plain(error: Exception, *, in_tls: bool = False) -> str:
    """What went wrong, in words for whoever has to mend it."""
    match error:
        case Refused():
            return str(error)
        case ssl.SSLCertVerificationError():
            return f"its TLS certificate is not trusted: {error.verify_message} ({error.reason})"
        case ssl.SSLEOFError() | ConnectionResetError() | BrokenPipeError() if in_tls:
            return "hung up during the TLS handshake"
        case ssl.SSLError():
            return f"the TLS handshake failed: {error.reason or error}"
        case ConnectionRefusedError():
            return "connection refused"
        case socket.gaierror():
            return str(error.strerror or error)
        case OSError():
            return error.strerror or type(error).__name__
    return type(error).__name__
