"""Accounts' keys at rest: sealed under the newest key, opened by any, and nothing sent under another's name."""

import base64
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from api.app import create_app
from deploy.sandbox import Sandbox
from workers.bootstrap import Adapters
from workers.credentials import Vault, is_sealed
from workers.domain.errors import CannotSeal, Unreadable
from workers.services.submit import Receipt
from workers.settings import Settings
from workers.store import accounts

OLD, NEW, OTHER = (base64.urlsafe_b64encode(os.urandom(32)).decode() for _ in range(3))
Bearer = Callable[..., dict[str, str]]


def stored(adapters: Adapters, account_id: str = "shop") -> str:
    return dict(accounts.sealed_keys(adapters.db))[account_id]


def put_key(adapters: Adapters, bearer: Bearer, api_key: str = "key-of-the-shop") -> int:
    client: FlaskClient = create_app(adapters).test_client()
    body = {"credentials": {"apiKey": api_key}, "limits": "100/second"}
    return client.put("/api/onlyfans/messaging/accounts/shop", json=body, headers=bearer("admin")).status_code


def test_what_is_stored_is_not_the_key(adapters: Adapters, bearer: Bearer) -> None:
    assert put_key(adapters, bearer) == 200
    assert is_sealed(stored(adapters))
    assert "key-of-the-shop" not in stored(adapters)


def test_the_upstream_gets_the_key_itself(
    adapters: Adapters, bearer: Bearer, submit: Callable[..., Receipt], upstream: Sandbox
) -> None:
    put_key(adapters, bearer)
    submit(account_id="shop")
    adapters.dispatcher(worker=1).drain("shop")
    (entry,) = upstream.ledger.entries
    assert entry.arrival.message.key == "key-of-the-shop"


def test_one_stored_in_the_clear_still_serves_until_it_is_sealed(
    adapters: Adapters, submit: Callable[..., Receipt], upstream: Sandbox
) -> None:
    accounts.put(adapters.db, "shop", sealed_key="from-before")
    adapters.tokens.open_new("shop")
    submit(account_id="shop")
    adapters.dispatcher(worker=1).drain("shop")
    assert [entry.arrival.message.key for entry in upstream.ledger.entries] == ["from-before"]
    assert adapters.accounts().rekey() == 1
    assert is_sealed(stored(adapters))
    assert adapters.vault.open(stored(adapters)) == "from-before"


def test_keys_are_rotated_newest_first(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    adapters = with_settings(credentials_key=(OLD,))
    put_key(adapters, bearer)
    both = replace(adapters, vault=Vault([NEW, OLD]))
    assert both.vault.open(stored(adapters)) == "key-of-the-shop"
    assert both.accounts().rekey() == 1
    assert Vault([NEW]).open(stored(adapters)) == "key-of-the-shop"
    with pytest.raises(Unreadable):
        Vault([OLD]).open(stored(adapters))


def test_rekey_says_which_account_it_cannot_open(with_settings: Callable[..., Adapters], bearer: Bearer) -> None:
    adapters = with_settings(credentials_key=(OLD,))
    put_key(adapters, bearer)
    before = stored(adapters)
    with pytest.raises(Unreadable, match=r"account shop .* CREDENTIALS_KEY"):
        replace(adapters, vault=Vault([OTHER])).accounts().rekey()
    assert stored(adapters) == before


def test_rekey_does_not_bring_an_old_key_back(adapters: Adapters, bearer: Bearer) -> None:
    put_key(adapters, bearer, "first")
    seen = stored(adapters)
    put_key(adapters, bearer, "second")
    assert not accounts.reseal(adapters.db, "shop", seen, adapters.vault.seal("first"))
    assert adapters.vault.open(stored(adapters)) == "second"


def test_a_worker_without_the_key_sends_nothing_and_another_goes_on(
    with_settings: Callable[..., Adapters], bearer: Bearer, upstream: Sandbox
) -> None:
    adapters = with_settings(credentials_key=(NEW,))
    put_key(adapters, bearer)
    client = create_app(adapters).test_client()
    wanted = {"recipientId": "fan-1", "content": "x", "accountId": "shop"}
    client.post("/api/onlyfans/messaging/send", json=wanted, headers=bearer())
    with pytest.raises(Unreadable):
        replace(adapters, vault=Vault([OLD])).dispatcher(worker=1).drain("shop")
    assert upstream.ledger.entries == []
    assert adapters.db.one("SELECT state, attempts FROM messages") == {"state": "queued", "attempts": 0}
    assert adapters.dispatcher(worker=2).drain("shop").claimed == 1


def test_without_any_key_credentials_are_refused_and_nothing_else(adapters: Adapters, bearer: Bearer) -> None:
    without = replace(adapters, vault=Vault([]))
    assert put_key(without, bearer) == 409
    assert accounts.get(adapters.db, "shop") is None
    with pytest.raises(CannotSeal, match="CREDENTIALS_KEY"):
        without.vault.seal("x")


def test_the_key_is_derived_where_none_is_set_and_stays_readable_once_one_is(settings: Settings) -> None:
    sealed = settings.vault.seal("abc")
    assert replace(settings, credentials_key=(NEW,)).vault.open(sealed) == "abc"
    assert replace(settings, credentials_key=(NEW,)).vault.seal("abc") != sealed
    with pytest.raises(Unreadable):
        replace(settings, jwt_secret_key="another secret of at least 32 bytes").vault.open(sealed)


def test_what_was_meddled_with_is_not_opened(settings: Settings) -> None:
    sealed = settings.vault.seal("abc")
    with pytest.raises(Unreadable):
        settings.vault.open(sealed[:-6] + "AAAAAA")
