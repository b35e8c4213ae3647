"""What a channel is: it sends one claimed message, and may be able to read a chat's history. Outcomes are values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from workers.domain.lookup import History
from workers.domain.message import Claim
from workers.domain.outcome import Capabilities, Outcome


@dataclass(frozen=True, slots=True)
class Sender:
    """Whom a message is sent as. api_key: the account's own; None for the channel's. settings: of the account."""

    api_key: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Sender(…)"


class Channel(Protocol):
    name: str

    @property
    def capabilities(self) -> Capabilities: ...

    async def send(self, claim: Claim, sender: Sender, *, start_by_s: float, timeout_s: float) -> Outcome:
        """Send it, once, on one event loop for all. Never raises for anything the upstream or the network does.

        start_by_s: by `clock.monotonic_s`, the last moment at which the exchange may begin, connecting included.
        timeout_s: from then to the last byte of the answer. No byte leaves after that.
        """

    def history(self, chat_id: str, sender: Sender, *, since_s: float, timeout_s: float) -> History:
        """The entries of a chat that are at most `since_s` seconds old. Blocks the thread that asks. Never raises for
        anything the upstream or the network does: then the history says why it is not whole.
        """

    def close(self) -> None: ...
