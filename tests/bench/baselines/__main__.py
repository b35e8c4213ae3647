"""`python -m tests.bench.baselines celery_limits RUN MESSAGES ACCOUNTS`: put so many messages into its queue."""

import importlib
import sys

from tests.bench.baselines.work import mails

name, run, messages, accounts = sys.argv[1:]
importlib.import_module(f"tests.bench.baselines.{name}").enqueue(mails(run, int(messages), int(accounts)))
