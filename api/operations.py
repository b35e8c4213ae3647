"""What machines and curious people ask: health, metrics, documentation."""

import hmac
import os
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, request
from flask_swagger_ui import get_swaggerui_blueprint
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from api.errors import not_authenticated
from api.openapi import document
from workers.bootstrap import Adapters
from workers.domain.errors import StoreUnavailable
from workers.store import queries


def blueprint(app: Flask, adapters: Adapters) -> Blueprint:
    routes = Blueprint("operations", __name__)
    reader = adapters.reader()
    token = adapters.settings.metrics_token
    described: list[dict[str, Any]] = []

    @routes.get("/healthz")
    def healthz() -> Any:
        return jsonify({"status": "ok"})

    @routes.get("/readyz")
    def readyz() -> Any:
        missing = reader.ready()
        return jsonify({"status": "not ready" if missing else "ready", "missing": missing}), 503 if missing else 200

    @routes.get("/metrics")
    def metrics() -> Any:
        given = request.headers.get("Authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise not_authenticated()
        body = generate_latest(_counted()) + generate_latest(_standing(adapters))
        return Response(body, content_type=CONTENT_TYPE_LATEST)

    @routes.get("/openapi.json")
    def openapi() -> Any:
        if not described:
            described.append(document(app))
        return jsonify(described[0])

    return routes


def docs() -> Blueprint:
    """Swagger UI from its wheel: nothing is fetched from outside."""
    config = {"app_name": "Paceline", "validatorUrl": "none", "oauth2RedirectUrl": "/docs/oauth2-redirect.html"}
    return get_swaggerui_blueprint("/docs", "/openapi.json", config=config)


def _counted() -> CollectorRegistry:
    """What the processes have counted: this one, or all that share the multiprocess directory."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry


def _standing(adapters: Adapters) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Gauges(adapters))
    return registry


class _Gauges:
    """How things stand, read when asked; nothing of it grows with the queue."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            status = self._adapters.reader().status(None)
            ages = queries.oldest_ages_s(self._adapters.db)
        except StoreUnavailable:
            return
        depth = GaugeMetricFamily("paceline_queue_depth", "Messages waiting", labels=["account"])
        in_flight = GaugeMetricFamily("paceline_in_flight", "Messages being sent", labels=["account"])
        dead = GaugeMetricFamily("paceline_dead_letters", "Open dead letters", labels=["account"])
        tokens = GaugeMetricFamily("paceline_tokens_available", "Tokens free now", labels=["account"])
        oldest = GaugeMetricFamily(
            "paceline_oldest_message_age_seconds",
            "How long the oldest due message has waited",
            labels=["account"],
        )
        for account in status.accounts:
            labels = [account.account.id]
            depth.add_metric(labels, account.depth)
            in_flight.add_metric(labels, account.in_flight)
            dead.add_metric(labels, account.dead_letters)
            oldest.add_metric(labels, ages.get(account.account.id, 0.0))
            if account.tokens_available is not None:
                tokens.add_metric(labels, account.tokens_available)
        yield from (depth, in_flight, dead, tokens, oldest)
