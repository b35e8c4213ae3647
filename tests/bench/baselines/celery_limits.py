"""Celery with `limits`: a task per message, a moving window per account in Redis; what is denied is retried when the
window has room again.

Tuned as the two say. Celery's guide ("Optimizing"): many short tasks want a large prefetch multiplier; results that
nobody reads are ignored; tasks that must survive their worker are acknowledged late and rejected when it is lost.
limits' guide: the moving window is the strategy that never lets more than the limit through in any period, and
`get_window_stats` says when there is room again.
"""

import time
from collections.abc import Iterable
from typing import Any

import requests
from celery import Celery
from limits import RateLimitItemPerSecond
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter

from tests.bench.baselines.work import LIMIT_COUNT, LIMIT_PERIOD_S, REDIS_URL, Mail, Throttled, post

app = Celery("celery_limits", broker=REDIS_URL.replace("unix://", "redis+socket://").replace("?db=", "?virtual_host="))
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    broker_transport_options={"visibility_timeout": 30},
)
limiter = MovingWindowRateLimiter(storage_from_string(REDIS_URL.replace("unix://", "redis+unix://")))
LIMIT = RateLimitItemPerSecond(LIMIT_COUNT, LIMIT_PERIOD_S)


@app.task(bind=True, max_retries=None)
def send(self: Any, *mail: str) -> None:
    message = Mail(*mail)
    if not limiter.hit(LIMIT, message.account):
        free_at, _ = limiter.get_window_stats(LIMIT, message.account)
        raise self.retry(countdown=max(0.0, free_at - time.time()))
    try:
        post(message)
    except Throttled as throttled:
        raise self.retry(countdown=throttled.retry_after_s) from throttled
    except requests.RequestException as error:
        raise self.retry(countdown=min(60, 2**self.request.retries)) from error


def enqueue(mails: Iterable[Mail]) -> None:
    with app.producer_or_acquire() as producer:
        for mail in mails:
            send.apply_async(mail, producer=producer)
