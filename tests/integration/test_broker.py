"""Celery's broker out of reach: asked again soon, and never waited for."""

from types import SimpleNamespace
from typing import Any

import pytest
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


def test_a_worker_asks_for_its_broker_steadily() -> None:
    class Away:
        """A broker's connection that only notes how it is to be asked for."""

        def ensure_connection(self, *_: object, **how: Any) -> "Away":
            self.how = how
            return self

    class Celery(Consumer):
        def __init__(self) -> None:
            self.app, self.first_connection_attempt = app, True

    connection = Celery().ensure_connected(Away())
    assert (connection.how["interval_start"], connection.how["interval_step"], connection.how["interval_max"]) == (
        1,
        0,
        1,
    )


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
