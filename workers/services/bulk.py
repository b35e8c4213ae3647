"""Many messages that come as one list: what they are called, and where each will stand."""

import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice, product
from typing import Any

from ulid import ULID

from workers.domain.errors import NotFound
from workers.domain.state import State
from workers.services.estimate import Place
from workers.store.accounts import Standing

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's, in which ULIDs are written."""
_NUMBER = 4
"""Digits of an id that are its number in the list: enough for a million."""
_MOST_URGENT = 10


@dataclass(frozen=True, slots=True)
class Share:
    """What of a list goes to one account. numbers: places in the list."""

    standing: Standing
    numbers: list[int]


def shares(wanted: Sequence[Mapping[str, Any]], standings: Mapping[str, Standing]) -> list[Share]:
    """Split a list by account. Raises NotFound for accounts that there are not."""
    by_account: dict[str, list[int]] = {}
    for n, message in enumerate(wanted):
        by_account.setdefault(message["account_id"], []).append(n)
    if missing := {n: account_id for account_id in by_account.keys() - standings for n in by_account[account_id]}:
        raise no_accounts(missing)
    return [Share(standings[account_id], numbers) for account_id, numbers in by_account.items()]


def no_accounts(missing: Mapping[int, str]) -> NotFound:
    """Of the accounts that these messages of a list name there are none, or none that the caller may know of."""
    words = {n: f"No account {account_id}" for n, account_id in sorted(missing.items())}
    details = {"messages": {str(n): {"accountId": [said]} for n, said in words.items()}}
    return NotFound(next(iter(words.values())), details)


def first_id() -> str:
    """Of a new list. Not `ULID()`: within one millisecond that counts on from the last one, in the very digits that
    number the list."""
    return f"msg_{ULID.from_int(time.time_ns() // 1_000_000 << 80 | secrets.randbits(80))}"


def ids_like(message_id: str, n: int) -> list[str]:
    """The ids of n messages queued together, from any of them: they differ in their last digits alone, which count from
    0 in the order of the list. So ids keep that order, and one is enough to remember all by."""
    stem = message_id[:-_NUMBER]
    return [stem + "".join(number) for number in islice(product(_DIGITS, repeat=_NUMBER), n)]


def line_up(wanted: Sequence[Mapping[str, Any]], standings: Mapping[str, Standing], now: datetime) -> list[Place]:
    """Where each of these will stand once all are in: behind what waits already, then by priority, then in order.

    Every one gets the place that it would have got had they been sent one by one, the most urgent first and those for
    later (sendAt) last. Example: behind two waiting ones of priority 5, priorities 5, 9, 5 get the places 4, 1, 5.
    """
    due_s = [max(0.0, (m["send_at"] - now).total_seconds()) if m.get("send_at") else 0.0 for m in wanted]
    levels = [(m["account_id"], m["priority"]) for m in wanted]
    joining = Counter(level for level, wait_s in zip(levels, due_s, strict=True) if not wait_s)
    ahead = {
        (account_id, priority): standings[account_id].ahead(priority)
        + sum(joining[account_id, higher] for higher in range(priority + 1, _MOST_URGENT + 1))
        for account_id, priority in set(levels)
    }
    behind_all = {level: before + joining[level] for level, before in ahead.items()}
    turns = {level: count(before + 1) for level, before in ahead.items()}
    return [
        Place(behind_all[level] + 1, State.SCHEDULED, wait_s) if wait_s else Place(next(turns[level]))
        for level, wait_s in zip(levels, due_s, strict=True)
    ]
