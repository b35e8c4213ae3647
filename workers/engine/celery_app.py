"""The Celery application: configuration from `celeryconfig`, the broker from the settings, and what a process owns."""

from celery import Celery

import celeryconfig

app = Celery("paceline", include=["workers.engine.tasks"])
app.config_from_object(celeryconfig)
