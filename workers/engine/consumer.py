"""A worker's connection to Celery's broker."""

from functools import partial
from typing import Any

from celery.worker import consumer

ASK_AGAIN_S = 1.0


class Consumer(consumer.Consumer):
    """Celery's own, which asks a broker that is away once a second. Left to itself it would ask ever more rarely, and
    be idle for up to half a minute after the broker is back."""

    def ensure_connected(self, conn: Any) -> Any:
        steadily = {"interval_start": ASK_AGAIN_S, "interval_step": 0, "interval_max": ASK_AGAIN_S}
        conn.ensure_connection = partial(conn.ensure_connection, **steadily)
        return super().ensure_connected(conn)
