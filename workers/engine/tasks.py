"""Celery tasks: thin, and wake-ups only. What they need hangs on the application (`workers.engine.processes`)."""

import threading
from typing import Any

import structlog

from ratelimit import TokensUnavailable
from workers.domain.errors import StoreUnavailable, UnknownKind, Unreadable
from workers.engine.celery_app import app
from workers.services.recovery import verify as verify_due
from workers.telemetry.logs import logger
from workers.wakeups import PUBLICATION

VERIFIERS = threading.BoundedSemaphore(1)
"""One task at a time makes lookups, several at once and for as long as there are any: drains want the process's threads
too."""

log = logger(__name__)


@app.task(name="paceline.drain", bind=True)
def drain(self: Any, account_id: str) -> None:
    """Send what the account may send now."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(account_id=account_id)
    try:
        self.app.process.dispatcher.drain(account_id, (self.request.headers or {}).get(PUBLICATION))
    except Unreadable as error:
        log.error("credentials_unreadable", error=str(error))  # its messages wait for a worker that has the key
    except UnknownKind as error:
        log.error("channel_kind_unknown", error=str(error))  # its messages wait for a worker that has the kind
    except (StoreUnavailable, TokensUnavailable) as error:
        log.warning("drain_interrupted", error=str(error))  # the reconciler wakes the account again


@app.task(name="paceline.verify", bind=True)
def verify(self: Any) -> None:
    """Look up the unknown outcomes that are due."""
    structlog.contextvars.clear_contextvars()
    process = self.app.process
    a = process.adapters
    if not VERIFIERS.acquire(blocking=False):
        return
    try:
        verify_due(a.db, a.publisher, a.channels, a.vault, a.settings.retry_policy, process.dispatcher.stopping)
    except (StoreUnavailable, TokensUnavailable) as error:
        log.warning("verify_interrupted", error=str(error))
    finally:
        VERIFIERS.release()
