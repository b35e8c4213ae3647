"""What a worker process and a pacer process are made of, from start to a clean end."""

import gc
import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

from celery import bootsteps, signals
from celery.beat import Service
from kombu.exceptions import OperationalError

from workers.bootstrap import Adapters, build
from workers.engine.celery_app import app
from workers.engine.pacer import Pacer
from workers.engine.presence import Presence
from workers.engine.reconciler import Reconciler
from workers.services.dispatch import Dispatcher
from workers.settings import Settings
from workers.telemetry import exposition, traces
from workers.telemetry.logs import logger
from workers.telemetry.pulse import pulse

PACERS_POOL_SIZE = 4
POOL_SIZE = 16
"""Database connections of a worker: drains hold one only for a statement or a transaction, never across a request."""

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """What tasks and the pacer find on the Celery application."""

    adapters: Adapters
    dispatcher: Dispatcher | None


class _Beating(bootsteps.StartStopStep):
    """Celery's event loop beats while it has its broker, and rests while it looks for it."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Any) -> None:
        pulse.beat()
        self._timer = consumer.timer.call_repeatedly(1.0, pulse.beat)

    def stop(self, consumer: Any) -> None:
        self._timer.cancel()
        pulse.rest()


def run_worker(settings: Settings) -> None:
    """Drain accounts until SIGTERM; then finish what is in flight, within SEND_TIMEOUT_SECONDS + 5 s."""
    traces.configure("paceline-worker")
    _serve_metrics(settings)
    adapters = build(settings, pool_size=POOL_SIZE, name="paceline worker")
    presence = Presence("worker", settings.database_url, adapters.wakeups)
    presence.start()
    dispatcher = adapters.dispatcher(presence.number)
    _connect(settings, Process(adapters, dispatcher))

    @signals.worker_shutting_down.connect(weak=False)
    def drain_no_more(**_: Any) -> None:
        dispatcher.stopping.set()
        bound = threading.Timer(settings.send_timeout_seconds + 5, lambda: os._exit(1))
        bound.daemon = True
        bound.start()

    @signals.setup_logging.connect(weak=False)
    def leave_logging_alone(**_: Any) -> None:
        """Ours is configured; Celery's would hush everything below its own --loglevel, our events included."""

    app.steps["consumer"].add(_Beating)
    gc.freeze()  # what has been imported stays: there is no point in going through it time and again
    log.info("worker_started", worker=presence.number)
    arguments = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    try:
        app.worker_main(["--quiet", "worker", f"--hostname=paceline-{presence.number}@%h", *arguments])
    finally:  # Celery leaves by SystemExit
        presence.stop()
        adapters.close()
        log.info("worker_stopped", worker=presence.number)


def run_pacer(settings: Settings) -> None:
    """Pace and reconcile until SIGTERM."""
    _serve_metrics(settings)
    adapters = build(settings, pool_size=PACERS_POOL_SIZE, name="paceline pacer")
    presence = Presence("pacer", settings.database_url, adapters.wakeups)
    presence.start()
    _connect(settings, Process(adapters, None))
    reconciler = Reconciler(adapters, verify=_have_verified)
    service = Service(app, scheduler_cls=Pacer)

    def stop(*_: object) -> None:
        reconciler.stop()
        service.stop(wait=False)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    thread = threading.Thread(target=reconciler.run, name="reconciler", daemon=True)
    thread.start()
    log.info("pacer_started", pacer=presence.number)
    service.start()
    reconciler.stop()
    thread.join(timeout=5)
    presence.stop()
    adapters.close()
    log.info("pacer_stopped", pacer=presence.number)


def _connect(settings: Settings, process: Process) -> None:
    app.conf.broker_url = settings.broker_url
    app.process = process
    app.loader.import_default_modules()


def _have_verified() -> None:
    try:
        app.tasks["paceline.verify"].apply_async()
    except OperationalError as error:
        log.warning("verify_without_broker", error=str(error))  # the reconciler asks again


def _serve_metrics(settings: Settings) -> None:
    if settings.metrics_port is not None:
        exposition.serve(settings.metrics_port, settings.metrics_token)
