"""The life cycle on the real database against a model of it in plain Python, whatever happens in whatever order.

The model knows the transitions of `workers.domain.state` and one rule besides: of every line, the first that is not
over is its head, and the others are held.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import ALICE, empty, origin
from workers.bootstrap import Adapters
from workers.domain.decisions import DeadLetterReason, DeferralReason
from workers.domain.errors import StaleClaim
from workers.domain.message import Claim, Line, NewMessage
from workers.domain.outcome import Outcome, OutcomeKind
from workers.domain.state import HEADS, OVER, TALLIED, TRANSITIONS, WAITING, State
from workers.store import accept, endings, failures, lines, lookups, outcomes
from workers.store.claims import claim_next

ACCEPTED = Outcome(OutcomeKind.ACCEPTED, upstream_id="u", http_status=200)
FAILED = Outcome(OutcomeKind.FAILED, http_status=503)
THROTTLED = Outcome(OutcomeKind.THROTTLED, http_status=429)
UNKNOWN = Outcome(OutcomeKind.UNKNOWN)
LETTERS = (DeadLetterReason.RETRIES_EXHAUSTED, DeadLetterReason.OUTCOME_UNKNOWN)
MOVES = {(source, transition.target) for transition in TRANSITIONS for source in transition.sources}


@dataclass
class Modelled:
    """A message as the model has it. place: where it stands in its line, by the moment it joined; messages that joined
    together stand in the order of their acceptance, as their ids do. claims: every claim there ever was of it."""

    id: str
    line: Line
    place: int
    state: State
    redriven: bool = False
    letter: DeadLetterReason | None = None
    """Of its open dead letter."""
    doubtful: bool = False
    attempts: int = 0
    claims: list[Claim] = field(default_factory=list)

    @property
    def turn(self) -> tuple[int, str]:
        return self.place, self.id

    @property
    def tallied_as(self) -> tuple[State, int]:
        return self.state, -self.line.priority if self.redriven else self.line.priority

    @property
    def current(self) -> Claim | None:
        return self.claims[-1] if self.state is State.SENDING else None


class LifeCycle(RuleBasedStateMachine):
    known = Bundle("known")

    def __init__(self, adapters: Adapters) -> None:
        super().__init__()
        self.db = adapters.db
        self.origin = origin(adapters)

    @initialize()
    def begin(self) -> None:
        empty(self.db)
        self.numbers = itertools.count(1)
        self.places = itertools.count(1)
        self.messages: dict[str, Modelled] = {}

    # --- what happens ---

    @rule(target=known, recipient=st.sampled_from("ab"), priority=st.sampled_from([1, 5]))
    def accept(self, recipient: str, priority: int) -> str:
        line = Line("default", recipient, priority)
        new = NewMessage(
            id=f"msg_{next(self.numbers):026d}",
            account_id="default",
            recipient_id=recipient,
            priority=priority,
            content="x",
        )
        state = State.HELD if self._members(line) else State.QUEUED
        assert accept.accept(self.db, new, by=ALICE).state == state
        self.messages[new.id] = Modelled(new.id, line, next(self.places), state)
        return new.id

    @rule(
        target=known,
        line_up=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, 5])), min_size=1, max_size=5),
    )
    def accept_many(self, line_up: list[tuple[str, int]]) -> Any:
        listed = [
            {
                "id": f"msg_{next(self.numbers):026d}",
                "account_id": "default",
                "recipient_id": recipient,
                "priority": priority,
                "content": "x",
            }
            for recipient, priority in line_up
        ]
        accepted = accept.accept_many(self.db, listed, by=ALICE, last_to_go=listed[0]["id"])
        for new in listed:
            line = Line("default", new["recipient_id"], new["priority"])
            state = State.HELD if self._members(line) else State.QUEUED
            self.messages[new["id"]] = Modelled(new["id"], line, next(self.places), state)
        assert accepted.held == {new["id"] for new in listed if self.messages[new["id"]].state is State.HELD}
        return multiple(*(new["id"] for new in listed))

    @rule(want=st.integers(1, 3))
    def claim(self, want: int) -> None:
        queued = [m for m in self.messages.values() if m.state is State.QUEUED]
        expected = sorted(queued, key=lambda m: (-m.line.priority, m.redriven, m.turn))[:want]
        tokens = [f"token-{n}" for n in range(want)]
        claimed = claim_next(self.db, "default", tokens, worker=1, lease_s=10, origin=self.origin)
        claims = {c.message_id: c for c in sorted(claimed, key=lambda c: c.token)}
        assert list(claims) == [m.id for m in expected], "the first in order gets the first token"
        for m in expected:
            m.attempts += 1
            assert claims[m.id].attempt == m.attempts
            m.claims.append(claims[m.id])
            self._move(m, State.SENDING)

    @rule(message=known)
    def sent(self, message: str) -> None:
        m = self.messages[message]
        if m.current:
            claim = m.current

            def record(c):  # type: ignore[no-untyped-def]
                sent = outcomes.mark_sent(c, [(claim, ACCEPTED)])
                lines.elect_heads(c, [claim.line])
                return sent

            assert len(self.db.transaction(record)) == 1
            m.doubtful = False
            self._move(m, State.SENT)

    @rule(message=known)
    def retry_scheduled(self, message: str) -> None:
        m = self.messages[message]
        if claim := m.current:
            self.db.transaction(lambda c: outcomes.schedule_retry(c, claim, FAILED, 0.0))
            m.doubtful = False
            m.place = next(self.places)
            self._move(m, State.QUEUED)

    @rule(message=known)
    def deferred(self, message: str) -> None:
        m = self.messages[message]
        if claim := m.current:
            self.db.transaction(
                lambda c: outcomes.defer(c, claim, THROTTLED, DeferralReason.THROTTLED, channel="onlyfans")
            )
            m.attempts -= 1
            self._move(m, State.QUEUED)

    @rule(message=known)
    def outcome_unknown(self, message: str) -> None:
        m = self.messages[message]
        if claim := m.current:
            self.db.transaction(lambda c: outcomes.await_verification(c, claim, UNKNOWN, 0.0))
            m.doubtful = True
            self._move(m, State.VERIFYING)

    @rule(message=known, found=st.booleans())
    def looked_up(self, message: str, found: bool) -> None:
        m = self.messages[message]
        if m.state is not State.VERIFYING:
            return
        claim = m.claims[-1]
        if found:
            self.db.transaction(lambda c: lookups.confirm_sent(c, claim, "u"))
            self._move(m, State.SENT)
        else:
            self.db.transaction(lambda c: lookups.confirm_absent(c, claim))
            m.place = next(self.places)
            self._move(m, State.QUEUED)
        m.doubtful = False

    @rule(which=st.integers(0, 5), reason=st.sampled_from(LETTERS))
    def given_up(self, which: int, reason: DeadLetterReason) -> None:
        """One of those that are under way, so that there are dead letters to redrive."""
        if claims := [m.current for m in self.messages.values() if m.current]:
            claim = claims[which % len(claims)]
            m = self.messages[claim.message_id]
            self.db.transaction(lambda c: outcomes.bury(c, claim, FAILED, reason))
            m.doubtful = False
            m.letter = reason
            self._move(m, State.FAILED)

    @rule(message=known)
    def cancelled(self, message: str) -> None:
        m = self.messages[message]
        allowed = m.state in WAITING and not m.doubtful
        assert (endings.cancel(self.db, message, ALICE) is not None) is allowed
        if allowed:
            self._move(m, State.CANCELLED)

    @rule(message=known)
    def expired(self, message: str) -> None:
        m = self.messages[message]
        if m.state in WAITING:
            self.db.all("UPDATE messages SET expires_at = now() WHERE id = %(id)s", {"id": message})
            assert [event.message_id for event in endings.expire(self.db)] == [message]
            self._move(m, State.EXPIRED)

    @rule(message=known, redriven=st.booleans())
    def retried_by_hand(self, message: str, redriven: bool) -> None:
        self._retry([message], redriven)

    @rule()
    def redriven(self) -> None:
        """All at once; most are not failed."""
        self._retry(list(self.messages), redriven=True)

    @rule(message=known)
    def dismissed(self, message: str) -> None:
        m = self.messages[message]
        allowed = m.state is State.FAILED
        assert failures.dismiss(self.db, message, "not wanted any more", by=ALICE) is allowed
        if allowed:
            self._move(m, State.CANCELLED)

    @rule(message=known)
    def resolved_as_sent(self, message: str) -> None:
        m = self.messages[message]
        allowed = m.state is State.FAILED and m.letter is DeadLetterReason.OUTCOME_UNKNOWN
        assert failures.resolve_as_sent(self.db, message, by=ALICE) is allowed
        if allowed:
            self._move(m, State.SENT)

    @rule(message=known, which=st.integers(0, 5))
    def a_stale_claim_comes_back(self, message: str, which: int) -> None:
        """Whoever lost a message may not move it any more, however late it comes."""
        m = self.messages[message]
        stale = [c for c in m.claims if not (m.current and c.attempt == m.attempts)]
        if not stale or (m.state in (State.VERIFYING,) and stale[-1].attempt == m.attempts):
            return
        claim = stale[which % len(stale)]
        if m.state is State.SENDING and claim.attempt == m.attempts:
            return
        for record in (
            lambda c: outcomes.schedule_retry(c, claim, FAILED, 0.0),
            lambda c: outcomes.bury(c, claim, FAILED, DeadLetterReason.REJECTED),
        ):
            try:
                self.db.transaction(record)  # type: ignore[arg-type]
            except StaleClaim:
                continue
            raise AssertionError(f"a stale claim moved {message}")

    # --- what holds ---

    @invariant()
    def the_database_agrees(self) -> None:
        rows = self.db.all("SELECT id, state, attempts FROM messages")
        found = {row["id"]: (State(row["state"]), row["attempts"]) for row in rows}
        assert found == {m.id: (m.state, m.attempts) for m in self.messages.values()}

    @invariant()
    def the_tallies_agree(self) -> None:
        """By state and priority; redriven messages count under the negative of theirs."""
        tallied = self.db.all(
            "SELECT state, priority, sum(n)::int AS n FROM tallies GROUP BY state, priority HAVING sum(n) <> 0"
        )
        found = {(State(row["state"]), row["priority"]): row["n"] for row in tallied}
        assert found == Counter(m.tallied_as for m in self.messages.values() if m.state in TALLIED)

    @invariant()
    def nothing_is_headless(self) -> None:
        assert lines.mend_headless_lines(self.db) == 0

    def _members(self, line: Line) -> list[Modelled]:
        """Those of a line that stand in it: its head, and the held in their order."""
        return [m for m in self.messages.values() if m.line == line and m.state in (*HEADS, State.HELD)]

    def _retry(self, ids: list[str], redriven: bool) -> None:
        failed = [self.messages[id_] for id_ in ids if self.messages[id_].state is State.FAILED]
        assert len(failures.retry(self.db, ids, by=ALICE, redriven=redriven)) == len(failed)
        place = next(self.places)
        for m in failed:
            m.place, m.redriven = place, redriven
            self._move(m, State.HELD)
        for m in sorted(failed, key=lambda m: m.turn):
            if not any(member.state in HEADS for member in self._members(m.line)):
                self._move(m, State.QUEUED)

    def _move(self, m: Modelled, target: State) -> None:
        """Move one; if that took it out of its line, the first of the held becomes the head."""
        assert (m.state, target) in MOVES
        m.state = target
        members = self._members(m.line)
        if target in OVER and members and not any(member.state in HEADS for member in members):
            min(members, key=lambda member: member.turn).state = State.QUEUED


def test_the_life_cycle_agrees_with_a_model_of_it(adapters: Adapters) -> None:
    run_state_machine_as_test(
        lambda: LifeCycle(adapters),
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_redriven_messages_go_behind_fresh_ones_of_their_priority(adapters: Adapters) -> None:
    """One walk through the model that chance seldom finds: the fresh message is accepted last, and goes first."""
    walk = LifeCycle(adapters)
    walk.begin()
    walk.accept("a", 5)
    walk.claim(want=1)
    walk.given_up(which=0, reason=DeadLetterReason.RETRIES_EXHAUSTED)
    walk.redriven()
    walk.accept("b", 5)
    walk.claim(want=2)
    walk.the_tallies_agree()
