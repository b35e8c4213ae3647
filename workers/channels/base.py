"""What a channel is: it sends one claimed message, and may be able to look one up. Outcomes are values."""

from typing import Protocol

from workers.domain.message import Claim
from workers.domain.outcome import Finding, Outcome


class Channel(Protocol):
    name: str
    idempotent: bool
    """The upstream honours the idempotency key: the same message sent again is not delivered again."""
    has_history: bool
    """The upstream can be asked what arrived in a chat."""

    async def send(self, claim: Claim, api_key: str | None, *, start_by_s: float, timeout_s: float) -> Outcome:
        """Send it, once, on one event loop for all. Never raises for anything the upstream or the network does.

        start_by_s: by `clock.monotonic_s`, the last moment at which the exchange may begin, connecting included.
        timeout_s: from then to the last byte of the answer. No byte leaves after that.
        """

    def find(
        self,
        claim: Claim,
        api_key: str | None,
        *,
        started_ago_s: float,
        known_ids: frozenset[str],
        timeout_s: float,
    ) -> Finding:
        """Look in the upstream's history for a message whose outcome is unknown. Blocks the thread that asks.

        started_ago_s: only what arrived since counts. known_ids: upstream ids that belong to other messages; two
        messages of the same text are two messages.
        """

    def close(self) -> None: ...
