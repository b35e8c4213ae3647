"""Opens URLs for our own commands. Two things differ from `urllib.request.urlopen`.

A proxy of the environment (`http_proxy`) is not asked for this machine: it cannot reach our loopback. A redirect is not
followed: a POST would become a GET, and its bearer token would go to another server.
"""

import ipaddress
from http.client import HTTPMessage, HTTPResponse
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """None makes urllib raise an HTTPError with the status of the redirect."""


_direct = build_opener(ProxyHandler({}), _NoRedirect)


def open_url(request: Request | str, *, timeout_s: float) -> Any:
    """Like `urlopen`; the answer is a context manager. Raises URLError or OSError, and HTTPError for 3xx to 5xx."""
    url = request if isinstance(request, str) else request.full_url
    opener = _direct if is_loopback(urlsplit(url).hostname or "") else build_opener(_NoRedirect)
    answer: HTTPResponse = opener.open(request, timeout=timeout_s)
    return answer


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine's loopback interface."""
    if host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
