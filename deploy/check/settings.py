"""Settings that make sense one by one and not together. Needs no server."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from api.app import create_app
from deploy.check.rules import Rules
from workers.bootstrap import build
from workers.channels.registry import kinds
from workers.domain.remarks import Remark, fail, warn
from workers.engine.celery_app import app as celery_app
from workers.engine.processes import POOL_SIZE
from workers.environment import BadSetting
from workers.services.dispatch import DRAIN_FOR_S
from workers.settings import Settings

THREADS_PER_CONNECTION = 2
"""A drain holds a connection for a statement or a transaction, never across a request: two threads share one and hardly
meet. More, and they wait for each other, up to the 5 s after which a drain gives up."""
DISTINCT_BYTES = 8
"""A random secret of 32 bytes has more different ones in it, even as hexadecimal digits."""
DAY_S = 86_400.0

rules: Rules["Configuration"] = Rules()


@dataclass(frozen=True, slots=True)
class Configuration:
    """What processes are started with. celery: `celeryconfig`, as Celery understood it."""

    settings: Settings
    celery: Mapping[str, Any] = field(default_factory=lambda: celery_app.conf)
    connections: int = POOL_SIZE

    @property
    def upstream_is_here(self) -> bool:
        """Whether what is sent stays on this machine."""
        return all(is_loopback(urlsplit(url).hostname or "") for url in self.upstreams.values())

    @property
    def upstreams(self) -> Mapping[str, str]:
        """The URL of each kind's upstream, by the variable that holds it."""
        addressed = [kind for kind in kinds().values() if kind.address]
        found = [(kind, {field.name: field for field in fields(kind.settings)}) for kind in addressed]
        return {
            declared[kind.address].metadata["variable"]: getattr(self.settings.channels[kind.name], kind.address)
            for kind, declared in found
        }


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@rules.rule("token keys")
def _token_keys(c: Configuration) -> Iterator[Remark]:
    try:
        create_app(build(c.settings))
    except BadSetting as error:
        yield fail(str(error))
    secret = c.settings.jwt_secret_key
    if secret and len(set(secret.encode())) < DISTINCT_BYTES:
        yield fail("JWT_SECRET_KEY can be guessed, and then anybody may send; make one: openssl rand -hex 32")


@rules.rule("retries")
def _retries(c: Configuration) -> Iterator[Remark]:
    if c.settings.retry_base_seconds > c.settings.retry_max_seconds:
        yield warn(
            f"RETRY_BASE_SECONDS={c.settings.retry_base_seconds:g} is above RETRY_MAX_SECONDS="
            f"{c.settings.retry_max_seconds:g}, so retries never back off; raise the latter"
        )


@rules.rule("retention")
def _retention(c: Configuration) -> Iterator[Remark]:
    longest_s = c.settings.rate_limit.longest_period_s
    if longest_s + DAY_S > c.settings.retention_days * DAY_S:
        yield warn(
            f"RETENTION_DAYS={c.settings.retention_days} will not be kept to: attempts are the books of the "
            f"tokens, and stay for the longest period of RATE_LIMIT and a day ({longest_s / DAY_S + 1:g} days)"
        )


@rules.rule("upstream")
def _upstream(c: Configuration) -> Iterator[Remark]:
    for variable, url in c.upstreams.items():
        parsed = urlsplit(url)
        if parsed.scheme == "http" and not is_loopback(parsed.hostname or ""):
            yield warn(f"{variable} is plain http: keys and messages can be read on the way; use https")


@rules.rule("metrics")
def _metrics(c: Configuration) -> Iterator[Remark]:
    if not c.settings.metrics_token and not c.upstream_is_here:
        yield warn("/metrics tells account ids to anybody who reaches it; set METRICS_TOKEN, or bar it at the proxy")


@rules.rule("threads and connections")
def _threads(c: Configuration) -> Iterator[Remark]:
    threads, most = c.celery["worker_concurrency"], THREADS_PER_CONNECTION * c.connections
    if threads > most:
        yield fail(
            f"a worker's {threads} threads share {c.connections} database connections, and drains give up waiting "
            f"for one; set worker_concurrency in celeryconfig.py to {most} or less, and start more workers instead"
        )


@rules.rule("redelivery")
def _redelivery(c: Configuration) -> Iterator[Remark]:
    options = c.celery["broker_transport_options"]
    after_s = float(options.get("visibility_timeout", 3600))
    longest_s = c.settings.lease_s + DRAIN_FOR_S
    if options.get("ack_emulation", True) and after_s <= longest_s:
        yield fail(
            f"Celery hands a drain out again after {after_s:g} s, while the first may still be sending; set "
            f"ack_emulation to False in celeryconfig.py, or visibility_timeout above {longest_s:g} s "
            "(SEND_TIMEOUT_SECONDS, and a drain's own)"
        )
