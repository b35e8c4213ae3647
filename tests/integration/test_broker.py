"""Celery's broker out of reach: asked again soon, and never waited for."""

from typing import Any

import pytest
from kombu.exceptions import OperationalError

from deploy.stack import free_port
from workers.celery_app import app
from workers.consumer import Consumer
from workers.pacer import Pacer


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
