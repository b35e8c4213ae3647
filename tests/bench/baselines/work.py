"""The work that all of them do: put messages into a queue, and take each to the upstream, under its own key, once."""

import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import requests

REDIS_URL = os.environ["BENCH_REDIS_URL"]
UPSTREAM_URL = os.environ["BENCH_UPSTREAM_URL"]
LIMIT_COUNT = int(os.environ.get("BENCH_LIMIT_COUNT", "100000"))
LIMIT_PERIOD_S = int(os.environ.get("BENCH_LIMIT_PERIOD_S", "1"))

_sessions = threading.local()


class Mail(NamedTuple):
    message_id: str
    account: str
    recipient: str
    text: str


class Throttled(Exception):
    """The upstream said 429."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"throttled for {retry_after_s} s")
        self.retry_after_s = retry_after_s


def mails(run: str, messages: int, accounts: int) -> Iterator[Mail]:
    """The nth message goes out from the nth account, round and round."""
    for n in range(messages):
        yield Mail(f"{run}-{n}", f"account-{n % accounts}", f"fan-{n}", "Hello")


def post(mail: Mail) -> str:
    """Send it over a kept-alive connection. Returns the upstream's id. Raises Throttled, and what requests raises."""
    session = getattr(_sessions, "session", None)
    if session is None:
        session = _sessions.session = requests.Session()
        session.trust_env = False  # it would look for proxies and a .netrc before every request
    return told(session.post(f"{UPSTREAM_URL}/chats/send-message", **asked(mail), timeout=10))


def asked(mail: Mail) -> dict[str, object]:
    return {
        "json": {"chat_id": mail.recipient, "text": mail.text, "media_ids": []},
        "headers": {"Authorization": f"Bearer {mail.account}", "Idempotency-Key": mail.message_id},
    }


def told(answer: requests.Response) -> str:
    if answer.status_code == 429:
        raise Throttled(float(answer.headers.get("Retry-After", "1")))
    answer.raise_for_status()
    return str(answer.json()["id"])
