"""A caller who does not give up: the fault suite's client of the API and of the sandbox's controls."""

import time
from typing import Any

from deploy.client import Client, NoAnswer

PAUSE_S = 0.2


class Caller(Client):
    """Thread-safe."""

    def until_answered(self, method: str, path: str, body: Any = None, *, within_s: float = 60.0) -> Any:
        """The body of a 2xx, of a request that may be repeated until there is one. Raises NoAnswer if none comes in
        time, or if the request is at fault."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                answer = self.ask(method, path, body)
                if answer.ok:
                    return answer.body
                if 400 <= answer.status < 500 and answer.status not in (408, 429):
                    raise NoAnswer(f"{method} {path}: {answer}")
            except NoAnswer:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(PAUSE_S)
