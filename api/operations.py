"""Routes for health, metrics and documentation."""

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, request
from flask_swagger_ui import get_swaggerui_blueprint
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from api import schemas
from api.endpoint import endpoint
from api.errors import not_authenticated
from api.openapi import document
from workers.bootstrap import Adapters
from workers.domain.errors import StoreUnavailable
from workers.telemetry import counts, exposition

_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def blueprint(app: Flask, adapters: Adapters) -> Blueprint:
    routes = Blueprint("operations", __name__)
    reader = adapters.reader()
    token = adapters.settings.metrics_token
    standing = CollectorRegistry()
    standing.register(Standing(adapters))
    described: list[dict[str, Any]] = []

    @routes.get("/")
    def home() -> Response:
        """Redirects a browser to the documentation, until there is a console."""
        response = Response(status=302, headers={"Location": "/docs/"})
        del response.headers["Content-Type"]
        return response

    @routes.get("/healthz")
    @endpoint("Is the process up?", roles=None, answers={200: schemas.Healthy})
    def healthz() -> Any:
        """For a liveness probe. Checks neither the database nor Redis."""
        return {}, 200

    @routes.get("/readyz")
    @endpoint("Can messages be accepted and sent?", roles=None, answers={200: schemas.Ready, 503: schemas.Ready})
    def readyz() -> Any:
        """For a readiness probe: checks the database, Redis, a live pacer and a live worker, and names missing ones."""
        missing = reader.ready()
        return {"status": "not ready" if missing else "ready", "missing": missing}, 503 if missing else 200

    @routes.get("/metrics")
    @endpoint("Metrics, for Prometheus", roles=None, answers={200: None}, errors=(401,))
    def metrics() -> Any:
        """Counters of this machine's processes and gauges of the state. Requires `METRICS_TOKEN` if it is set."""
        if not exposition.may_see(request.headers.get("Authorization", ""), token):
            raise not_authenticated()
        body = generate_latest(counts.counted()) + generate_latest(standing)
        return Response(body, content_type=CONTENT_TYPE_LATEST)

    @routes.get("/openapi.json")
    def openapi() -> Any:
        if not described:
            described.append(document(app))
        return jsonify(described[0])

    return routes


def docs() -> Blueprint:
    """Serve Swagger UI from its wheel. Nothing is fetched from outside."""
    config: dict[str, Any] = {"app_name": "Paceline", "validatorUrl": "none", "tryItOutEnabled": True}
    config |= {"oauth2RedirectUrl": "/docs/oauth2-redirect.html"}
    pages = get_swaggerui_blueprint("/docs", "/openapi.json", config=config)
    pages.after_request(_let_only_its_own_run)
    return pages


def _let_only_its_own_run(response: Response) -> Response:
    """The page's one script of its own by its hash, and nothing else that stands in a page. Styles Swagger UI sets
    itself, as it goes."""
    inline = [] if response.direct_passthrough else _INLINE_SCRIPT.findall(response.get_data(as_text=True))
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]
    response.headers["Content-Security-Policy"] = "; ".join(
        (
            "default-src 'none'",
            " ".join(("script-src 'self'", *hashes)),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return response


GAUGES = {
    "paceline_queue_depth": ("Messages waiting", ["account"]),
    "paceline_queue_depth_limit": ("Messages that may wait on one account", []),
    "paceline_in_flight": ("Messages being sent", ["account"]),
    "paceline_dead_letters": ("Open dead letters", ["account"]),
    "paceline_oldest_message_age_seconds": ("How long the oldest due message has waited", ["account"]),
    "paceline_tokens_available": ("Tokens free now", ["account"]),
    "paceline_account_state": ("1 for an account that sends nothing now", ["account", "state", "reason"]),
    "paceline_upstream_resting_seconds": (
        "For how long an account's upstream has been resting: away, or out of credit",
        ["account", "reason"],
    ),
    "paceline_alive": ("Processes that live", ["kind"]),
    "paceline_store_up": ("Whether PostgreSQL answered", []),
    "paceline_redis_up": ("Whether Redis answered", []),
}
"""Name: what it says, and its labels."""


class Standing:
    """Gauges of the current state, read at each scrape. The cost does not grow with the queue.

    If PostgreSQL or Redis is unavailable, its gauges are left out, and `store_up` or `redis_up` is 0. Counters are
    always exported."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def describe(self) -> list[Metric]:
        """Nothing before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        found = {name: GaugeMetricFamily(name, words, labels=labels) for name, (words, labels) in GAUGES.items()}
        found["paceline_queue_depth_limit"].add_metric([], self._adapters.settings.max_queue_depth)
        self._accounts(found)
        self._processes(found)
        yield from found.values()

    def _accounts(self, found: dict[str, GaugeMetricFamily]) -> None:
        try:
            reader = self._adapters.reader()
            status, ages_s = reader.status(None), reader.oldest_ages_s()
        except StoreUnavailable:
            found["paceline_store_up"].add_metric([], 0)
            return
        found["paceline_store_up"].add_metric([], 1)
        now = datetime.now(UTC)
        for account in status.accounts:
            name = account.account.id
            found["paceline_queue_depth"].add_metric([name], account.depth)
            found["paceline_in_flight"].add_metric([name], account.in_flight)
            found["paceline_dead_letters"].add_metric([name], account.dead_letters)
            found["paceline_oldest_message_age_seconds"].add_metric([name], ages_s.get(name, 0.0))
            if account.tokens_available is not None:
                found["paceline_tokens_available"].add_metric([name], account.tokens_available)
            if closed := account.closed:
                found["paceline_account_state"].add_metric([name, closed.state, closed.by], 1)
            if rest := account.account.rest:
                for_s = max(0.0, (now - rest.since).total_seconds())
                found["paceline_upstream_resting_seconds"].add_metric([name, rest.kind], for_s)

    def _processes(self, found: dict[str, GaugeMetricFamily]) -> None:
        alive = self._adapters.reader().alive()
        found["paceline_redis_up"].add_metric([], 0 if alive is None else 1)
        for kind, number in (alive or {}).items():
            found["paceline_alive"].add_metric([kind], number)
