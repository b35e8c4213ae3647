"""What an admin does with accounts: limits, keys, pauses."""

from dataclasses import dataclass
from datetime import datetime

from ratelimit import Limits, Tokens, TokensUnavailable
from workers.credentials import Vault
from workers.domain.actor import Action, Actor
from workers.domain.errors import NotFound, Unreadable
from workers.store import accounts, audit
from workers.store.accounts import Account
from workers.store.queries import Scope
from workers.store.session import Connection, Database
from workers.telemetry import logger
from workers.wakeups import Wakeups

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Accounts:
    db: Database
    tokens: Tokens
    wakeups: Wakeups
    vault: Vault

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
        by: Actor,
    ) -> Account:
        """Create an account, or give it these properties. api_key: None leaves the one it has. Raises CannotSeal."""
        sealed = None if api_key is None else self.vault.seal(api_key)

        def work(c: Connection) -> bool:
            before = accounts.get(c, account_id)
            created = accounts.put(
                c, account_id, channel=channel, limits=limits, display_name=display_name, sealed_key=sealed
            )
            audit.note(
                c, by, Action.PUT_ACCOUNT, account_id,
                created=created, limits=_written(limits), limits_before=_written(before.limits if before else None),
                channel=channel, display_name=display_name, credentials_changed=api_key is not None,
            )  # fmt: skip
            return created

        created = self.db.transaction(work)
        log.info("account_changed", account_id=account_id, created=created, limits=_written(limits), by=by.subject)
        try:
            if created:
                self.tokens.open_new(account_id)
        except TokensUnavailable as error:  # then it is rebuilt like any other, and starts two seconds later
            log.warning("tokens_not_opened", account_id=account_id, error=str(error))
        self.wakeups.try_wake(account_id)
        return self._get(account_id)

    def pause(self, account_id: str, *, reason: str, until: datetime | None, by: Actor) -> Account:
        """Hold its messages back. Raises NotFound."""

        def work(c: Connection) -> None:
            if not accounts.pause(c, account_id, reason, until):
                raise NotFound(f"No account {account_id}")
            audit.note(c, by, Action.PAUSE, account_id, reason=reason, until=until and until.isoformat())

        self.db.transaction(work)
        log.info("account_paused", account_id=account_id, by=by.subject)
        if until is not None:
            self.wakeups.try_wake(account_id)
        return self._get(account_id)

    def resume(self, account_id: str, *, by: Actor) -> Account:
        """Let them go on. Raises NotFound."""

        def work(c: Connection) -> None:
            if not accounts.resume(c, account_id):
                raise NotFound(f"No account {account_id}")
            audit.note(c, by, Action.RESUME, account_id)

        self.db.transaction(work)
        log.info("account_resumed", account_id=account_id, by=by.subject)
        self.wakeups.try_wake(account_id)
        return self._get(account_id)

    def rekey(self) -> int:
        """Seal every account's key under the newest key there is. Returns how many. Raises Unreadable at the first
        that none of ours opens; those before it are done, and may be done again."""
        done = 0
        for account_id, stored in accounts.sealed_keys(self.db):
            try:
                api_key = self.vault.open(stored)
            except Unreadable as error:
                raise Unreadable(f"The key of account {account_id} is {error}") from error
            done += accounts.reseal(self.db, account_id, stored, self.vault.seal(api_key))
        return done

    def _get(self, account_id: str) -> Account:
        account = accounts.get(self.db, account_id)
        if account is None:
            raise NotFound(f"No account {account_id}")
        return account


def _written(limits: Limits | None) -> str | None:
    return None if limits is None else str(limits)
