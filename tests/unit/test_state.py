"""The life cycle holds together, and the README draws the same one."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from workers import store
from workers.domain.state import HEADS, IN_FLIGHT, OVER, TRANSITIONS, WAITING, State, Status, moves_from

FAILED_MAY_LEAVE = {"retry", "resolve_as_sent", "dismiss", "accept_late_answer", "mark_proved"}


def test_every_state_is_waiting_in_flight_or_over() -> None:
    assert sorted((*WAITING, *IN_FLIGHT, *OVER)) == sorted(State)


def test_every_state_but_the_final_ones_leads_somewhere_and_all_are_reached() -> None:
    reached = {transition.target for transition in TRANSITIONS} | {State.SCHEDULED}
    assert reached == set(State)
    for state in set(State) - set(OVER):
        assert list(moves_from(state)), state


def test_what_is_over_stays_over_but_for_an_admin_or_a_late_answer() -> None:
    for state in OVER:
        leaving = {transition.name for transition in moves_from(state)}
        assert leaving == (FAILED_MAY_LEAVE if state is State.FAILED else set())


def test_every_waiting_message_can_be_cancelled_and_can_expire() -> None:
    for state in State:
        names = {transition.name for transition in moves_from(state)}
        assert ({"cancel", "expire"} <= names) == (state in WAITING)


def test_the_head_of_a_line_is_next_or_on_its_way() -> None:
    assert set(HEADS) == {State.QUEUED, *IN_FLIGHT}


def test_every_status_stands_for_some_state() -> None:
    assert all(status.states for status in Status)
    assert Status.QUEUED.states == WAITING


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda transition: transition.name)
def test_every_transition_is_a_statement_of_the_store(transition) -> None:  # type: ignore[no-untyped-def]
    modules = [import_module(f"workers.store.{module.name}") for module in iter_modules(store.__path__)]
    assert any(callable(getattr(module, transition.name, None)) for module in modules), transition.name


def test_the_readme_draws_this_life_cycle(repository: Path) -> None:
    drawn = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert drawn, "the README has no state diagram"
    arrows = set(re.findall(r"^\s*(\w+) --> (\w+) ?: (\w+)", drawn[1], re.MULTILINE))
    ours = {(str(source), str(t.target), t.name) for t in TRANSITIONS for source in t.sources}
    assert arrows == ours
