"""The health of an account and of the whole pipeline, with a text for people. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

NAMED = 3
"""The most accounts that one sentence names; further accounts are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """An identity rests, because its upstream is unavailable (`away`) or it is out of credit (`credit`).

    left_s: seconds until one message may probe the upstream; 0 if it may now. since: when the first of `times` rests in
    a row began. error: the upstream's words, or the network's.
    """

    kind: str
    since: datetime
    times: int
    left_s: float
    error: str

    @property
    def words(self) -> str:
        what = "the upstream is out of reach" if self.kind == "away" else "the upstream asks for credit"
        return f"{what} since {at(self.since)}: {self.error}"


@dataclass(frozen=True, slots=True)
class Closed:
    """Why an account sends nothing. state: `paused` or `cooldown`, as the API says it. by: `upstream` or `admin`."""

    state: str
    by: str
    reason: str | None


def closed(
    *,
    paused_s: float,
    paused_by: str | None,
    pause_reason: str | None,
    rest: Rest | None,
    cooldown_s: float,
) -> Closed | None:
    """What closes an account, the longest first; None if it may send."""
    if paused_s:
        return Closed("paused", paused_by or "admin", pause_reason)
    if rest is not None:
        again = "one message probes it now" if not rest.left_s else f"probed again in {rest.left_s:.0f} s"
        return Closed("cooldown" if rest.kind == "away" else "paused", "upstream", f"{rest.words}; {again}")
    if cooldown_s:
        return Closed("cooldown", "upstream", f"throttled by the upstream for {cooldown_s:.0f} s more")
    return None


class Health(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """Some messages do not go out that should."""
    DOWN = "down"
    """None does: a part without which nothing is sent is missing."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps messages from going out, for people."""

    words: str
    stops_all: bool = False


def health(troubles: Sequence[Trouble]) -> tuple[Health, str]:
    """The state of the whole, and why."""
    if not troubles:
        return Health.HEALTHY, "All systems operational"
    state = Health.DOWN if any(trouble.stops_all for trouble in troubles) else Health.DEGRADED
    return state, "; ".join(trouble.words for trouble in troubles)


@dataclass(frozen=True, slots=True)
class Refused:
    """An account that the upstream has closed. since: None if an older version did not note it."""

    account_id: str
    reason: str
    since: datetime | None


def account_troubles(resting: Iterable[tuple[str, Rest]], refused: Iterable[Refused]) -> list[Trouble]:
    """One sentence for each thing that is wrong, however many accounts it concerns."""
    troubles: dict[str, list[tuple[str, datetime | None]]] = {}
    for account_id, rest in resting:
        what = "The upstream is out of reach" if rest.kind == "away" else "The upstream asks for credit"
        troubles.setdefault(f"{what} ({rest.error})", []).append((account_id, rest.since))
    for one in refused:
        troubles.setdefault(f"The upstream refuses ({one.reason})", []).append((one.account_id, one.since))
    return [Trouble(_sentence(what, concerned)) for what, concerned in sorted(troubles.items())]


def _sentence(what: str, concerned: list[tuple[str, datetime | None]]) -> str:
    names = sorted(account_id for account_id, _ in concerned)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    known = [since for _, since in concerned if since is not None]
    since = f" since {at(min(known))}" if known else ""
    accounts = f"account{'s' if len(names) > 1 else ''} {', '.join(names[:NAMED])}{more}"
    return f"{what}{since}; {accounts} wait{'' if len(names) > 1 else 's'}"


def at(moment: datetime) -> str:
    """A time for people, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
