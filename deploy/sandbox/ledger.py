"""The judgement and the record: who may send now, what was accepted, what arrived, and what that proves.

Pure: time is an argument, in whole nanoseconds since the start, for at the edge of a window a float's
rounding would decide (2.3 - 2 < 0.3). Not safe for threads: the server holds one lock round every call and
reads the clock *inside* it, so that entries stand in the order of their times; `judge` refuses to go back.

`summarize` looks at the entries alone and counts windows in another way than `judge` does, so a mistake in
the one shows in the other.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import Final

from deploy.sandbox.chats import Chats, user_of
from deploy.sandbox.faults import Fault
from deploy.sandbox.message import Message

VERDICTS: Final = ("accepted", "replayed", "throttled", "refused", "failed", "dropped")
"""accepted, also where the answer was then spoilt · replayed: its first answer again · throttled: 429 ·
refused: any other 4xx · failed: any other status · dropped: cut before it was accepted"""
COUNTED: Final = ("accepted", "replayed")
"""The verdicts that fill the window."""
NOT_KEPT: Final = (408, 409, 425, 429)
"""The refusals that no upstream keeps under an Idempotency-Key: they say to try again."""

_UNITS: Final = {"s": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` in any half-open window of `period_ns`."""

    count: int
    period_ns: int

    def __str__(self) -> str:
        return f"{self.count}/{Decimal(self.period_ns).scaleb(-9).normalize():f}s"


def parse_limits(text: str) -> tuple[Limit, ...]:
    """The limits in `1/second,10/minute,10/2s`; ValueError if that is not what it says.

    Paceline's own parser is `ratelimit.limits`. The judge reads for itself: a unit misread there and here
    alike would be a limit that nobody holds.
    """
    limits = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)/(\d*\.?\d+)?(s|second|minute|hour|day)", part.strip(), re.ASCII)
        amount = int(match[1]) if match else 0
        period_ns = int(Decimal(match[2] or 1) * _UNITS[match[3]] * 10**9) if match else 0
        if not amount or not period_ns:
            raise ValueError(f"not a limit: {part!r}; right would be 10/minute, 10/2s or 1/second,1000/day")
        limits.append(Limit(amount, period_ns))
    return tuple(limits)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to send that has been read to its end, and when that was."""

    message: Message
    """With an empty chat_id and text, if the body had none to offer."""
    at_ns: int
    """Nanoseconds since the start, by a clock that never goes back. Judged by."""
    wall: datetime
    """In UTC. Shown only."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One arrival, and what came of it."""

    n: int
    arrival: Arrival
    verdict: str
    """One of VERDICTS."""
    status: int | None
    """The HTTP status of the answer; None if there was none."""
    id: str | None
    overshoot: bool
    """Whether the window was full when it arrived, enforced or not."""
    fault: str | None
    """The kind of misbehaviour it met."""

    def to_json(self) -> dict[str, object]:
        """As the control API shows it; `at` in seconds since the start."""
        message = self.arrival.message
        return {
            "n": self.n,
            "at": self.arrival.at_ns / 1e9,
            "wall": iso(self.arrival.wall),
            "key": message.key,
            "chat_id": message.chat_id,
            "text": message.text,
            "idempotency_key": message.idempotency_key,
            "verdict": self.verdict,
            "status": self.status,
            "id": self.id,
            "overshoot": self.overshoot,
            "fault": self.fault,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What to tell the client, and how to spoil it."""

    status: int
    body: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    held: bool = False
    """Not over yet. After the fault's `wait_s`: to be judged once more with this fault as `held` if it is `late`, else
    to be finished."""


@dataclass(frozen=True, slots=True)
class _FirstUse:
    """What a request under an Idempotency-Key was answered. Everybody who uses the key again is answered the same."""

    message: Message
    status: int
    body: Mapping[str, object]


class Ledger:
    """Everything that arrived, and what follows. `enforce`, `idempotent`, `keeps_refusals`, `chats.keeps` and
    `chats.authors` may be switched at any time."""

    def __init__(
        self,
        limits: str = "10/minute",
        *,
        enforce: bool = True,
        idempotent: bool = True,
        keeps_refusals: bool = False,
        chats: Chats | None = None,
    ) -> None:
        self.limits = parse_limits(limits)
        self.enforce = enforce
        self.idempotent = idempotent
        self.keeps_refusals = keeps_refusals
        """Whether a refusal, too, is the answer to every later request under its Idempotency-Key."""
        self.chats = chats or Chats()
        self._ids = count(1)  # goes on after clear(): an id is never given twice
        self.clear()

    def clear(self) -> None:
        """Forget the entries, the history, the windows and the Idempotency-Keys."""
        self.entries: list[Entry] = []
        self.chats.clear()
        self._counted: defaultdict[str, list[int]] = defaultdict(list)  # API key: times, ascending
        self._first: dict[tuple[str, str], _FirstUse] = {}
        self._at_work: dict[str, tuple[Message, Fault]] = {}  # by id: accepted, and not in the history yet

    def wait_ns(self, key: str, at_ns: int) -> int:
        """How long until this key may send, in nanoseconds; 0 is now.

        A limit of N is used up if the Nth last request counted is still in the window that ends now. Example:
        2/10s, sent at 0 and 4. At 9 the second last (0) is younger than 10: wait 1. At 10 it is exactly 10
        old, and outside.
        """
        sent = self._counted.get(key, [])
        ages_out = (sent[-limit.count] + limit.period_ns for limit in self.limits if len(sent) >= limit.count)
        return max(0, max(ages_out, default=at_ns) - at_ns)

    def judge(
        self,
        arrival: Arrival,
        misbehave: Callable[[Message], Fault | None] = lambda _: None,
        held: Fault | None = None,
    ) -> Answer:
        """Decide about a well-formed request, and record it.

        `misbehave` is asked only about one that the window lets through, and whose Idempotency-Key is not in use. One
        that is to be `late` is not recorded until it comes a second time, as `held`: it counts from when it is
        accepted. ValueError if time went back.
        """
        message = arrival.message
        wait_ns = self.wait_ns(message.key, arrival.at_ns)
        if wait_ns and self.enforce:
            return self.refuse(arrival, 429, "Too many messages", wait_ns / 1e9)
        if in_use := self._in_use(message):
            return self.refuse(arrival, 409, "This Idempotency-Key is in use", in_use.retry_after_s)
        fault = held or misbehave(message)
        if fault is not None and fault.kind == "late" and held is None:
            return Answer(202, {}, {}, fault, held=True)
        if fault is not None and not fault.accepts:
            return self.turn_away(arrival, fault)
        first = self._first.get((message.key, message.idempotency_key or "")) if self.idempotent else None
        return self._replay(arrival, first, fault) if first else self._accept(arrival, fault)

    def finish(self, answer: Answer) -> None:
        """End the work on a message that was held with its Idempotency-Key in use: it is in its chat from now on, and
        the key is answered. Does nothing if the ledger was cleared meanwhile."""
        message, _ = self._at_work.pop(str(answer.body["id"]), (None, None))
        if message is not None:
            self._keep(message, answer.body)

    def turn_away(self, arrival: Arrival, fault: Fault) -> Answer:
        """Record a request that meets a fault which accepts nothing."""
        words = fault.error or f"The sandbox was told to answer {fault.status}"
        answer = self.refuse(arrival, fault.status, words, fault.retry_after_s, fault)
        message, is_refusal = arrival.message, fault.kind == "status" and 400 <= fault.status < 500
        if self.keeps_refusals and is_refusal and fault.status not in NOT_KEPT and message.idempotency_key is not None:
            first = _FirstUse(message, answer.status, answer.body)
            self._first.setdefault((message.key, message.idempotency_key), first)
        return answer

    def write(self, key: str, chat_id: str, text: str, wall: datetime, *, by_fan: bool) -> dict[str, object]:
        """Add a message that no request brought to a chat: the fan's own, or one typed by the account's user."""
        record = self._record(self._new_id(), Message(key, chat_id, text), wall)
        if by_fan:
            record["from_user"] = {"id": chat_id}
        self.chats.keep(key, record)
        return record

    def _in_use(self, message: Message) -> Fault | None:
        if not self.idempotent or message.idempotency_key is None:
            return None
        for first, fault in self._at_work.values():
            if (first.key, first.idempotency_key) == (message.key, message.idempotency_key):
                return fault
        return None

    def _replay(self, arrival: Arrival, first: _FirstUse, fault: Fault | None) -> Answer:
        if first.message != arrival.message:
            return self.refuse(arrival, 409, "This Idempotency-Key was another message's")
        is_refusal = first.status >= 400
        id = None if is_refusal else str(first.body["id"])
        self._note(arrival, "refused" if is_refusal else "replayed", first.status, fault, id)
        return Answer(first.status, first.body, {"Idempotent-Replayed": "true"}, fault)

    def _accept(self, arrival: Arrival, fault: Fault | None) -> Answer:
        message, id = arrival.message, self._new_id()
        self._note(arrival, "accepted", 200, fault, id)
        record = self._record(id, message, arrival.wall)
        held = fault is not None and fault.uses_key
        if fault is not None and held:
            self._at_work[id] = (message, fault)
        else:
            self._keep(message, record)
        return Answer(200, record, {}, fault, held)

    def refuse(
        self,
        arrival: Arrival,
        status: int,
        words: str,
        retry_after_s: float | None = None,
        fault: Fault | None = None,
    ) -> Answer:
        """Record a request that is not accepted; also one that is no message at all, so none goes unseen."""
        verdict = "throttled" if status == 429 else "refused" if 400 <= status < 500 else "failed"
        if fault is not None and not fault.answers:
            verdict = "dropped"
        headers = {}
        if status == 429 or retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after_s or 1)))
        self._note(arrival, verdict, status, fault)
        return Answer(status, {"error": words}, headers, fault)

    def _note(self, arrival: Arrival, verdict: str, status: int, fault: Fault | None, id: str | None = None) -> Entry:
        at_ns, key = arrival.at_ns, arrival.message.key
        if self.entries and at_ns < self.entries[-1].arrival.at_ns:
            raise ValueError("the ledger's time cannot go back: read the clock inside the lock")
        entry = Entry(
            n=len(self.entries) + 1,
            arrival=arrival,
            verdict=verdict,
            status=status if fault is None or fault.answers else None,
            id=id,
            overshoot=self.wait_ns(key, at_ns) > 0,
            fault=fault.kind if fault else None,
        )
        self.entries.append(entry)
        if verdict in COUNTED:
            self._counted[key].append(at_ns)
        return entry

    def _new_id(self) -> str:
        return f"up_{next(self._ids):012d}"

    def _record(self, id: str, message: Message, wall: datetime) -> dict[str, object]:
        return {
            "id": id,
            "chat_id": message.chat_id,
            "text": message.text,
            "media_ids": list(message.media_ids),
            "created_at": iso(wall),
            "from_user": {"id": user_of(message.key)["id"]},
        }

    def _keep(self, message: Message, record: Mapping[str, object]) -> None:
        self.chats.keep(message.key, record)
        if message.idempotency_key is not None:
            self._first.setdefault((message.key, message.idempotency_key), _FirstUse(message, 200, record))


def summarize(entries: Sequence[Entry], limits: Iterable[Limit]) -> dict[str, object]:
    """What the entries prove, all of it counted from them alone.

    `duplicates`: how many times a message was accepted beyond the first, known by its Idempotency-Key,
    whichever API key it came with: a message sent twice from two accounts is sent twice. `m1` and `m1.2` are keys
    of one message: after an answered refusal a sender uses the second. `overshoot`: how
    many requests, of any verdict, arrived at a full window. `worst_window`: {api key: {"10/60s": n}}, the
    most that counted in any window.
    """
    by_verdict = dict.fromkeys(VERDICTS, 0) | Counter(entry.verdict for entry in entries)
    times_ns: defaultdict[str, list[int]] = defaultdict(list)
    accepted: Counter[str] = Counter()
    for entry in entries:
        message = entry.arrival.message
        if entry.verdict in COUNTED:
            times_ns[message.key].append(entry.arrival.at_ns)
        if entry.verdict == "accepted" and message.idempotency_key is not None:
            accepted[message.idempotency_key.partition(".")[0]] += 1
    return {
        "accepted": by_verdict["accepted"],
        "replayed": by_verdict["replayed"],
        "throttled": by_verdict["throttled"],
        "refused": by_verdict["refused"],
        "duplicates": accepted.total() - len(accepted),
        "overshoot": sum(entry.overshoot for entry in entries),
        "worst_window": {
            key: {str(limit): fullest_window(times, limit.period_ns) for limit in limits}
            for key, times in times_ns.items()
        },
        "by_verdict": by_verdict,
        "arrivals": len(entries),
    }


def fullest_window(times_ns: Sequence[int], period_ns: int) -> int:
    """The most of these ascending times in any window (t - period, t]; the fullest ends at one of them."""
    fullest = oldest = 0
    for newest, at_ns in enumerate(times_ns):
        while times_ns[oldest] <= at_ns - period_ns:
            oldest += 1
        fullest = max(fullest, newest - oldest + 1)
    return fullest


def iso(wall: datetime) -> str:
    """ISO-8601 UTC with milliseconds and Z."""
    return wall.isoformat(timespec="milliseconds").replace("+00:00", "Z")
