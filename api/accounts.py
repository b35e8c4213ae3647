"""Account routes: every role reads accounts; admins change limits, credentials, settings and pauses."""

from typing import Any

from flask import Blueprint, g
from marshmallow import ValidationError

from api import schemas
from api.auth import ADMINS, EVERYONE, actor
from api.endpoint import endpoint
from api.kinds import checked, kind_of
from api.openapi import json_schema
from ratelimit import Limits
from workers.bootstrap import Adapters
from workers.channels.base import Channel, Kind
from workers.channels.registry import kinds, serves
from workers.store.accounts import Account


def add_routes(routes: Blueprint, adapters: Adapters) -> None:
    """Add the account routes to the messaging blueprint, under `/accounts`."""
    accounts = adapters.accounts()
    default_limits = adapters.settings.rate_limit

    @routes.get("/channels")
    @endpoint("The kinds of channels", roles=EVERYONE, answers={200: schemas.KindList})
    def list_channels() -> Any:
        """Which kinds of accounts there may be here, and what settings and credentials an account of each takes."""
        here = [kind for kind in kinds().values() if serves(kind.name, g.channel)]
        return {"channels": [_kind(kind, adapters.channels[kind.name]) for kind in here]}, 200

    @routes.get("/accounts")
    @endpoint("Accounts and their limits", roles=EVERYONE, answers={200: schemas.AccountList})
    def list_accounts() -> Any:
        """All accounts of your claim, with their limits and states."""
        found = [account for account in accounts.all_of(g.caller.scope()) if serves(account.channel, g.channel)]
        return {"accounts": [_shown(account, default_limits) for account in found]}, 200

    @routes.get("/accounts/<account_id>")
    @endpoint("One account", roles=EVERYONE, answers={200: schemas.AccountOut})
    def get_account(account_id: str) -> Any:
        """One account with its limits and state. Credentials are never shown."""
        return _shown(accounts.get(g.caller.account(account_id)), default_limits), 200

    @routes.put("/accounts/<account_id>")
    @endpoint(
        "Create an account, or replace its properties",
        roles=ADMINS,
        body=schemas.AccountIn,
        answers={200: schemas.AccountOut},
        errors=(409,),
    )
    def put_account(account_id: str, body: dict[str, Any]) -> Any:
        """Create an account or replace all of its properties. Omitted properties are cleared, except the
        credentials."""
        account_id = schemas.check_account_id(g.caller.account(account_id))
        kind = kind_of(g.channel, body.get("channel"))
        of_kind = checked(kind, body)
        _refuse_credentials_of_another_kind(accounts.find(account_id), kind, body)
        account = accounts.put(
            account_id,
            channel=kind.name,
            limits=body.get("limits"),
            display_name=body.get("display_name"),
            credentials=of_kind.get("credentials"),
            settings=of_kind.get("settings"),
            by=actor(),
            scope=g.caller.scope(),
        )
        return _shown(account, default_limits), 200

    @routes.patch("/accounts/<account_id>")
    @endpoint(
        "Change some of an account's properties",
        roles=ADMINS,
        body=schemas.AccountPatch,
        answers={200: schemas.AccountOut},
        errors=(409,),
    )
    def patch_account(account_id: str, body: dict[str, Any]) -> Any:
        """Change the named properties and keep the others. Use this to give an account a new key."""
        before = accounts.get(g.caller.account(account_id))
        kind = kind_of(g.channel, body.get("channel") or before.channel)
        wanted = body | checked(kind, body, patch=True)
        _refuse_credentials_of_another_kind(before, kind, body)
        account = accounts.patch(before.id, wanted, by=actor(), scope=g.caller.scope())
        return _shown(account, default_limits), 200

    @routes.post("/accounts/<account_id>/pause")
    @endpoint(
        "Pause an account",
        roles=ADMINS,
        body=schemas.Pause,
        answers={200: schemas.AccountOut},
    )
    def pause(account_id: str, body: dict[str, Any]) -> Any:
        """Stop sending for an account. Its messages wait."""
        account = accounts.pause(
            g.caller.account(account_id), reason=body["reason"], until=body.get("until"), by=actor()
        )
        return _shown(account, default_limits), 200

    @routes.post("/accounts/<account_id>/resume")
    @endpoint("Resume an account", roles=ADMINS, answers={200: schemas.AccountOut})
    def resume(account_id: str) -> Any:
        """Send for a paused account again, and end its cooldown."""
        return _shown(accounts.resume(g.caller.account(account_id), by=actor()), default_limits), 200


def _refuse_credentials_of_another_kind(before: Account | None, kind: Kind, body: dict[str, Any]) -> None:
    """An account that becomes one of another kind cannot keep its credentials. Raises ValidationError."""
    if before and before.channel != kind.name and before.sealed_key is not None and "credentials" not in body:
        words = f"Are those of a {before.channel} account; give those of {kind.name}."
        raise ValidationError({"credentials": [words]})


def _kind(kind: Kind, channel: Channel) -> dict[str, Any]:
    able = channel.capabilities
    return {
        "name": kind.name,
        "platform": kind.platform,
        "settings": json_schema(kind.account_settings),
        "credentials": json_schema(kind.credentials),
        "capabilities": {
            "idempotent": able.idempotent,
            "keyLifetimeSeconds": able.key_lifetime_s,
            "history": able.history,
        },
    }


def _shown(account: Account, default_limits: Limits) -> dict[str, Any]:
    """Return the public view of an account. Of its credentials, it only says whether it has any."""
    closed = account.closed()
    return {
        "account_id": account.id,
        "channel": account.channel,
        "display_name": account.display_name,
        "limits": str(account.limits or default_limits),
        "own_limits": account.limits is not None,
        "has_credentials": account.sealed_key is not None,
        "settings": account.settings,
        "state": closed.state if closed else "active",
        "reason": closed and closed.reason,
        "paused_until": account.paused_until,
    }
