"""The composition root: adapters are built from settings here and nowhere else; tests swap them here."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import redis

from ratelimit import Tokens, connect
from workers.channels.base import Channel
from workers.channels.http.proxy import Proxy
from workers.channels.http.upstream import Network
from workers.channels.registry import Channels, kinds
from workers.credentials import Vault
from workers.services.accounts import Accounts
from workers.services.amend import Amender
from workers.services.budgets import Budgets
from workers.services.cancel import Canceller
from workers.services.dispatch import Dispatcher
from workers.services.failures import Failures
from workers.services.publish import Publisher
from workers.services.reader import Reader
from workers.services.recovery import Rescuer
from workers.services.senders import Senders
from workers.services.submit import Submitter
from workers.settings import Settings
from workers.store.session import Database
from workers.telemetry.metrics import begin_at_zero
from workers.wakeups import Wakeups

NAMESPACE = "paceline"
"""The prefix of the tokens' keys in Redis. Another one would lose the tokens of running systems."""
SENDERS = 512
"""Requests that one worker process can have out at once, over all accounts."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """What stands between Paceline and the outside."""

    settings: Settings
    db: Database
    redis: redis.Redis
    tokens: Tokens
    wakeups: Wakeups
    channels: Mapping[str, Channel]
    senders: Senders
    vault: Vault

    @property
    def publisher(self) -> Publisher:
        return Publisher(self.wakeups)

    def submitter(self) -> Submitter:
        s = self.settings
        return Submitter(self.db, self.tokens, self.wakeups, self.publisher, s.rate_limit, s.lease_s, s.max_queue_depth)

    def reader(self) -> Reader:
        return Reader(self.db, self.tokens, self.wakeups, self.settings.rate_limit, self.settings.lease_s)

    def failures(self) -> Failures:
        s = self.settings
        return Failures(self.db, self.tokens, self.wakeups, self.publisher, s.rate_limit, s.lease_s)

    def amender(self) -> Amender:
        return Amender(self.db, self.publisher)

    def canceller(self) -> Canceller:
        return Canceller(self.db, self.publisher)

    def accounts(self) -> Accounts:
        return Accounts(self.db, self.tokens, self.publisher, self.vault, self.budgets(), self.settings.rate_limit)

    def budgets(self) -> Budgets:
        config = self.settings.channels
        identities = {name: partial(kind.identity, config[name]) for name, kind in kinds().items()}
        return Budgets(self.db, self.vault, identities)

    def rescuer(self) -> Rescuer:
        return Rescuer(self.db, self.wakeups, self.publisher, self.channels, self.settings.retry_policy)

    def dispatcher(self, worker: int) -> Dispatcher:
        return Dispatcher(
            db=self.db,
            tokens=self.tokens,
            wakeups=self.wakeups,
            publisher=self.publisher,
            channels=self.channels,
            vault=self.vault,
            budgets=self.budgets(),
            senders=self.senders,
            default_limits=self.settings.rate_limit,
            retry=self.settings.retry_policy,
            send_timeout_s=self.settings.send_timeout_seconds,
            lease_s=self.settings.lease_s,
            worker=worker,
        )

    def close(self) -> None:
        self.senders.close()
        for channel in self.channels.values():
            channel.close()
        self.redis.close()
        self.db.close()


def build(settings: Settings, *, pool_size: int = 10, name: str = "paceline") -> Adapters:
    """Nothing connects before it is used."""
    client = connect(settings.redis_url)
    reached = network(settings)
    config = settings.channels
    channels = Channels((name, kind.build(config[name], reached, SENDERS)) for name, kind in kinds().items())
    begin_at_zero(list(channels))
    return Adapters(
        settings=settings,
        db=Database(settings.database_url, pool_size=pool_size, name=name),
        redis=client,
        tokens=Tokens(client, NAMESPACE),
        wakeups=Wakeups(client),
        channels=channels,
        senders=Senders(SENDERS, spare=SENDERS // 4),
        vault=settings.vault,
    )


def network(settings: Settings) -> Network:
    """How all upstreams are reached."""
    return Network(
        ca_file=settings.upstream_ca_file,
        client_certificate=settings.upstream_client_cert,
        client_key=settings.upstream_client_key,
        https_proxy=Proxy.at(settings.https_proxy) if settings.https_proxy else None,
        no_proxy=settings.no_proxy,
    )
