"""What an admin does with accounts: limits, keys, pauses."""

from dataclasses import dataclass
from datetime import datetime

from ratelimit import Limits, Tokens, TokensUnavailable
from workers.domain.errors import NotFound
from workers.store import accounts
from workers.store.accounts import Account
from workers.store.queries import Scope
from workers.store.session import Database
from workers.telemetry import logger
from workers.wakeups import Wakeups

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Accounts:
    db: Database
    tokens: Tokens
    wakeups: Wakeups

    def all_of(self, scope: Scope) -> list[Account]:
        return accounts.all_of(self.db, None if scope is None else list(scope))

    def put(
        self,
        account_id: str,
        *,
        channel: str,
        limits: Limits | None,
        display_name: str | None,
        api_key: str | None,
        by: str,
    ) -> Account:
        """Create an account, or give it these properties. api_key: None leaves the one it has."""
        created = accounts.put(
            self.db, account_id, channel=channel, limits=limits, display_name=display_name, api_key=api_key
        )
        log.info("account_changed", account_id=account_id, created=created, limits=str(limits), by=by)
        try:
            if created:
                self.tokens.open_new(account_id)
        except TokensUnavailable as error:  # then it is rebuilt like any other, and starts two seconds later
            log.warning("tokens_not_opened", account_id=account_id, error=str(error))
        self.wakeups.try_wake(account_id)
        return self._get(account_id)

    def pause(self, account_id: str, *, reason: str, until: datetime | None, by: str) -> Account:
        """Hold its messages back. Raises NotFound."""
        if not accounts.pause(self.db, account_id, reason, until):
            raise NotFound(f"No account {account_id}")
        log.info("account_paused", account_id=account_id, by=by)
        if until is not None:
            self.wakeups.try_wake(account_id)
        return self._get(account_id)

    def resume(self, account_id: str, *, by: str) -> Account:
        """Let them go on. Raises NotFound."""
        if not accounts.resume(self.db, account_id):
            raise NotFound(f"No account {account_id}")
        log.info("account_resumed", account_id=account_id, by=by)
        self.wakeups.try_wake(account_id)
        return self._get(account_id)

    def _get(self, account_id: str) -> Account:
        account = accounts.get(self.db, account_id)
        if account is None:
            raise NotFound(f"No account {account_id}")
        return account
