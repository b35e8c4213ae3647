"""Chooses the budget of each account. The upstream counts by credential, so accounts under one credential share one.

Three rules ensure that every use is counted:

* An account that is alone under its credential has its own budget. An account that gets a credential in use shares the
  budget of the accounts under it.
* A budget never changes its credential while accounts of both draw on it. An account that leaves gets a new budget.
* If uses under a credential are spread over several budgets, the accounts get a new budget. Nothing is known of a new
  budget in Redis, so it is rebuilt before it gives a token, from the uses of all budgets that were drawn on under the
  credential (`Change.joined`).
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """An account and its credential. names: names of the credential, the preferred one first; two accounts
    that have a name in common have one credential. settled: its budget was chosen for this credential.
    sends_already: it has sent under this credential, and its uses are in its present budget."""

    account_id: str
    budget: str
    names: Sequence[str]
    settled: bool = True
    sends_already: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The accounts under a credential, and the budget that all of them draw on from now on. joined: budgets that they
    drew on before, and whose uses count in this one. is_new: the budget was never used."""

    credential: str
    budget: str
    holders: tuple[Holder, ...]
    joined: frozenset[str]
    is_new: bool


def settle(
    holders: Collection[Holder], past: Mapping[str, Collection[str]], new_name: Callable[[str], str]
) -> list[Change]:
    """Choose a budget for each credential that has an account which is not settled.

    past: budgets that were drawn on of late under a credential, by each of its names. new_name: makes a name that no
    budget has, from an account's id.
    """
    drawn_by: defaultdict[str, set[str]] = defaultdict(set)
    for holder in holders:
        drawn_by[holder.budget].add(holder.account_id)
    changes = []
    for credential, members in _by_credential(holders).items():
        if all(holder.settled for holder in members):
            continue
        here = {holder.account_id for holder in members}
        settled = {holder.budget for holder in members if holder.settled}
        in_use = settled | {holder.budget for holder in members if holder.sends_already}
        former = {budget for holder in members for name in holder.names for budget in past.get(name, ())}
        budget, *more = sorted(in_use or {holder.budget for holder in members})
        is_new = bool(more) or (not settled and bool(drawn_by[budget] - here or former - {budget}))
        if is_new:
            budget = new_name(min(here))
        joined = frozenset(in_use - {budget})
        changes.append(
            Change(credential=credential, budget=budget, holders=tuple(members), joined=joined, is_new=is_new)
        )
    return changes


def _by_credential(holders: Iterable[Holder]) -> dict[str, list[Holder]]:
    """The accounts of each credential, by its preferred name."""
    preferred: dict[str, str] = {}
    for holder in holders:
        if not holder.settled:
            preferred |= dict.fromkeys(holder.names, holder.names[0])
    found: defaultdict[str, list[Holder]] = defaultdict(list)
    for holder in holders:
        found[preferred.get(holder.names[0], holder.names[0])].append(holder)
    return found
