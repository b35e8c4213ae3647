"""The addresses of a name: looked up in a thread, once for all who ask at the same time, and kept for a moment.

The system's resolver cannot be interrupted. So each lookup has a thread of its own, and there is one lookup of a name
at a time: a name server that does not answer holds up neither other names nor more than one thread.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from workers.clock import monotonic_s

KEEP_S = 5.0
"""How long addresses are kept. The resolver does not tell how long they are good for."""
GIVE_UP_S = 60.0
"""A lookup that has taken longer is left to itself, and another one is begun. Resolvers give up after 30 s."""

Found = list[tuple[Any, ...]]
GetAddrInfo = Callable[..., Found]
"""`socket.getaddrinfo`, or what behaves like it."""


@dataclass(frozen=True, slots=True)
class Address:
    """family, kind, protocol: for `socket.socket`. where: for its `connect`."""

    family: int
    kind: int
    protocol: int
    where: tuple[Any, ...]

    def __str__(self) -> str:
        host, port = self.where[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Lookup:
    """since_s: when it began; once it has found something, when that was."""

    def __init__(self) -> None:
        self.since_s = monotonic_s()
        self.found: Future[list[Address]] = Future()
        self.found.set_running_or_notify_cancel()  # whoever stops waiting for it must not cancel it for others

    def is_good(self) -> bool:
        return monotonic_s() - self.since_s <= (KEEP_S if self.found.done() else GIVE_UP_S)


class Addresses:
    """Thread-safe, and usable on any event loop. Remembers which address of a name could be connected to last."""

    def __init__(self, getaddrinfo: GetAddrInfo = socket.getaddrinfo) -> None:
        self._getaddrinfo = getaddrinfo
        self._lock = threading.Lock()
        self._lookups: dict[tuple[str, int], _Lookup] = {}
        self._worked: dict[tuple[str, int], tuple[Address, float]] = {}

    async def of(self, host: str, port: int) -> list[Address]:
        """In the order in which to try them, at least one. Raises OSError or ValueError if there are none."""
        found = await asyncio.wrap_future(self._lookup(host, port))
        worked, _ = self._worked.get((host, port), (None, 0.0))
        return in_turns(found, worked)

    def worked(self, host: str, port: int, address: Address, took_s: float) -> None:
        """This one could be connected to, in so many seconds: it is tried first from now on."""
        self._worked[host, port] = address, took_s

    def usual_s(self, host: str, port: int) -> float:
        """How long it took to connect the last time; 0 if that is not known."""
        return self._worked.get((host, port), (None, 0.0))[1]

    def forget(self, host: str, port: int) -> None:
        """None of them could be connected to: ask again next time. A lookup under way goes on."""
        with self._lock:
            lookup = self._lookups.get((host, port))
            if lookup is not None and lookup.found.done():
                del self._lookups[host, port]

    def _lookup(self, host: str, port: int) -> Future[list[Address]]:
        """The one under way, or the last one if it is fresh, or a new one."""
        with self._lock:
            lookup = self._lookups.get((host, port))
            if lookup is None or not lookup.is_good():
                lookup = self._lookups[host, port] = _Lookup()
                threading.Thread(target=self._run, args=[host, port, lookup], name="lookup", daemon=True).start()
        return lookup.found

    def _run(self, host: str, port: int, lookup: _Lookup) -> None:
        try:
            found = self._getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [Address(family, kind, protocol, where) for family, kind, protocol, _, where in found]
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        except BaseException as error:  # whoever waits must be told
            lookup.found.set_exception(error)
            self.forget(host, port)
        else:
            lookup.since_s = monotonic_s()
            lookup.found.set_result(addresses)


def in_turns(addresses: Iterable[Address], first: Address | None = None) -> list[Address]:
    """Each once, their families by turns, beginning with that of the system's first choice (RFC 8305 §4).

    first: before all others, if it is one of them.
    """
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address.family, []).append(address)
    turns = [address for address in chain.from_iterable(zip_longest(*families.values())) if address is not None]
    return sorted(turns, key=lambda address: address != first)
