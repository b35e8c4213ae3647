"""What an admin does with accounts: limits, keys, settings, pauses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ratelimit import Limits, Tokens, TokensUnavailable
from workers.credentials import Vault, pack, unpack
from workers.domain.actor import Action, Actor
from workers.domain.budgets import Change
from workers.domain.errors import Conflict, NotFound, Unreadable
from workers.domain.events import AccountChanged, AccountPaused, AccountResumed
from workers.domain.filters import Scope
from workers.services.budgets import Budgets, announce
from workers.services.publish import Publisher
from workers.store import accounts, audit, budgets, closures, lines
from workers.store.accounts import Account
from workers.store.session import Connection, Database
from workers.telemetry.logs import logger

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Accounts:
    db: Database
    tokens: Tokens
    publisher: Publisher
    vault: Vault
    budgets: Budgets
    default_limits: Limits

    def all_of(self, scope: Scope) -> list[Account]:
        return accounts.all_of(self.db, None if scope is None else list(scope))

    def find(self, account_id: str) -> Account | None:
        return accounts.get(self.db, account_id)

    def get(self, account_id: str) -> Account:
        """Raises NotFound."""
        account = self.find(account_id)
        if account is None:
            raise NotFound(f"No account {account_id}")
        return account

    def put(
        self,
        account_id: str,
        *,
        channel: str,
        limits: Limits | None,
        display_name: str | None,
        credentials: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None = None,
        by: Actor,
        scope: Scope = None,
    ) -> Account:
        """Create an account, or replace its properties by these. credentials: None leaves those it has.

        scope: the accounts that the caller may know of. Raises CannotSeal, and Conflict if other accounts send with the
        same key under other limits.
        """
        wanted: dict[str, Any] = {
            "channel": channel,
            "limits": limits,
            "display_name": display_name,
            "settings": dict(settings or {}),
        }
        if credentials is not None:
            wanted["credentials"] = credentials
        return self._change(account_id, wanted, Action.PUT_ACCOUNT, by, scope)

    def patch(self, account_id: str, wanted: Mapping[str, Any], *, by: Actor, scope: Scope = None) -> Account:
        """Change these properties of an account, and no others: `channel`, `limits`, `display_name`, `settings`,
        `credentials`. None takes a property away; an account without credentials sends with the channel's. Of
        `settings` too only those change that are named. Raises NotFound, and what `put` raises."""
        return self._change(account_id, wanted, Action.PATCH_ACCOUNT, by, scope)

    def pause(self, account_id: str, *, reason: str, until: datetime | None, by: Actor) -> Account:
        """Hold its messages back. Raises NotFound."""

        def work(c: Connection) -> None:
            if not closures.pause(c, account_id, reason, until):
                raise NotFound(f"No account {account_id}")
            audit.note(c, by, Action.PAUSE, account_id, reason=reason, until=until and until.isoformat())

        self.db.transaction(work)
        paused = AccountPaused(account_id=account_id, reason=reason, by=by.subject, until=until)
        self.publisher.publish([paused])
        return self.get(account_id)

    def resume(self, account_id: str, *, by: Actor) -> Account:
        """Let its messages go on: its pause ends. So do the cooldown and the rests (those of lines too) of all accounts
        on the same budget. Raises NotFound."""

        def work(c: Connection) -> list[str]:
            if not closures.resume(c, account_id):
                raise NotFound(f"No account {account_id}")
            audit.note(c, by, Action.RESUME, account_id)
            closures.open_again(c, account_id)
            together = closures.lift_cooldown(c, account_id)
            lines.end_line_rests(c, together)
            return together

        together = self.db.transaction(work)
        account = self.get(account_id)
        try:
            self.tokens.lift_cooldown(account.budget)
        except TokensUnavailable as error:
            log.warning("cooldown_not_lifted", account_id=account_id, error=str(error))
        self.publisher.publish([AccountResumed(account_id=account_id, by=by.subject, together=tuple(together))])
        return account

    def rekey(self) -> int:
        """Seal every account's key under the newest key there is. Returns how many. Raises Unreadable at the first
        that none of ours opens; those before it are done, and may be done again."""
        return sum(self._rekey(account_id, stored) for account_id, stored in accounts.sealed_keys(self.db))

    def _rekey(self, account_id: str, stored: str) -> bool:
        try:
            opened = self.vault.open(stored)
        except Unreadable as error:
            raise Unreadable(f"The key of account {account_id} is {error}") from error

        def work(c: Connection) -> bool:
            budgets.lock(c)
            account = accounts.get(c, account_id)
            done = accounts.reseal(c, account_id, stored, self.vault.seal(opened))
            if done and account and account.credential:
                newest = self.budgets.names(account.channel, unpack(opened))[0]
                budgets.rename_credential(c, account.credential, newest)
            return done

        return self.db.transaction(work)

    def _change(self, account_id: str, wanted: Mapping[str, Any], action: Action, by: Actor, scope: Scope) -> Account:
        sealed = self.vault.seal(pack(wanted["credentials"])) if wanted.get("credentials") else None

        def work(c: Connection) -> tuple[Account, bool, list[Change]]:
            budgets.lock(c)
            before = accounts.get(c, account_id)
            if before is None and action is Action.PATCH_ACCOUNT:
                raise NotFound(f"No account {account_id}")
            changes: list[Change] = []
            if before and before.credential is None:
                changes += self.budgets.settle(c, account_id)  # so that what it sent under its old key is remembered
            created = accounts.put(
                c,
                account_id,
                channel=_wanted(wanted, "channel", before),
                limits=_wanted(wanted, "limits", before),
                display_name=_wanted(wanted, "display_name", before),
                settings=_merged(before.settings if before and action is Action.PATCH_ACCOUNT else {}, wanted),
                sealed_key=sealed,
                clear_key="credentials" in wanted and sealed is None,
            )
            keeps = before is not None and self._keeps_credential(before, wanted)
            changes += self.budgets.settle(c, account_id, sends_already=keeps)
            account = accounts.get(c, account_id)
            assert account is not None, "it has just been written"
            if not keeps or (before and self._limits(before) != self._limits(account)):
                self._check_limits(account, accounts.beside(c, account_id), scope)
            _note(c, by, action, before, account, wanted)
            return account, created, changes

        account, created, changes = self.db.transaction(work)
        announce(changes)
        self._tell_tokens(account, created, changes)
        changed = AccountChanged(account_id=account_id, created=created, limits=_written(account), by=by.subject)
        self.publisher.publish([changed])
        return account

    def _keeps_credential(self, before: Account, wanted: Mapping[str, Any]) -> bool:
        """Whether the account goes on sending with the credential that it has."""
        channel = wanted.get("channel") or before.channel
        if "credentials" not in wanted:
            return bool(channel == before.channel)
        try:
            credentials = self.vault.credentials(before.sealed_key)
        except Unreadable:
            return False
        names = self.budgets.names(before.channel, credentials)
        return not set(names).isdisjoint(self.budgets.names(channel, wanted["credentials"] or {}))

    def _check_limits(self, account: Account, others: Sequence[Account], scope: Scope) -> None:
        """Raises Conflict if the other accounts under the same credential have other limits. If they differ among
        themselves, any of them will do: so accounts can be brought together one after the other."""
        theirs = dict.fromkeys(str(self._limits(other)) for other in others)
        if not theirs or str(self._limits(account)) in theirs:
            return
        named = [id_ for id_ in (other.id for other in others) if scope is None or id_ in scope]
        raise Conflict(
            f"The upstream counts by credential, and {_listed(named, len(others))} the same one with the limits "
            f"{' and '.join(theirs)}. Give this account these limits, or a key of its own (credentials.apiKey)"
        )

    def _tell_tokens(self, account: Account, created: bool, changes: Sequence[Change]) -> None:
        """A new account has no past, so its tokens need no rebuild. A new budget for accounts that have one does."""
        try:
            if any(change.is_new for change in changes):
                self.tokens.report_loss()
            elif created and account.budget == account.id:
                self.tokens.open_new(account.budget)
        except TokensUnavailable as error:  # then they are rebuilt like any other, and sending starts two seconds later
            log.warning("tokens_not_told", account_id=account.id, error=str(error))

    def _limits(self, account: Account) -> Limits:
        return account.limits or self.default_limits


def _wanted(wanted: Mapping[str, Any], name: str, before: Account | None) -> Any:
    return wanted[name] if name in wanted else getattr(before, name)


def _merged(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Settings after a JSON merge patch (RFC 7396): null takes one away, and all of them if it stands for the whole."""
    if "settings" not in wanted:
        return dict(settings)
    patched = {} if wanted["settings"] is None else {**settings, **wanted["settings"]}
    return {name: value for name, value in patched.items() if value is not None}


def _note(
    c: Connection, by: Actor, action: Action, before: Account | None, after: Account, wanted: Mapping[str, Any]
) -> None:
    """The limits before and after, and of everything else that changed its name."""
    names = {"channel": "channel", "limits": "limits", "display_name": "displayName", "settings": "settings"}
    changed = [
        shown for name, shown in names.items() if before is None or getattr(before, name) != getattr(after, name)
    ]
    if "credentials" in wanted:
        changed.append("credentials")
    audit.note(
        c, by, action, after.id,
        created=before is None, changed=changed, limits=_written(after), limits_before=before and _written(before),
        channel=after.channel, display_name=after.display_name, settings=dict(after.settings),
        credentials_changed="credentials" in wanted,
    )  # fmt: skip


def _listed(named: Sequence[str], count: int) -> str:
    """`account a uses`, `accounts a, b and 3 others use`: those that the caller may know of by name."""
    unnamed = count - len(named)
    words = ", ".join(named)
    if not named:
        return "another account uses" if count == 1 else f"{count} other accounts use"
    if unnamed:
        return f"accounts {words} and {unnamed} more use"
    return f"account {words} uses" if count == 1 else f"accounts {words} use"


def _written(account: Account) -> str | None:
    return None if account.limits is None else str(account.limits)
