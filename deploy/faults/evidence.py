"""What both sides say in the end: the API of every message, the upstream of every request."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from deploy.faults.caller import Caller
from deploy.faults.load import Posted

READERS = 4
PLAINLY_S = 1.0
"""A message recorded as sent this long after its acceptance upstream has a story to tell: somebody had to find out."""
FOUND, ABSENT = "unknown, then found in the history", "unknown, then not found in the history"
BURNT = "burnt by an outage"
UNAVAILABLE = "Away, says the fault suite"
"""The words of the upstream's 503 with Retry-After."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the API says of a message. attempts: the outcomes on record, oldest first, of those messages to which more
    happened than one plain send; reason: of a dead letter."""

    status: str
    reason: str | None = None
    attempts: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as the upstream has it in its ledger. message_id: its Idempotency-Key, noted whether it is honoured or
    not, without the number that a message's second key has. at_ns: by the upstream's clock, which judges; wall_s: by
    the one on its wall (Unix time). full: the account's window was full when it arrived."""

    at_ns: int
    key: str
    message_id: str | None
    verdict: str
    wall_s: float = 0.0
    full: bool = False
    fault: str | None = None


@dataclass(frozen=True)
class Evidence:
    """posted: what got a 202, each account's in the order of acceptance. unclear: chats, by API key and recipient, in
    which nobody can find out what became of an unknown outcome."""

    posted: tuple[Posted, ...]
    told: Mapping[str, Told]
    arrivals: tuple[Arrival, ...]
    unclear: frozenset[tuple[str, str]] = frozenset()

    @cached_property
    def by_id(self) -> Mapping[str, Posted]:
        return {posted.message_id: posted for posted in self.posted}


def collect(
    api: Caller, upstream: Caller, posted: Iterable[Posted], unclear: Iterable[tuple[str, str]] = ()
) -> Evidence:
    """Ask both sides. For when all is over, or is not going to be."""
    entries = upstream.until_answered("GET", "/_sandbox/ledger")["entries"]
    arrivals = tuple(
        Arrival(
            at_ns=round(entry["at"] * 1e9),
            key=entry["key"],
            message_id=_message_id(entry["idempotency_key"]),
            verdict=entry["verdict"],
            wall_s=datetime.fromisoformat(entry["wall"]).timestamp(),
            full=entry["overshoot"],
            fault=entry["fault"],
        )
        for entry in entries
    )
    messages = {message["messageId"]: message for message in _messages(api)}
    reasons = {message["messageId"]: message["reason"] for message in _failed(api)}
    with ThreadPoolExecutor(READERS, thread_name_prefix="reader") as readers:
        stories = dict(readers.map(lambda id: (id, _attempts(api, id)), _eventful(messages, entries)))
    told = {id: Told(message["status"], reasons.get(id), stories.get(id, ())) for id, message in messages.items()}
    return Evidence(tuple(posted), told, arrivals, frozenset(unclear))


def _message_id(idempotency_key: str | None) -> str | None:
    return idempotency_key and idempotency_key.partition(".")[0]


def _eventful(messages: Mapping[str, Mapping[str, Any]], entries: list[dict[str, Any]]) -> list[str]:
    accepted = {_message_id(entry["idempotency_key"]): entry for entry in entries if entry["verdict"] == "accepted"}
    return [
        id
        for id, message in messages.items()
        if message["attemptCount"]
        and (
            message["attemptCount"] > 1
            or message["status"] != "sent"
            or id not in accepted
            or _seconds_between(accepted[id]["wall"], message["sentAt"]) > PLAINLY_S
        )
    ]


def _seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _attempts(api: Caller, message_id: str) -> tuple[str | None, ...]:
    found = api.until_answered("GET", f"/messages/{message_id}")["attempts"]
    return tuple(understood(attempt["outcome"], attempt["error"] or "", attempt["httpStatus"]) for attempt in found)


def understood(outcome: str | None, error: str, status: int | None) -> str | None:
    """An attempt on record, as we see it.

    Those that were unknown until somebody looked them up still are, for us, with what was found. One of which nothing
    left, or which an upstream that was away refused unread, should not be on record as an attempt.
    """
    for words, finding in (("looked up: it arrived", FOUND), ("looked up: it did not arrive", ABSENT)):
        if words in error:
            return finding
    nothing_left = status is None and outcome in ("failed", "unavailable")
    return BURNT if nothing_left or error.startswith(UNAVAILABLE) else outcome


def _messages(api: Caller) -> Iterable[dict[str, Any]]:
    page = api.until_answered("GET", "/messages?limit=200")
    yield from page["messages"]
    while page["nextCursor"]:
        page = api.until_answered("GET", f"/messages?limit=200&cursor={page['nextCursor']}")
        yield from page["messages"]


def _failed(api: Caller) -> Iterable[dict[str, Any]]:
    offset = 0
    while True:
        page = api.until_answered("GET", f"/failed?limit=200&offset={offset}")
        yield from page["messages"]
        offset += 200
        if offset >= page["total"]:
            return
