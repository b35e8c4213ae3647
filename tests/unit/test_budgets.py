"""Which budget the accounts of a credential draw on, case by case."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.domain.budgets import Change, Holder, settle


def holder(account_id: str, credential: str, budget: str = "", **more: Any) -> Holder:
    return Holder(account_id=account_id, budget=budget or account_id, names=(credential,), **more)


def unsettled(account_id: str, credential: str, budget: str = "", **more: Any) -> Holder:
    return holder(account_id, credential, budget, settled=False, **more)


def newcomer(account_id: str, credential: str, budget: str = "") -> Holder:
    return unsettled(account_id, credential, budget, sends_already=False)


def new_name(account_id: str) -> str:
    return f"{account_id}#new"


def chosen(*holders: Holder, past: dict[str, set[str]] | None = None) -> Change:
    [change] = settle(holders, past or {}, new_name)
    return change


def test_what_is_settled_stays() -> None:
    assert settle([holder("a", "k"), holder("b", "k", "a"), holder("c", "l")], {"l": {"z"}}, new_name) == []


@pytest.mark.parametrize("make", [unsettled, newcomer])
def test_an_account_alone_keeps_its_budget(make: Any) -> None:
    change = chosen(make("a", "k"), holder("b", "l"))
    assert (change.credential, change.budget, change.joined, change.is_new) == ("k", "a", frozenset(), False)


def test_a_newcomer_draws_on_the_budget_that_is_there() -> None:
    change = chosen(holder("a", "k"), holder("b", "k", "a"), newcomer("c", "k"))
    assert (change.budget, change.joined, change.is_new) == ("a", frozenset(), False)
    assert [found.account_id for found in change.holders] == ["a", "b", "c"]


def test_who_leaves_others_behind_gets_a_new_budget_without_a_past() -> None:
    change = chosen(newcomer("a", "l"), holder("b", "k", "a"))
    assert (change.budget, change.joined, change.is_new) == ("a#new", frozenset(), True)


def test_uses_that_are_spread_over_several_budgets_come_together_in_a_new_one() -> None:
    change = chosen(unsettled("a", "k"), unsettled("b", "k"), holder("c", "k"), newcomer("d", "k"))
    assert (change.budget, change.joined, change.is_new) == ("a#new", frozenset("abc"), True)


def test_a_budget_that_was_left_and_goes_on_elsewhere_is_not_taken_for_known() -> None:
    """`past` has sent under this credential: what it sent must be brought into the budget first."""
    change = chosen(newcomer("a", "k"), past={"k": {"past"}})
    assert (change.budget, change.joined, change.is_new) == ("a#new", frozenset(), True)
    assert not chosen(newcomer("a", "k"), past={"k": {"a"}}).is_new  # who comes back to where it was


def test_a_credential_is_known_by_any_of_its_names() -> None:
    old, both = (
        holder("a", "old-name"),
        Holder(account_id="b", budget="b", names=("new-name", "old-name"), settled=False),
    )
    change = chosen(old, both)
    assert (change.credential, change.joined) == ("new-name", frozenset("ab"))


@given(st.lists(st.tuples(st.sampled_from("klm"), st.sampled_from("abcdef"), st.booleans(), st.booleans()), max_size=6))
def test_afterwards_every_credential_has_one_budget_and_no_use_is_out_of_sight(
    found: list[tuple[str, str, bool, bool]],
) -> None:
    holders = [
        Holder(account_id=f"{n}", budget=budget, names=(credential,), settled=settled, sends_already=settled or sends)
        for n, (credential, budget, settled, sends) in enumerate(found)
    ]
    changes = {change.credential: change for change in settle(holders, {}, new_name)}
    assert set(changes) == {one.names[0] for one in holders if not one.settled}
    for credential, change in changes.items():
        here = [one for one in holders if one.names[0] == credential]
        assert list(change.holders) == here
        used = {one.budget for one in here if one.sends_already}
        assert used <= change.joined | {change.budget}
        assert change.is_new or len(used) <= 1
    new = [change.budget for change in changes.values() if change.is_new]
    assert len(new) == len(set(new))
