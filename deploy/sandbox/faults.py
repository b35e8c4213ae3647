"""Which misbehaviour a request meets: by script, by the recipient's name, by chance, in this order.

Decides only. Whether the message is accepted all the same is the ledger's to record, and what the client then
sees on its socket is the server's to play.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from deploy.sandbox.message import Message

KINDS: Final = {
    "status": "answer `status` with an error; not accepted",
    "cut_before": "close the connection without an answer; not accepted",
    "cut": "accept, then close the connection without an answer",
    "cut_midway": "accept, then close the connection after half of the answer's body",
    "late": "hold the request for `delay_s`, and only then accept it, and close the connection without an answer",
    "hang": "accept, hold the connection open for `delay_s` without an answer, then close it",
    "swallow": "hold the connection open for `delay_s` without an answer, then close it; not accepted",
    "in_use": "work on the request for `delay_s` with its Idempotency-Key in use, then show it and answer",
    "in_use_cut": "close the connection at once, and work on the request as `in_use` does",
    "delay": "accept, answer after `delay_s`",
    "drip": "accept, answer one byte at a time, `delay_s` in all",
    "garbage": "accept, answer 200 with bytes that are not JSON",
    "no_id": "accept, answer 200 with JSON that has no id",
}


def _is_span(value: object) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 86400)  # type: ignore[operator]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to misbehave, whom it is meant for, and how often. ValueError if it makes no sense."""

    kind: str
    """One of KINDS."""
    status: int = 503
    delay_s: float | None = None
    """For the kinds that wait: 2 s if not given; `hang` and `swallow` 30 s, to outlast the patience of a client."""
    retry_after_s: float | None = None
    """The Retry-After of a `status`, and of the 409 for a key `in_use`; a 429 always has one, 1 s if not given."""
    error: str | None = None
    """The words of a `status`."""
    times: int | None = 1
    """How many requests meet it (by recipient's name: how many of each message); None: all of them."""
    chat_id: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        _require(isinstance(self.kind, str) and self.kind in KINDS, f"kind must be one of {', '.join(KINDS)}")
        _require(type(self.status) is int and 300 <= self.status <= 599, "status must be from 300 to 599")
        _require(self.status != 304, "status 304 has no body and cannot carry an error")
        is_count = type(self.times) is int and self.times > 0
        _require(self.times is None or is_count, "times must be 1 or more, or null: always")
        for name in ("delay_s", "retry_after_s"):
            _require(_is_span(getattr(self, name)), f"{name} must be a number of seconds, 0 to 86400")
        for name in ("chat_id", "text", "error"):
            _require(isinstance(getattr(self, name), str | None), f"{name} must be a string")

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Fault:
        """A fault from the control API's JSON: the fields of this class, no others."""
        unknown = body.keys() - {field.name for field in fields(cls)}
        _require(not unknown, f"unknown: {', '.join(sorted(unknown))}")
        return cls(**{"kind": None, **body})

    @classmethod
    def from_rate(cls, name: str) -> Fault:
        """A fault from the name of a rate: `cut`, `status:503`, and `delay:0.5` for the kinds that wait."""
        kind, colon, number = name.partition(":")
        if not colon:
            return cls(kind, times=None)
        if kind == "status":
            return cls(kind, status=int(number), times=None)
        return cls(kind, delay_s=float(number), times=None)

    @property
    def accepts(self) -> bool:
        """Whether a message that meets it is accepted all the same."""
        return self.kind not in ("status", "cut_before", "swallow")

    @property
    def answers(self) -> bool:
        """Whether the client gets a status line at all."""
        return self.kind not in ("cut_before", "cut", "late", "hang", "swallow", "in_use_cut")

    @property
    def uses_key(self) -> bool:
        """Whether the Idempotency-Key is in use for `wait_s`: accepted at once, shown in the history in the end."""
        return self.kind in ("in_use", "in_use_cut")

    @property
    def wait_s(self) -> float:
        """How long a kind that waits does so."""
        if self.delay_s is not None:
            return self.delay_s
        return 30.0 if self.kind in ("hang", "swallow") else 2.0

    def meets(self, message: Message) -> bool:
        """Whether it is meant for this message."""
        return self.chat_id in (None, message.chat_id) and self.text in (None, message.text)


BY_NAME: Final = {
    "bounce": Fault("status", status=400, error="This user does not accept messages", times=None),
    "flaky": Fault("status", status=503, times=2),
    "cut": Fault("cut", times=1),
    "slow": Fault("delay", delay_s=2.0, times=None),
    "throttle": Fault("status", status=429, times=1),
    "jammed": Fault("status", status=429, retry_after_s=1, error="This chat receives too many messages", times=None),
    "blocked": Fault("status", status=403, error="This user has blocked you", times=None),
    "gone": Fault("status", status=404, error="This chat does not exist", times=None),
}


class Faults:
    """What is wrong with this upstream at the moment. Safe to change while requests are arriving.

    The first scripted rule with uses left wins, then the recipient's name, then chance: one draw a request,
    so that the nth request to be drawn for meets the same fate in every run with the same seed and rates.
    """

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._rules: list[tuple[Fault, int | None]] = []  # with the uses left; None: always
        self._met: Counter[tuple[str, str, str, str]] = Counter()
        self._rates: dict[str, float] = {}
        self._chances: list[tuple[float, Fault]] = []
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311 - reproducible is the point

    def add(self, fault: Fault) -> None:
        """Append a scripted rule."""
        with self._lock:
            self._rules.append((fault, fault.times))

    def clear(self) -> None:
        """Drop the scripted rules; the rates stay."""
        with self._lock:
            self._rules.clear()

    def forget(self) -> None:
        """Let every message count as new to the recipients who misbehave by name."""
        with self._lock:
            self._met.clear()

    def set_rates(self, rates: Mapping[str, float], seed: int | None = None) -> None:
        """Misbehave by chance: {"status:503": 0.05} is 5 % of requests.

        Replaces the rates before, and starts the draws over, from the constructor's seed if none is given.
        """
        for name, rate in rates.items():
            _require(type(rate) in (int, float) and 0 <= rate <= 1, f"{name} must be a rate from 0 to 1")
        _require(sum(rates.values()) <= 1 + 1e-9, "the rates must not add up to more than 1")
        _require(seed is None or type(seed) is int, "seed must be a whole number")
        chances = [(rate, Fault.from_rate(name)) for name, rate in rates.items()]
        with self._lock:
            self._rates, self._chances = dict(rates), chances
            self._random.seed(self._seed if seed is None else seed)

    def set_rates_from_json(self, body: Mapping[str, Any]) -> None:
        """`set_rates`, as the control API has it: {"rates": {...}, "seed": 7}."""
        _require(isinstance(body.get("rates"), dict), "rates must be an object")
        _require(not body.keys() - {"rates", "seed"}, "only rates and seed belong here")
        self.set_rates(body["rates"], body.get("seed"))

    def next_for(self, message: Message) -> Fault | None:
        """The fault this request meets, using it up; None if it is treated well."""
        with self._lock:
            return self._scripted(message) or self._by_name(message) or self._by_chance()

    def to_json(self) -> dict[str, object]:
        """The rules in their order, `times` being the uses left, and the rates."""
        with self._lock:
            return {
                "faults": [asdict(rule) | {"times": left} for rule, left in self._rules],
                "rates": self._rates,
            }

    def _scripted(self, message: Message) -> Fault | None:
        for index, (fault, left) in enumerate(self._rules):
            if fault.meets(message):
                if left == 1:
                    del self._rules[index]
                elif left is not None:
                    self._rules[index] = (fault, left - 1)
                return fault
        return None

    def _by_name(self, message: Message) -> Fault | None:
        name, hyphen, _ = message.chat_id.partition("-")
        fault = BY_NAME.get(name) if hyphen else None
        if fault is None or fault.times is None:
            return fault
        self._met[message.identity] += 1
        return fault if self._met[message.identity] <= fault.times else None

    def _by_chance(self) -> Fault | None:
        if not self._chances:
            return None
        draw = self._random.random()
        for rate, fault in self._chances:
            if draw < rate:
                return fault
            draw -= rate
        return None
