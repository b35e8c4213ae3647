"""The API in production: granian in front of the Flask application, several processes if wanted."""

import os
import tempfile
from pathlib import Path

from flask import Flask
from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from api.app import create_app
from workers.bootstrap import build
from workers.settings import Settings
from workers.telemetry import configure_logging

THREADS = "PACELINE_API_THREADS"


def serve_api(settings: Settings, *, host: str, port: int, workers: int, threads: int) -> None:
    """Serve until SIGTERM."""
    create_app(build(settings))  # a wrong setting stops us here, with its words, not in every worker process
    if workers > 1 and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="paceline-metrics-")
    os.environ[THREADS] = str(threads)
    Granian(
        "deploy.serve:application",
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        workers=workers,
        blocking_threads=threads,
        backlog=2048,
        log_level=LogLevels.warning,
        respawn_failed_workers=True,
        workers_kill_timeout=30,
        working_dir=Path.cwd(),
    ).serve()


def application() -> Flask:
    """What every process of the server makes for itself."""
    settings = Settings.from_env()
    configure_logging(settings.log_format)
    return create_app(build(settings, pool_size=int(os.environ.get(THREADS, "16")), name="paceline api"))
