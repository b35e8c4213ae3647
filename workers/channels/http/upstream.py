"""Where an upstream is, and how it is reached from here."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from workers.channels.http.addresses import Addresses
from workers.channels.http.proxy import Proxy, goes_direct

_IN_A_PATH = "/%:@!$&'()*+,;=~"


@dataclass(frozen=True, slots=True)
class Network:
    """How upstreams are reached.

    ca_file: certificates (PEM) that are trusted besides the system's own. client_certificate, client_key: what
    an upstream is shown that asks who we are; the key may be in the certificate's file. https_proxy: leads to upstreams
    that speak TLS, but to none that `no_proxy` names (`proxy.goes_direct`).
    """

    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    https_proxy: Proxy | None = None
    no_proxy: str = ""
    addresses: Addresses = field(default_factory=Addresses)

    def tls(self) -> ssl.SSLContext:
        """Raises OSError (ssl.SSLError included) if a file cannot be used."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        if self.client_certificate is not None:
            # A password, so that an encrypted key is refused instead of asking at the terminal.
            context.load_cert_chain(self.client_certificate, self.client_key, password="")
        return context


@dataclass(frozen=True, slots=True)
class Upstream:
    """path: what stands before each path. tls: None for plain HTTP. proxy: what leads there; None for nothing."""

    host: str
    port: int
    netloc: str
    path: str
    tls: ssl.SSLContext | None
    proxy: Proxy | None = None
    addresses: Addresses = field(default_factory=Addresses)

    @classmethod
    def at(cls, base_url: str, network: Network | None = None) -> "Upstream":
        """`base_url` may have a path."""
        network = network or Network()
        parsed = urlsplit(base_url)
        secure = parsed.scheme == "https"
        host, port = parsed.hostname or "", parsed.port or (443 if secure else 80)
        return cls(
            host=host,
            port=port,
            netloc=_name(host) if parsed.port is None else f"{_name(host)}:{port}",
            path=quote(parsed.path.rstrip("/"), safe=_IN_A_PATH),
            tls=network.tls() if secure else None,
            proxy=network.https_proxy if secure and not goes_direct(host, port, network.no_proxy) else None,
            addresses=network.addresses,
        )

    @property
    def authority(self) -> str:
        """Its host and port, as a proxy is asked for it."""
        return f"{_name(self.host)}:{self.port}"


def _name(host: str) -> str:
    """A host as it is written on the wire."""
    return f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
