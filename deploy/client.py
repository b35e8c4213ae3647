"""The HTTP client of our own commands: JSON to a server that may be gone at any moment.

Two things differ from `urllib.request.urlopen`. A proxy of the environment (`http_proxy`) is not asked for this
machine: it cannot reach our loopback. A redirect is not followed: a POST would become a GET, and its bearer token would
go to another server.
"""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener


class NoAnswer(RuntimeError):
    """No answer came: no server listens, the connection broke, or a 2xx was not JSON. Whether the request was heeded is
    not known. `__cause__` is the error of the connection."""


class Refused(RuntimeError):
    """The answer is not a 2xx."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered. body: its JSON; of an error whose body is not JSON an empty object."""

    status: int
    reason: str
    headers: Message
    body: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        return f"{self.status} {self.body or self.reason}"


class Client:
    """Requests to one server. Thread-safe; it keeps no connection.

    base_url: put before every path. token: the bearer token of every request. timeout_s: of each step of a request.
    """

    def __init__(self, base_url: str, token: str | None = None, *, timeout_s: float = 15.0) -> None:
        self._base_url, self._timeout_s = base_url.rstrip("/"), timeout_s
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        handlers = [ProxyHandler({})] if is_loopback(urlsplit(base_url).hostname or "") else []
        self._opener = build_opener(*handlers, _NoRedirect)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Make one request, never repeated. body: bytes go as they are, anything else as JSON. Raises NoAnswer."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(self._base_url + path, content, {**self._headers, **(headers or {})}, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return Answer(answer.status, answer.reason, answer.headers, json.load(answer))
        except HTTPError as error:
            with error:
                return Answer(error.code, error.reason, error.headers, _body(error))
        except (OSError, HTTPException, ValueError) as error:
            raise NoAnswer(f"{method} {path}: {type(error).__name__}: {error}") from error

    def must(self, method: str, path: str, body: Any = None) -> Any:
        """The body of a 2xx. Raises NoAnswer, or Refused for any other status."""
        answer = self.ask(method, path, body)
        if not answer.ok:
            raise Refused(f"{method} {path}: {answer}")
        return answer.body


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """None makes urllib raise an HTTPError with the status of the redirect."""


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine's loopback interface."""
    if host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _body(error: HTTPError) -> Any:
    try:
        return json.load(error)
    except (OSError, HTTPException, ValueError):
        return {}
