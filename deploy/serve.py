"""The API in production: granian in front of the Flask application, several processes if wanted."""

import gc
import os
from pathlib import Path

from flask import Flask
from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from api.app import create_app
from workers.bootstrap import build
from workers.settings import Settings
from workers.telemetry import traces
from workers.telemetry.logs import configure_logging

THREADS = "PACELINE_API_THREADS"
MAX_HEAD = 64 * 1024
"""Bytes of a request's line and headers; more is 431, with nothing read of the rest."""
_THROUGH_OURS = {"formatters": {}, "handlers": {}, "loggers": {"_granian": {"handlers": [], "propagate": True}}}
"""The server's own log lines are written as all others are."""


def serve_api(settings: Settings, *, host: str, port: int, workers: int, threads: int) -> None:
    """Serve until SIGTERM."""
    create_app(build(settings))  # a wrong setting stops us here, with its words, not in every worker process
    os.environ[THREADS] = str(threads)
    Granian(
        "deploy.serve:application",
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,  # one protocol to defend; whoever ends TLS before us speaks the others
        http1_settings=HTTP1Settings(max_buffer_size=MAX_HEAD),
        websockets=False,
        workers=workers,
        blocking_threads=threads,
        backlog=2048,
        log_level=LogLevels.warning,
        log_dictconfig=_THROUGH_OURS,
        respawn_failed_workers=True,
        workers_kill_timeout=30,
        working_dir=Path.cwd(),
    ).serve()


def application() -> Flask:
    """What every process of the server makes for itself."""
    settings = Settings.from_env()
    configure_logging(settings.log_format)
    traces.configure("paceline-api")
    app = create_app(build(settings, pool_size=int(os.environ.get(THREADS, "16")), name="paceline api"))
    set_aside_what_stays()
    return app


def set_aside_what_stays() -> None:
    """All that has been made and imported by now stays to the end: the garbage collector need not go through it again
    and again, which was a quarter of the CPU that a long list of messages took."""
    gc.collect()
    gc.freeze()
