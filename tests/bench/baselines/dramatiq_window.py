"""dramatiq and its WindowRateLimiter: a message per message, a sliding window of whole seconds per account in Redis;
what is denied raises RateLimitExceeded and comes back with a backoff.

Tuned as its guide says: a denial is retried without end, and soon (the default backoff begins at 15 s); a worker counts
as dead after 15 s and not 60, and one command in a hundred, not in a thousand, looks for the messages of dead ones.
"""

from collections.abc import Iterable

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.rate_limits import WindowRateLimiter
from dramatiq.rate_limits.backends import RedisBackend

from tests.bench.baselines.work import LIMIT_COUNT, LIMIT_PERIOD_S, REDIS_URL, Mail, Throttled, post

broker = RedisBroker(url=REDIS_URL, heartbeat_timeout=15_000, maintenance_chance=10_000)
dramatiq.set_broker(broker)
backend = RedisBackend(client=redis.Redis.from_url(REDIS_URL))


@dramatiq.actor(max_retries=None, min_backoff=50, max_backoff=1000)
def send(*mail: str) -> None:
    message = Mail(*mail)
    with WindowRateLimiter(backend, message.account, limit=LIMIT_COUNT, window=LIMIT_PERIOD_S).acquire():
        try:
            post(message)
        except Throttled as throttled:
            raise dramatiq.Retry("throttled", delay=round(throttled.retry_after_s * 1000)) from throttled


def enqueue(mails: Iterable[Mail]) -> None:
    for mail in mails:
        send.send(*mail)
