"""Celery's broker out of reach: asked again soon, and never waited for."""

import socket
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from deploy.stack import free_port
from workers.bootstrap import Adapters
from workers.engine.celery_app import app
from workers.engine.consumer import Consumer
from workers.engine.pacer import Pacer
from workers.wakeups import PUBLICATION


@pytest.fixture
def pacer(monkeypatch: pytest.MonkeyPatch) -> Pacer:
    monkeypatch.setitem(app.conf, "broker_url", f"amqp://127.0.0.1:{free_port()}//")
    return Pacer(app)


def test_the_pacer_does_not_wait_for_a_broker_that_is_away(pacer: Pacer) -> None:
    with pytest.raises(OperationalError):
        _ = pacer.producer  # Celery's own scheduler would stay here


def test_a_worker_asks_for_its_broker_once_a_second() -> None:
    """Celery itself would ask after 2 s, then after 4 s, then after 6 s."""

    class Worker(Consumer):
        def __init__(self, app: Celery) -> None:
            self.app, self.first_connection_attempt, self.broker_connection_retry_attempt = app, True, 0

    with socket.create_server(("127.0.0.1", 0)) as broker:
        asked_s: list[float] = []

        def hang_up() -> None:
            for _ in range(3):
                broker.accept()[0].close()
                asked_s.append(time.monotonic())

        answering = threading.Thread(target=hang_up)
        answering.start()
        worker = Worker(Celery(broker=f"amqp://127.0.0.1:{broker.getsockname()[1]}//"))
        worker.app.conf.broker_connection_max_retries = 2
        with pytest.raises(OperationalError), worker.app.connection_for_read() as connection:
            worker.ensure_connected(connection)
        answering.join()
    assert [later - sooner for sooner, later in pairwise(asked_s)] == pytest.approx([1, 1], abs=0.4)


def test_a_published_drain_has_a_number_and_no_wall_clock_to_expire_by(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.conf, "broker_url", "memory://")
    app.loader.import_default_modules()
    adapters.wakeups.wake("default")
    due = adapters.wakeups.take_due()
    pacer = Pacer(app)
    pacer._publish(due)
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue(app.conf.task_default_queue).get(timeout=5)
    pacer.close()
    assert (message.headers["expires"], message.headers["eta"]) == (None, None)
    assert message.headers[PUBLICATION] == due.publication == 1


def test_a_task_hands_the_number_of_its_publication_to_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[object] = []
    dispatcher = SimpleNamespace(drain=lambda *what: drained.append(what))
    monkeypatch.setattr(app, "process", SimpleNamespace(dispatcher=dispatcher), raising=False)
    app.loader.import_default_modules()
    drain = app.tasks["paceline.drain"]
    drain.apply(("a",), headers={PUBLICATION: 7})
    drain.apply(("a",))  # from a pacer of an older version
    assert drained == [("a", 7), ("a", None)]
