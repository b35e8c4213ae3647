"""Celery's own `rate_limit`, which is per worker and per task: what a user with one account reaches for first.

Its guide says that a limit in tasks per second or minute is spread evenly over it, by a token bucket in the worker's
main process. So one worker (with two processes) holds the limit; two workers would hold it twice. There is no limit per
account: a task is made for each, on the same queue.
"""

from collections.abc import Iterable
from typing import Any

import requests
from celery import Celery, Task

from tests.bench.baselines.work import LIMIT_COUNT, LIMIT_PERIOD_S, REDIS_URL, Mail, Throttled, post

ACCOUNTS = 64
"""A task each. More would have no task."""

app = Celery("celery_rate", broker=REDIS_URL.replace("unix://", "redis+socket://").replace("?db=", "?virtual_host="))
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    broker_transport_options={"visibility_timeout": 30},
)


def _send(self: Any, *mail: str) -> None:
    try:
        post(Mail(*mail))
    except Throttled as throttled:
        raise self.retry(countdown=throttled.retry_after_s) from throttled
    except requests.RequestException as error:
        raise self.retry(countdown=min(60, 2**self.request.retries)) from error


def _task(account: str) -> Task:
    rate = f"{LIMIT_COUNT / LIMIT_PERIOD_S:.6f}/s"
    return app.task(_send, name=f"send-{account}", bind=True, max_retries=None, rate_limit=rate)


SENDS = {f"account-{n}": _task(f"account-{n}") for n in range(ACCOUNTS)}


def enqueue(mails: Iterable[Mail]) -> None:
    with app.producer_or_acquire() as producer:
        for mail in mails:
            SENDS[mail.account].apply_async(mail, producer=producer)
