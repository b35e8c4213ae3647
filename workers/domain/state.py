"""The life of a message, drawn once.

                     ┌───────────┐ due          ┌──────┐ first in its line
    accept, sendAt ─►│ scheduled ├─────────────►│ held ├──────────┐
                     └───────────┘              └──────┘          ▼
    accept ──────────────────────────────────►(in line)──────► queued ◄───────────────┐
                                                                  │ claim             │ retry, deferral,
                                                                  ▼                   │ "did not arrive"
                                                               sending ───────────────┤
                                                                  │ │ no answer       │
                                                                  │ └──► verifying ───┘
                                                       accepted   │          │ found
                                                                  ▼          ▼
    cancel: cancelled    expiresAt: expired    buried: failed    sent ◄──────┘

A *line* is the messages of one account, recipient and priority. Its head is `queued`, `sending` or `verifying`; the
other messages are `held`. So one recipient gets one message at a time, in order, and a failing message blocks only its
line.

The database enforces this: a CHECK constrains the states, a unique index allows one head per line, and every write in
`workers.store` names the state that it expects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    SCHEDULED = "scheduled"
    """Accepted with a sendAt in the future. Entered on accept; moved on when due, by a drain or the reconciler."""
    HELD = "held"
    """In its line behind an earlier message. Moved on when the head leaves the line."""
    QUEUED = "queued"
    """Head of its line; sent when it is due and a token is free. Moved on by a claim."""
    SENDING = "sending"
    """Claimed: an attempt is recorded, and the request may have left. Moved on by the drain that claimed it. If the
    drain died or its deadline passed, the reconciler moves it on."""
    VERIFYING = "verifying"
    """The request may have arrived, but no answer proves it. It is looked up in the upstream's history."""
    SENT = "sent"
    FAILED = "failed"
    """A dead letter, open until an admin retries, resolves or dismisses it."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def status(self) -> "Status":
        """The status that the API shows."""
        return _STATUS[self]


class Status(StrEnum):
    """The states as the API names them."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def states(self) -> tuple[State, ...]:
        return tuple(state for state in State if state.status is self)


_STATUS = {
    State.SCHEDULED: Status.QUEUED,
    State.HELD: Status.QUEUED,
    State.QUEUED: Status.QUEUED,
    State.SENDING: Status.SENDING,
    State.VERIFYING: Status.SENDING,
    State.SENT: Status.SENT,
    State.FAILED: Status.FAILED,
    State.CANCELLED: Status.CANCELLED,
    State.EXPIRED: Status.EXPIRED,
}

WAITING = (State.SCHEDULED, State.HELD, State.QUEUED)
"""Nothing has left: may be cancelled, may expire. Counted as `depth`."""
IN_FLIGHT = (State.SENDING, State.VERIFYING)
TALLIED = (*WAITING, *IN_FLIGHT, State.FAILED)
"""The states whose messages are counted all the time."""
HEADS = (State.QUEUED, State.SENDING, State.VERIFYING)
"""The one member of a line that stands before all others."""
OVER = (State.SENT, State.FAILED, State.CANCELLED, State.EXPIRED)
"""Every accepted message ends in exactly one of these; only an admin's retry, resolve or dismiss leaves `failed`."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A move and who makes it: the name of its statement in `workers.store`."""

    name: str
    sources: tuple[State, ...]
    target: State


TRANSITIONS = (
    Transition("admit_due", (State.SCHEDULED,), State.HELD),
    Transition("elect_heads", (State.HELD,), State.QUEUED),
    Transition("claim_next", (State.QUEUED,), State.SENDING),
    Transition("mark_sent", (State.SENDING,), State.SENT),
    Transition("schedule_retry", (State.SENDING,), State.QUEUED),
    Transition("defer", (State.SENDING,), State.QUEUED),
    Transition("take_back", (State.SENDING,), State.QUEUED),
    Transition("await_verification", (State.SENDING,), State.VERIFYING),
    Transition("verify_expired", (State.QUEUED,), State.VERIFYING),
    Transition("bury", (State.SENDING, State.VERIFYING), State.FAILED),
    Transition("confirm_sent", (State.VERIFYING,), State.SENT),
    Transition("confirm_absent", (State.VERIFYING,), State.QUEUED),
    Transition("accept_late_answer", (*WAITING, State.VERIFYING, State.FAILED), State.SENT),
    Transition("mark_proved", (State.QUEUED, State.VERIFYING, State.FAILED), State.SENT),
    Transition("cancel", WAITING, State.CANCELLED),
    Transition("amend", (State.SCHEDULED, State.QUEUED), State.HELD),
    Transition("amend", (State.HELD, State.QUEUED), State.SCHEDULED),
    Transition("expire", WAITING, State.EXPIRED),
    Transition("retry", (State.FAILED,), State.HELD),
    Transition("resolve_as_sent", (State.FAILED,), State.SENT),
    Transition("dismiss", (State.FAILED,), State.CANCELLED),
)


def moves_from(state: State) -> Iterator[Transition]:
    return (transition for transition in TRANSITIONS if state in transition.sources)
