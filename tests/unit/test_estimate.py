"""Estimates against a queue played through: departure by departure, the most urgent of those that may go."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import Limits, View
from workers.domain.message import rank
from workers.services.bulk import line_up
from workers.services.estimate import estimate
from workers.store.accounts import Account
from workers.store.backlog import Later, Standing

NOW = datetime(2026, 11, 27, tzinfo=UTC)
ACCOUNT = Account(id="a", channel="onlyfans", budget="a", limits=None, sealed_key=None)
FREE = View(uses=(), cooldown_s=0.0, known=True)


@dataclass(frozen=True)
class Message:
    """One that waits. n: the order of acceptance."""

    rank: int
    due_s: int
    n: int


def departures(queue: list[Message], limits: Limits, latency_s: float) -> dict[int, float]:
    """When each of these leaves, played through."""
    waiting, left, now = list(queue), {}, 0.0
    ends: list[float] = []
    while waiting:
        for limit in limits:
            if len(ends) >= limit.count:
                now = max(now, ends[-limit.count] + limit.period_s)
        due = [message for message in waiting if message.due_s <= now]
        if not due:
            now = min(message.due_s for message in waiting)
            continue
        goes = min(due, key=lambda message: (-message.rank, message.due_s, message.n))
        waiting.remove(goes)
        left[goes.n] = now
        ends.append(now + latency_s)
    return left


def standing(queue: list[Message]) -> Standing:
    in_line: dict[int, int] = {}
    for message in queue:
        if not message.due_s:
            in_line[message.rank] = in_line.get(message.rank, 0) + 1
    later = [Later(NOW + timedelta(seconds=m.due_s), m.rank, 1) for m in queue if m.due_s]
    return Standing(
        account=ACCOUNT,
        at=NOW,
        depth=len(queue),
        in_line=in_line,
        later=sorted(later, key=lambda group: (group.due_at, -group.rank)),
        neighbours=(),
        tokens=frozenset(),
    )


priorities = st.sampled_from([3, 5, 9])
some_limits = st.sampled_from(["1/10s", "2/10s,3/60s", "5/30s", "3/7s"]).map(Limits.parse)
some_waiting = st.lists(st.tuples(priorities, st.booleans(), st.sampled_from([0, 0, 20, 45, 100, 300])), max_size=25)


@settings(max_examples=300, deadline=None)
@given(
    some_limits, some_waiting, st.lists(st.tuples(priorities, st.sampled_from([0, 45, 100])), min_size=1, max_size=8)
)
def test_what_comes_in_is_told_when_it_goes(
    limits: Limits, waiting: list[tuple[int, bool, int]], wanted: list[tuple[int, int]]
) -> None:
    before = [Message(rank(p, redriven=redriven), due_s, n) for n, (p, redriven, due_s) in enumerate(waiting)]
    new = [Message(rank(p), due_s, len(before) + n) for n, (p, due_s) in enumerate(wanted)]
    asked = [
        {
            "account_id": "a",
            "recipient_id": f"fan-{message.n}",
            "priority": priority,
            "send_at": NOW + timedelta(seconds=message.due_s) if message.due_s else None,
        }
        for message, (priority, _) in zip(new, wanted, strict=True)
    ]
    places, after = line_up(asked, {"a": standing(before)})
    told = estimate(after["a"], limits, FREE, places, latency_s=0.5, lease_s=10.0)
    left = departures([*before, *new], limits, 0.5)
    for message, promise in zip(new, told, strict=True):
        assert promise.at
        said_s = (promise.at - NOW).total_seconds()
        assert said_s == pytest.approx(left[message.n], abs=1e-3)


def test_ten_thousand_scheduled_for_a_time_each_are_told_at_once() -> None:
    """Quadratic, it took 20 s."""
    asked = [
        {
            "account_id": "a",
            "recipient_id": f"fan-{n}",
            "priority": 1 + n % 10,
            "send_at": NOW + timedelta(seconds=1 + n),
        }
        for n in range(10_000)
    ]
    began = time.process_time()
    places, after = line_up(asked, {"a": standing([])})
    told = estimate(after["a"], Limits.parse("1/second,100000/day"), FREE, places, latency_s=0.0, lease_s=10.0)
    assert told[-1].at == NOW + timedelta(seconds=10_000)
    assert time.process_time() - began < 4
