"""Builds the Flask application from its adapters."""

import re
import time
from typing import Any

import structlog
from flask import Flask, Response, g, request
from flask.json.provider import DefaultJSONProvider
from ulid import ULID

from api import auth, body, errors, limiting, messaging, operations
from workers.bootstrap import Adapters
from workers.encoding import as_json
from workers.telemetry import metrics

_DEFENCES = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers for browsers. Without CORS, pages of another origin get no access. The documentation has its own policy. The
reverse proxy that terminates TLS sets Strict-Transport-Security."""
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class _Json(DefaultJSONProvider):
    """Serialises answers quickly, with keys in their given order."""

    def response(self, *args: Any, **kwargs: Any) -> Response:
        return Response(as_json(self._prepare_response_obj(args, kwargs)), mimetype=self.mimetype)


def create_app(adapters: Adapters) -> Flask:
    """Return the API application over these adapters."""
    app = Flask("paceline", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = body.MAX_BODY + 1  # werkzeug silently cuts a body of unknown length at its limit
    app.url_map.strict_slashes = app.url_map.merge_slashes = False  # a redirect would be an HTML page
    app.json = _Json(app)
    app.before_request(_begin)
    app.after_request(_end)
    errors.install(app)
    body.install(app)
    auth.install(app, adapters.settings)
    settings = adapters.settings
    limiting.install(app, adapters.tokens, writes=settings.api_rate_limit, reads=settings.api_read_limit)
    app.register_blueprint(messaging.blueprint(adapters))
    app.register_blueprint(operations.blueprint(app, adapters))
    app.register_blueprint(operations.docs())
    return app


def _begin() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if _SANE_REQUEST_ID.fullmatch(given) else str(ULID())
    g.began = time.perf_counter()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    for name, value in _DEFENCES.items():
        response.headers.setdefault(name, value)
    route = request.url_rule.rule if request.url_rule else "unmatched"
    metrics.http_requests.labels(route, response.status_code).inc()
    metrics.http_request_seconds.labels(route).observe(time.perf_counter() - g.began)
    return response
