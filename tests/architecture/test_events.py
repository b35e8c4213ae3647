"""What follows from a move hangs on its event, in `workers.services.publish`, and nowhere else."""

import ast
import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.architecture.test_imports import MODULES
from workers.domain import events
from workers.domain.decisions import DeadLetterReason, DeferralReason
from workers.domain.events import Event
from workers.domain.lookup import Evidence, Finding
from workers.domain.message import Claim
from workers.domain.outcome import Outcome, OutcomeKind
from workers.domain.state import State
from workers.services.publish import Publisher

COUNTERS = {
    "messages_accepted", "messages_processed", "attempts", "deferrals", "queue_wait", "estimate_error",
    "outcome_unknown", "rescued", "upstream_throttled",
}  # fmt: skip
"""Metrics of moves. The others tell how long something took, or how things stand."""
WAKES = {"wake", "try_wake", "try_wake_many", "wake_all"}
NO_MOVE = {
    "workers.services.dispatch": "a full drain has another one started beside it",
    "workers.services.recovery": "an account whose wake-up was lost",
    "workers.engine.reconciler": "the same, of all accounts",
}
"""Modules that wake an account for another reason than a move."""
MAY = ("workers.services.publish", "workers.wakeups", "workers.telemetry")


def consequences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where a module counts, logs or wakes: the line, and what it does."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="metrics"), attr=name) if name in COUNTERS:
                yield node.lineno, f"counts {name}"
            case ast.ImportFrom(module="workers.telemetry.metrics", names=names):
                for alias in names:
                    if alias.name in COUNTERS:
                        yield node.lineno, f"counts {alias.name}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log")), args=[ast.Constant(value=str(name)), *_]):
                if name.startswith(("message_", "messages_", "account_", "batch_")):
                    yield node.lineno, f"logs {name}"
            case ast.Call(func=ast.Attribute(attr=name)) if name in WAKES:
                yield node.lineno, f"wakes ({name})"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(("api", "workers", "deploy"))])
def test_only_publish_counts_logs_and_wakes_for_a_move(module: str) -> None:
    if module.startswith(MAY):
        return
    found = list(consequences(ast.parse(MODULES[module].read_text())))
    if module in NO_MOVE:
        found = [(line, what) for line, what in found if not what.startswith("wakes")]
    assert found == []


def test_the_test_above_sees_what_it_looks_for() -> None:
    code = """
from workers.telemetry.metrics import messages_processed
metrics.attempts.labels("x").inc()
log.info("message_sent", x=1)
self.wakeups.try_wake("a")
"""
    assert {what for _, what in consequences(ast.parse(code))} == {
        "counts messages_processed", "counts attempts", "logs message_sent", "wakes (try_wake)",
    }  # fmt: skip


CLAIM = Claim(
    message_id="msg_1", account_id="a", recipient_id="fan-1", priority=5, content="private", media_ids=(), attempt=1,
    tries=1, token="t",
)  # fmt: skip
VALUES: dict[str, Any] = {
    "claim": CLAIM,
    "outcome": Outcome(OutcomeKind.UNKNOWN, error="why"),
    "finding": Finding(Evidence.UNCLEAR, error="why"),
    "state": State.SENT,
    "lookups": 1,
    "shares": (events.Share(account_id="a", channel="onlyfans", count=2, wake_in_s=0.0),),
    "cancelled": {"a": 2},
    "accounts": frozenset({"a"}),
    "changed": ("content",),
    "until": datetime(2030, 1, 1, tzinfo=UTC),
    "together": ("a", "b"),
    "created": True,
    "count": 2,
    "matched": 3,
    "expired": 1,
    "queued": 2,
    "attempt": 1,
}
"""By the name of a field. Another field is a time in seconds or a name."""
REASONS: dict[type[Event], Any] = {
    events.Deferred: DeferralReason.THROTTLED,
    events.Buried: DeadLetterReason.REJECTED,
}


def example(kind: type[Event]) -> Event:
    made = {
        field.name: VALUES.get(field.name, 1.0 if field.name.endswith("_s") else "name")
        for field in dataclasses.fields(kind)
    }
    return kind(**made | ({"reason": REASONS[kind]} if kind in REASONS else {}))


KINDS = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Event], ids=lambda kind: kind.__name__)
def test_every_event_is_told_in_one_line_without_content(kind: type[Event]) -> None:
    wakeups = SimpleNamespace(try_wake=lambda *_: None, try_wake_many=lambda _: None)
    with capture_logs() as told:
        Publisher(wakeups).publish([example(kind)])  # type: ignore[arg-type]
    assert len(told) == 1
    assert "private" not in repr(told)
