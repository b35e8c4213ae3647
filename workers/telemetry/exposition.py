"""Serves `/metrics` and `/healthz` on the METRICS_PORT of a worker or a pacer, and says who may read metrics."""

import hmac
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, make_wsgi_app

from workers.telemetry.pulse import Pulse, pulse

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def bearer_token(authorization: str) -> str | None:
    """The token of an Authorization header; None for another scheme or none. Schemes ignore case (RFC 9110 §11.1)."""
    scheme, _, credentials = authorization.strip().partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def may_see(authorization: str, token: str | None) -> bool:
    """Whether this Authorization header opens the metrics; any does, unless METRICS_TOKEN is set."""
    return not token or hmac.compare_digest((bearer_token(authorization) or "").encode(), token.encode())


def serve(port: int, token: str | None) -> None:
    """Tell this process's counts, and its health, on a port, from a thread of its own, for as long as it lives."""
    try:
        server = make_server("", port, beside(guarded(make_wsgi_app(REGISTRY), token), pulse), _Server, _Quiet)
    except OSError as error:
        remedy = "each worker and pacer of a host needs its own"
        raise RuntimeError(f"METRICS_PORT={port} cannot be served ({error.strerror}): {remedy}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def guarded(app: Wsgi, token: str | None) -> Wsgi:
    """The same for whoever may see it; a 401 for anybody else."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if may_see(environ.get("HTTP_AUTHORIZATION", ""), token):
            return app(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [b"Not authenticated\n"]

    return answer


def beside(app: Wsgi, pulse: Pulse) -> Wsgi:
    """The same application at `/metrics`, and `/healthz`, which asks for no token and tells nothing else."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return app(environ, start_response)
        if path != "/healthz":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics and /healthz are here\n"]
        state = pulse.state()
        start_response("503 Service Unavailable" if state == "hung" else "200 OK", [("Content-Type", "text/plain")])
        return [f"{state}\n".encode()]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Scrapes are no events."""
