"""Which messages a run posts, when, and which of them it cancels; and what the fans write: pure functions of the
options."""

import random
from dataclasses import dataclass

from deploy.faults.schedule import Options

AT_ONCE = 0.4
"""The part of the messages that is posted at the start; the rest comes until POSTED_BY of the run."""
POSTED_BY = 0.75
FEW = 6
"""Recipients of an account who get several messages: these have lines."""
DIFFICULT = ("jammed-0", "gone-0", "blocked-0", "blocked-1")
"""Recipients of an account whose chat always throttles, does not exist, or refuses. Three who refuse with 403 would be
too many: then the account is to blame."""
MOST_URGENT = 10
"""The priority of those whose chat throttles: were it not for that, they would go before all others, each time."""
SHARING = ("a001", "a002")
"""Accounts under one key."""
REWRITTEN = ("{} \n", " {}", "{}: Cafe\u0301", "{}\r\nand more", "{} & <b>more</b>")
"""What an upstream that rewrites does not keep as it is."""
FANS = 3
"""A fan writes for every so many messages."""


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
    def refused(self) -> bool:
        """Whether its recipient refuses all messages."""
        return self.recipient.startswith(("blocked-", "gone-"))

    @property
    def throttled(self) -> bool:
        """Whether its recipient's chat throttles all messages."""
        return self.recipient.startswith("jammed-")

    @property
    def is_difficult(self) -> bool:
        """Whether its recipient gets no messages at all."""
        return self.recipient in DIFFICULT

    @property
    def ordered(self) -> bool:
        """Whether its place among its neighbours is known when it is posted: a later sendAt changes it."""
        return self.send_in_s is None


@dataclass(frozen=True, slots=True)
class Said:
    """What a fan writes into the chat with an account, and when."""

    at_s: float
    account: str
    recipient: str
    text: str


def api_key(account: str) -> str:
    """The account's key upstream, where each key has a window. Two accounts share one."""
    return f"key-of-{SHARING[0] if account in SHARING else account}"


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
        recipient = _recipient(chance, n)
        if recipient.startswith("jammed-"):
            priority = MOST_URGENT
        mails.append(
            Mail(
                at_s=0.0 if early else round(chance.uniform(0, POSTED_BY * options.duration_s), 2),
                key=f"{options.seed}-{n}",
                account=_account(names, n),
                recipient=recipient,
                text=_text(chance, n, priority),
                priority=priority,
                **_conditions(chance, options.duration_s, never=recipient.startswith("jammed-")),
            )
        )
    return sorted(mails, key=lambda mail: mail.at_s)


def talk(options: Options) -> list[Said]:
    """What fans write meanwhile, in the order of time, most of it where there is a lot to read.

    Where the history names authors, some of it is word for word what the account writes. Where it does not, nobody
    could tell that from the account's own.
    """
    chance = random.Random(f"fans {options.seed}")  # noqa: S311 - reproducible is the point
    busy = [mail for mail in write(options) if mail.recipient.startswith("often-")]
    said = []
    for _ in range(options.messages // FANS if busy else 0):
        mail = chance.choice(busy)
        text = mail.text if options.authors and chance.random() < 0.5 else chance.choice(("ok", "Thank you!", "no"))
        at_s = round(chance.uniform(0, options.duration_s), 2)
        said.append(Said(at_s, mail.account, mail.recipient, text))
    return sorted(said, key=lambda one: one.at_s)


def unclear(options: Options) -> set[tuple[str, str]]:
    """The chats, by API key and recipient, in which nobody could find out what became of an unknown outcome.

    Without a history: all of them, or with keys those in which a message cannot be sent once more to find out, because
    its recipient refuses or its expiresAt has passed. With a history without authors: those in which the fan writes.
    """
    chats: list[Mail | Said] = []
    if not options.history:
        mails = write(options)
        chats += [one for one in mails if not options.idempotent or one.is_difficult or one.expires_in_s is not None]
    elif not options.authors:
        chats += talk(options)
    return {(api_key(one.account), one.recipient) for one in chats}


def _account(names: list[str], n: int) -> str:
    """Those that share a key take turns, so that there are as many messages for each key."""
    own = [name for name in names if name not in SHARING]
    sharing = names[: len(names) - len(own)]
    keys = [sharing[n // (1 + len(own)) % len(sharing)], *own]
    return keys[n % len(keys)]


def _recipient(chance: random.Random, n: int) -> str:
    if chance.random() < 0.04:
        return chance.choice(DIFFICULT)
    return f"often-{chance.randrange(FEW)}" if chance.random() < 0.35 else f"fan-{n}"


def _text(chance: random.Random, n: int, priority: int) -> str:
    if chance.random() < 0.12:
        return REWRITTEN[priority % len(REWRITTEN)].format(f"Hello again ({priority})")
    return chance.choice(REWRITTEN).format(f"Hello {n}") if chance.random() < 0.4 else f"Hello {n}"


def _conditions(chance: random.Random, duration_s: float, *, never: bool) -> dict[str, float]:
    """A few are for later, a few are not worth it later, a few are not wanted any more. never: it can never be sent, so
    it must end by its expiresAt."""
    if never:
        return {"expires_in_s": round(chance.uniform(0.3, 0.8) * duration_s, 2)}
    match chance.choices(("plain", "later", "until", "cancel"), (82, 6, 6, 6))[0]:
        case "later":
            return {"send_in_s": round(chance.uniform(1, 0.2 * duration_s), 2)}
        case "until":
            return {"expires_in_s": round(chance.uniform(2, 0.5 * duration_s), 2)}
        case "cancel":
            return {"cancel_after_s": round(chance.uniform(0, 0.3 * duration_s), 2)}
    return {}
