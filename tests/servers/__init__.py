"""Other people's servers: Debian's PostgreSQL 15, Redis 7 and RabbitMQ, in place of the PostgreSQL and the Valkey that
come as wheels.

`make test-servers` runs the tests on them. Paceline is told nothing of it but DATABASE_URL, REDIS_URL and
CELERY_BROKER_URL; the tests hold the servers themselves, so that they can break these as they break the wheels'.
"""
