"""The pipeline: an accepted message waits, is claimed, sent and seen through to its end.

domain      what may happen to a message, and what should: pure decisions
store       PostgreSQL, the truth: one named statement per transition
channels    the upstream platforms, each behind one small protocol
wakeups     which account has something to do, and when: Redis
services    the use cases, composed of the above
engine      what runs them: worker and pacer processes, Celery, the reconciler
telemetry   metrics, logs and traces
settings    what the environment says; environment    how it is read
bootstrap   the one place where adapters are built from settings
"""
