"""Which messages a run posts, when, and which of them it cancels: a pure function of the options."""

import random
from dataclasses import dataclass

from deploy.faults.schedule import Options

AT_ONCE = 0.4
"""The part of the messages that is posted at the start; the rest comes until POSTED_BY of the run."""
POSTED_BY = 0.75
FEW = 6
"""Recipients of an account who get several messages: these have lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A message to post. at_s: when. key: its Idempotency-Key. send_in_s, expires_in_s: from the moment it is posted.
    cancel_after_s: from its 202."""

    at_s: float
    key: str
    account: str
    recipient: str
    text: str
    priority: int
    send_in_s: float | None = None
    expires_in_s: float | None = None
    cancel_after_s: float | None = None

    @property
    def ordered(self) -> bool:
        """Whether its place among its neighbours is known when it is posted: a later sendAt changes it."""
        return self.send_in_s is None


def api_key(account: str) -> str:
    """The account's own key upstream, so that the upstream has a window for each."""
    return f"key-of-{account}"


def accounts(options: Options) -> list[str]:
    return [f"a{n:03d}" for n in range(1, options.accounts + 1)]


def write(options: Options) -> list[Mail]:
    """The messages in the order in which they are to be posted.

    Some texts repeat: two messages of the same text are two messages. They do so within one line, whose messages go one
    after the other. Of two on their way at once nobody could say which arrived, were it not for the upstream's key.
    """
    chance = random.Random(f"mail {options.seed}")  # noqa: S311 - reproducible is the point
    names = accounts(options)
    mails = []
    for n in range(options.messages):
        priority = chance.choice((1, 3, 5, 5, 5, 8, 10))
        early = n < AT_ONCE * options.messages
        mails.append(
            Mail(
                at_s=0.0 if early else round(chance.uniform(0, POSTED_BY * options.duration_s), 2),
                key=f"{options.seed}-{n}",
                account=names[n % len(names)],
                recipient=f"often-{chance.randrange(FEW)}" if chance.random() < 0.35 else f"fan-{n}",
                text=f"Hello again ({priority})" if chance.random() < 0.1 else f"Hello {n}",
                priority=priority,
                **_conditions(chance, options.duration_s),
            )
        )
    return sorted(mails, key=lambda mail: mail.at_s)


def _conditions(chance: random.Random, duration_s: float) -> dict[str, float]:
    """A few are for later, a few are not worth it later, a few are not wanted any more."""
    match chance.choices(("plain", "later", "until", "cancel"), (82, 6, 6, 6))[0]:
        case "later":
            return {"send_in_s": round(chance.uniform(1, 0.2 * duration_s), 2)}
        case "until":
            return {"expires_in_s": round(chance.uniform(2, 0.5 * duration_s), 2)}
        case "cancel":
            return {"cancel_after_s": round(chance.uniform(0, 0.3 * duration_s), 2)}
    return {}
