"""What a channel is: it sends one claimed message, and may be able to read a chat's history. Outcomes are values.

And what a channel kind declares of itself, so that everything else can be derived from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from marshmallow import Schema

from workers.channels.http.upstream import Network
from workers.domain.lookup import History
from workers.domain.message import Claim
from workers.domain.outcome import Capabilities, Outcome
from workers.domain.remarks import Remark


@dataclass(frozen=True, slots=True)
class Sender:
    """Whom a message is sent as. credentials: the account's own; empty for the channel's. settings: of the account."""

    credentials: Mapping[str, Any] = field(default_factory=dict)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """
    name: of the kind, as accounts have it in `channel`.
    platform: the part of the API's path under which its accounts are found.
    settings: a dataclass whose fields are made by `environment.variable`; `config` below is one of these.
    credentials, account_settings: schemas of what an account may have of both. What the API takes is stored as JSON.
    identity: (config, credentials) → a text that is equal for credentials that the upstream counts together; None if
        the account sends with the kind's own credentials, from its settings. Budgets are keyed by it.
    build: (config, network, connections) → the channel. Connects to nothing. connections: how many to keep alive.
    check: (config, network, timeout in seconds) → what asking the upstream shows. Sends no message.
    address: the field of `settings` that holds the URL of the upstream; "" if there is none.
    """

    name: str
    platform: str
    settings: type[Any]
    credentials: type[Schema]
    account_settings: type[Schema]
    identity: Callable[[Any, Mapping[str, Any]], str | None]
    build: Callable[[Any, Network, int], Channel]
    check: Callable[[Any, Network, float], Remark]
    address: str = "base_url"
