"""Accounts that send with one credential draw on one budget, whoever made them so.

A credential is recognised by its fingerprint, which is stored beside the budget that was chosen for it. Only a process
that has the keys can take a fingerprint, so the API does when it changes an account, and a drain before it sends. The
drain's look also covers accounts that an older version made, and a changed ONLYFANS_API_KEY.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ratelimit.limits import MAX_PERIOD_S
from workers.credentials import Vault
from workers.domain.budgets import Change, Holder, settle
from workers.domain.errors import Unreadable
from workers.store import accounts, budgets
from workers.store.accounts import Account
from workers.store.session import Connection, Database, Row
from workers.telemetry.logs import logger

log = logger(__name__)

REMEMBERED_S = MAX_PERIOD_S + 86_400.0
"""How long a budget that was left is remembered: for as long as any of its uses can count."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """identities: by channel, what the upstream counts credentials by (`channels.base.Kind.identity`)."""

    db: Database
    vault: Vault
    identities: Mapping[str, Callable[[Mapping[str, Any]], str | None]]

    def names(self, channel: str, credentials: Mapping[str, Any]) -> tuple[str, ...]:
        """What a credential may be called, the preferred name first. The key of a channel goes by the channel's name,
        so that a new ONLYFANS_API_KEY changes no budget. Empty if this process has no secret to take a fingerprint
        with, or does not have the kind."""
        if channel not in self.identities:
            return ()
        identity = self.identities[channel](credentials)
        if identity is None:
            return (f"channel:{channel}",)
        return self.vault.fingerprints(f"{channel}\0{identity}")

    def settled(self, account: Account, credentials: Mapping[str, Any]) -> Account:
        """The account, on the budget of the credential that it is about to send with. credentials: its
        own, opened; empty for those of its channel."""
        names = self.names(account.channel, credentials)
        if not names or account.credential in names:
            return account

        def work(c: Connection) -> tuple[Account | None, list[Change]]:
            budgets.lock(c)
            now = accounts.get(c, account.id)
            if now is None or now.sealed_key != account.sealed_key or now.credential in names:
                return now, []  # changed, or settled by another drain, while this one waited for the lock
            changes = self.settle(c, account.id)
            return accounts.get(c, account.id), changes

        now, changes = self.db.transaction(work)
        announce(changes)
        return now or account

    def settle(self, c: Connection, account_id: str, *, sends_already: bool = True) -> list[Change]:
        """Choose the budget of this account's credential, and of any that has no budget yet. Within the transaction
        that changed the account, under `budgets.lock`.

        sends_already: whether the account has sent under its credential. Returns what it changed. An account whose key
        this process cannot read stays as it is.
        """
        rows = {row["id"]: row for row in budgets.holders(c)}
        found = [holder for row in rows.values() if (holder := self._holder(row, account_id, sends_already))]
        changes = settle(found, budgets.past(c, REMEMBERED_S), _new_name)
        cooldowns = [_cooldown_until(change, rows) for change in changes]
        if changes:
            budgets.draw_on(c, changes, cooldowns, forget_after_s=REMEMBERED_S)
        return changes

    def _holder(self, row: Row, account_id: str, sends_already: bool) -> Holder | None:
        """None for an account of which nothing can be said here: its budget is chosen by a process that has its key."""
        is_asked_for = row["id"] == account_id
        known: str | None = row["credential"]
        names: tuple[str, ...] = ()
        if is_asked_for or known is None or not (known.startswith("channel:") or self.vault.knows(known)):
            try:
                names = self.names(row["channel"], self.vault.credentials(row["api_key"]))
            except Unreadable:
                log.warning("credential_unreadable", account_id=row["id"])
        if not names:
            return Holder(account_id=row["id"], budget=row["budget"], names=(known,)) if known else None
        return Holder(
            account_id=row["id"],
            budget=row["budget"],
            names=names,
            settled=known in names,
            sends_already=sends_already or not is_asked_for,
        )


def announce(changes: Iterable[Change]) -> None:
    """Log what has been committed, but not of each account that is alone and keeps its budget."""
    for change in changes:
        if change.is_new or len(change.holders) > 1:
            together = [holder.account_id for holder in change.holders]
            log.info("budget_chosen", budget=change.budget, accounts=together, is_new=change.is_new)


def _new_name(account_id: str) -> str:
    """No account can have such an id, so no budget had this name before."""
    return f"{account_id}#{secrets.token_hex(4)}"


def _cooldown_until(change: Change, rows: Mapping[str, Row]) -> datetime | None:
    """Until when the upstream closed the budgets that became one."""
    counted = change.joined | {change.budget}
    ends = [rows[holder.account_id]["cooldown_until"] for holder in change.holders if holder.budget in counted]
    return max((end for end in ends if end), default=None)
