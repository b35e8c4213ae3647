"""A caller's HTTP: JSON over one kept-alive connection per thread, to a server that may be gone at any moment."""

import http.client
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 15.0
PAUSE_S = 0.2


class NoAnswer(Exception):
    """There is none: nobody listens, or the connection broke. Whether the request was heeded is not known."""


class Http:
    """Thread-safe."""

    def __init__(self, base_url: str, headers: dict[str, str] | None = None) -> None:
        url = urlsplit(base_url)
        self._host, self._port, self._path = url.hostname or "", url.port, url.path
        self._headers = {"Content-Type": "application/json"} | (headers or {})
        self._mine = threading.local()

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One request, never repeated. Raises `NoAnswer`."""
        connection = getattr(self._mine, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
            self._mine.connection = connection
        content = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._path + path, content, self._headers | (headers or {}))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise NoAnswer(f"{method} {path}: {type(error).__name__}: {error}") from error

    def until_answered(self, method: str, path: str, body: Any = None, *, within_s: float = 60.0) -> dict[str, Any]:
        """A request that may be repeated, repeated until it is answered with 2xx. Raises `NoAnswer` in the end."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                status, found = self(method, path, body)
                if 200 <= status < 300:
                    return found
                if 400 <= status < 500 and status not in (408, 429):
                    raise NoAnswer(f"{method} {path}: {status} {found}")
            except NoAnswer:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(PAUSE_S)
