"""Which proxy leads to a host, and how to ask it: HTTPS_PROXY, NO_PROXY, and CONNECT (RFC 9110 §9.3.6)."""

import asyncio
import ipaddress
import re
import socket
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

MAX_HEAD = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([ -~]*))?\r?\n")


class Refused(OSError):
    """The proxy does not lead there. Nothing was said to the upstream."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, spoken to in plain text; what goes through it to the upstream is TLS."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)
    """The value of Proxy-Authorization, if it asks for one."""

    @classmethod
    def at(cls, url: str) -> "Proxy":
        """`http://[user:password@]host[:port]`."""
        parsed = urlsplit(url)
        authorization = ""
        if parsed.username is not None:
            user = f"{unquote(parsed.username)}:{unquote(parsed.password or '')}"
            authorization = f"Basic {b64encode(user.encode()).decode()}"
        return cls(parsed.hostname or "", parsed.port or 80, authorization)

    async def lead_to(self, sock: socket.socket, authority: str) -> None:
        """Have the proxy connect this socket, which leads to it, to `authority` (host:port). Raises OSError."""
        loop = asyncio.get_running_loop()
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if self.authorization:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        await loop.sock_sendall(sock, "\r\n".join([*lines, "\r\n"]).encode("ascii"))
        head = b""
        while not (end := re.search(rb"\r?\n\r?\n", head)):
            data = await loop.sock_recv(sock, 4096)
            head += data
            if not data or len(head) > MAX_HEAD:
                raise Refused(
                    "the proxy hung up instead of answering CONNECT" if not data else "the proxy says too much"
                )
        status = _STATUS.match(head)
        if status is None:
            raise Refused("what the proxy answered to CONNECT is not HTTP")
        if status[1][:1] != b"2":
            words = status[2].decode().strip() if status[2] else ""
            raise Refused(f"the proxy answered CONNECT with {f'{status[1].decode()} {words}'.strip()}")
        if end.end() != len(head):  # TLS begins with us
            raise Refused("the proxy says more than it was asked")


def goes_direct(host: str, port: int, no_proxy: str) -> bool:
    """Whether a host is reached without the proxy: this machine, and what NO_PROXY names.

    no_proxy: separated by commas: `*` (all), a name (with all names under it), an address, a network
    (`10.0.0.0/8`); each may end in `:port`.
    """
    return _is_this_machine(host) or any(
        _names(entry.strip().lower(), host.lower(), port) for entry in no_proxy.split(",")
    )


def _is_this_machine(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    entry, only_port = _split_port(entry)
    if not entry or only_port not in (None, port):
        return False
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        with suppress(ValueError):
            return address in ipaddress.ip_network(entry, strict=False)
        return False
    name = entry.lstrip("*").strip(".")
    return bool(name) and (host.rstrip(".") == name or host.rstrip(".").endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    """`host:port` parted; an IPv6 address has its port outside of brackets."""
    found = re.fullmatch(r"\[(?P<six>[^\]]*)\](?::(?P<six_port>\d+))?|(?P<host>[^:]*):(?P<port>\d+)", entry)
    if found is None:
        return entry, None
    host, port = found["six"] or found["host"] or "", found["six_port"] or found["port"]
    return host, int(port) if port else None
