"""What a user would build instead of Paceline: the same work, for the same judge, tuned as its own documentation says.

Each module is a whole application: a queue, a worker, a limiter, and `enqueue`. They run in an environment of their own
(requirements/bench.txt) and know nothing of Paceline; what they are told comes through the environment (`work.py`).

    obvious          Celery task per message, SQLAlchemy ORM, requests: what a first version looks like. No limits.
    celery_rate      Celery's own `rate_limit`
    celery_limits    Celery and `limits`, a moving window in Redis
    dramatiq_window  dramatiq and its WindowRateLimiter
    bullmq/          BullMQ and its limiter, for Node
"""
