"""Many messages that come as one list: what they are called, and where each will stand."""

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count, islice, product
from typing import Any

from ulid import ULID

from workers.domain.errors import NotFound
from workers.domain.message import rank
from workers.domain.state import State
from workers.services.estimate import Place
from workers.store.backlog import Later, Standing

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's, in which ULIDs are written."""
_NUMBER = 4
"""Digits of an id that are its number in the list: enough for a million."""


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


def line_up(
    wanted: Sequence[Mapping[str, Any]], standings: Mapping[str, Standing]
) -> tuple[list[Place], dict[str, Standing]]:
    """Where each of these will stand once all are in, and the accounts as they will be then.

    They come behind what waits already, then by priority, then in order: every one gets the place that it would have
    got had they been sent one by one, the most urgent first and those for later (sendAt) last. Example: behind two
    waiting ones of priority 5, priorities 5, 9, 5 get the places 4, 1, 5.
    """
    levels = [(m["account_id"], rank(m["priority"]), _later(m, standings[m["account_id"]].at)) for m in wanted]
    joining = Counter(levels)
    after = _joined_by(joining, standings)
    ahead = {(to, own): after[to].ahead_by(own) for to, own in {level[:2] for level in joining}}
    turns = {level: count(ahead[level[:2]](level[2]) - n + 1) for level, n in joining.items()}
    lines: Counter[tuple[str, str, int]] = Counter()
    places = []
    for message, level in zip(wanted, levels, strict=True):
        account_id, own, due_at = level
        if due_at:
            due_s = (due_at - standings[account_id].at).total_seconds()
            places.append(Place(next(turns[level]), own, State.SCHEDULED, due_s))
        else:
            line = (account_id, message["recipient_id"], own)
            places.append(Place(next(turns[level]), own, in_its_line=lines[line]))
            lines[line] += 1
    return places, after


def _joined_by(
    joining: Mapping[tuple[str, int, datetime | None], int], standings: Mapping[str, Standing]
) -> dict[str, Standing]:
    in_line = {account_id: Counter(standing.in_line) for account_id, standing in standings.items()}
    later = {account_id: list(standing.later) for account_id, standing in standings.items()}
    for (account_id, at_rank, due_at), n in joining.items():
        if due_at:
            later[account_id].append(Later(due_at, at_rank, n))
        else:
            in_line[account_id][at_rank] += n
    return {
        account_id: replace(
            standing,
            in_line=in_line[account_id],
            later=sorted(later[account_id], key=lambda group: (group.due_at, -group.rank)),
        )
        for account_id, standing in standings.items()
    }


def latest(wanted: Iterable[Mapping[str, Any]]) -> dict[str, datetime | None]:
    """The accounts of a list, with the last sendAt of each."""
    found: dict[str, datetime | None] = {}
    for message in wanted:
        send_at, last = message.get("send_at"), found.get(message["account_id"])
        found[message["account_id"]] = max(send_at, last) if send_at and last else send_at or last
    return found


def _later(message: Mapping[str, Any], now: datetime) -> datetime | None:
    """The message's sendAt, if that is still to come."""
    send_at: datetime | None = message.get("send_at")
    return send_at if send_at and send_at > now else None
