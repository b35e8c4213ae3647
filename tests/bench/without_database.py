"""The API with a database that answers at once: what a request costs apart from PostgreSQL.

Everything else is the real thing: server, routes, authentication, validation, tokens, answers. Each statement is asked
of PostgreSQL the first time only, for each account; from then on its rows are remembered, and told again.

It has a route besides, which does for a list of messages what comes before queueing them: parsing and validating.

    python -m tests.bench.without_database --port 8000
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click
from flask import Blueprint, Flask
from granian import Granian
from marshmallow import Schema, fields

import deploy.serve
from api import schemas
from api.app import create_app
from api.auth import SENDERS
from api.endpoint import endpoint
from workers.bootstrap import build
from workers.settings import Settings
from workers.store.session import Database, Row
from workers.telemetry.logs import configure_logging

VALIDATE = "/validate/bulk"

_T = TypeVar("_T")


class Remembering(Database):
    """A database that has heard it all before."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._told: dict[tuple[str, str], list[Row]] = {}

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        asked = (sql, str([value for name, value in (params or {}).items() if name.startswith("account")]))
        if asked not in self._told:
            self._told[asked] = super().all(sql, params)
        return [dict(row) for row in self._told[asked]]

    def transaction(self, work: Callable[[Any], _T]) -> _T:
        return work(self)


def application() -> Flask:
    """As `deploy.serve.application`, but for the database."""
    settings = Settings.from_env()
    configure_logging(settings.log_format)
    pool_size = int(os.environ.get(deploy.serve.THREADS, "16"))
    adapters = build(settings, pool_size=pool_size, name="paceline api")
    app = create_app(replace(adapters, db=Remembering(settings.database_url, pool_size=pool_size)))
    app.register_blueprint(_validation())
    deploy.serve.set_aside_what_stays()
    return app


class _Read(Schema):
    messages = fields.Integer(required=True)


def _validation() -> Blueprint:
    routes = Blueprint("validation", __name__)

    @routes.post(VALIDATE)
    @endpoint("Read a list of messages", roles=SENDERS, body=schemas.SendBulk, answers={202: _Read})
    def validate(body: dict[str, Any]) -> Any:
        return {"messages": len(body["messages"])}, 202

    return routes


def _elsewhere(_target: str, **options: Any) -> Any:
    """Granian with all that `deploy.serve` tells it, but for the application."""
    return Granian("tests.bench.without_database:application", **options)


@click.command()
@click.option("--port", type=int, required=True)
def main(port: int) -> None:
    deploy.serve.Granian = _elsewhere  # type: ignore[assignment]
    deploy.serve.serve_api(Settings.from_env(), host="127.0.0.1", port=port, workers=1, threads=16)


if __name__ == "__main__":
    main()
