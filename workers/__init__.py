"""The pipeline: an accepted message waits, is claimed, sent and seen through to its end.

domain       what may happen to a message, and what should: pure decisions
store        PostgreSQL, the truth: one named statement per transition
channels     the upstream platforms, each behind one small protocol
wakeups      which account has something to do, and when: Redis
services     the use cases, composed of the above
engine       what runs them: worker and pacer processes, Celery, the reconciler
telemetry    metrics, logs and traces
bootstrap    the one place where adapters are built from settings
settings     every setting, and what is wrong with a bad one
environment  how settings are read from the environment
credentials  accounts' keys, encrypted at rest
encoding     values as JSON
clock        a clock for deadlines, and moments of the calendar
"""
