"""What a kind asks of HTTP: one exchange, with certainty about what may have left.

Kinds use nothing but this, so that whatever keeps the promise can take the place of `transport.Transport`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer's body, unless a call allows more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """headers: their names Written-Like-This; what is said twice is joined by a comma."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NotSent(Exception):
    """Certainly no byte of the request has left, or TLS kept the upstream from reading it. Its words say why."""


class TooLate(NotSent):
    """No byte has left, because this process came to it too late. The upstream is not to blame."""


class NoAnswer(Exception):
    """The request left, wholly or in part, and no whole answer came back."""


class Exchange(Protocol):
    """Makes requests to one upstream."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str],
        body: bytes | None = None,
        start_by_s: float = float("inf"),
        max_answer: int = MAX_ANSWER,
    ) -> Answer:
        """One exchange, never repeated. Raises `NotSent` (or its `TooLate`) or `NoAnswer`, and nothing else.

        start_by_s: by `clock.monotonic_s`, the last moment at which the exchange may begin, connecting included.
        timeout_s: from then to the last byte of the answer. No byte leaves after that; so whatever happens to this
        process, none leaves after `start_by_s + timeout_s`.
        max_answer: bytes of the answer's body, unpacked; a longer one is no answer.
        """

    def close(self) -> None: ...
