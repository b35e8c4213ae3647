"""The processes of production, each in the foreground: api, worker, pacer."""

import os
import tempfile
import warnings
from contextlib import ExitStack

import click

from deploy.cli.options import port_option
from workers.settings import Settings

_COUNTS = "PROMETHEUS_MULTIPROC_DIR"


@click.command()
@port_option
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 in a container.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--threads", type=click.IntRange(1, 256), default=16, show_default=True, help="Threads of each.")
def api(port: int, host: str, workers: int, threads: int) -> None:
    """The API, in the foreground."""
    with ExitStack() as at_the_end:
        if workers > 1 and not os.environ.get(_COUNTS):
            os.environ[_COUNTS] = at_the_end.enter_context(tempfile.TemporaryDirectory(prefix="paceline-metrics-"))
        from deploy.serve import serve_api

        serve_api(_settings(), host=host, port=port, workers=workers, threads=threads)


@click.command(short_help="A worker, in the foreground; one per core.")
def worker() -> None:
    """A worker, in the foreground; start as many as the machine has cores."""
    _count_alone()
    from workers.engine.processes import run_worker

    warnings.filterwarnings("ignore", message=".*superuser privileges")  # a container's user is its own affair
    run_worker(_settings())


@click.command(short_help="A pacer with its reconciler; run two.")
def pacer() -> None:
    """A pacer with its reconciler, in the foreground; two are enough to survive one."""
    _count_alone()
    from workers.engine.processes import run_pacer

    run_pacer(_settings())


def _settings() -> Settings:
    """For a process of production: settings read, logs configured."""
    from workers.telemetry import traces
    from workers.telemetry.logs import configure_logging

    settings = Settings.from_env()
    traces.wanted()  # and to be had
    configure_logging(settings.log_format)
    return settings


def _count_alone() -> None:
    """Keep the counts of a process that tells them on a port of its own out of the shared directory.

    Must run before `workers.telemetry.counts` is imported.
    """
    if os.environ.get("METRICS_PORT"):
        os.environ.pop(_COUNTS, None)
