"""The right to send one message to a resting identity, to see whether its upstream answers again."""

from contextlib import suppress

from workers.domain.errors import StoreUnavailable
from workers.store import closures
from workers.store.accounts import Account
from workers.store.session import Database


class Probe:
    """One drain's probe of its account. held: whether this drain has the right to probe now."""

    def __init__(self, db: Database, account: Account) -> None:
        self._db, self._account_id, self._rest = db, account.id, account.rest
        self.held = False

    @property
    def resting(self) -> bool:
        """Whether the account rests, so that only a probe may send."""
        return self._rest is not None

    @property
    def rests(self) -> int:
        """How often in a row the account has rested by now."""
        return self._rest.times if self._rest else 0

    def begin(self, lease_s: float) -> bool:
        """Take the right for `lease_s` seconds, if the rest is over and no other drain has it."""
        over = self._rest is not None and not self._rest.left_s
        self.held = bool(over and closures.begin_probe(self._db, self._account_id, lease_s))
        return self.held

    def give_up(self) -> None:
        """Give back the right, as no message was sent with it."""
        with suppress(StoreUnavailable):  # then it ends by itself
            closures.end_probe(self._db, self._account_id)

    def succeed(self) -> None:
        """The upstream has answered: the account rests no longer."""
        self.held, self._rest = False, None
