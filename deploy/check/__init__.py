"""`paceline check`: is everything in place? One line for each rule, with its remedy where it is broken.

It refuses (FAIL, exit code 1) what breaks a guarantee or stops the pipeline, and warns of what only costs.

rules     what a check is made of
settings  settings that make no sense together
postgres  PostgreSQL keeps what it confirms
redis     Redis may forget, and must not evict
epoch     REDIS_URL leads to the server that gives out the tokens
broker    Celery's broker
upstream  the upstream can be reached, and takes our key
clock     whether another machine's clock agrees with ours
"""

from collections.abc import Callable, Iterator

from deploy.check import broker, epoch, postgres, redis, upstream
from deploy.check import settings as consistency
from deploy.check.rules import Finding
from workers.domain.remarks import Level
from workers.settings import Settings, problems


def run(say: Callable[[str], None], process: str | None = None) -> bool:
    """Check, and say what was found, as it is found. Returns whether all is well.

    process: `api` or `worker`, if only what that process needs is given here: an API need not reach the upstream, and
    a worker need not have the keys of access tokens.
    """
    well = True
    for finding in findings(with_upstream=process != "api"):
        if process == "worker" and finding.what == "token keys":
            continue
        say(str(finding))
        well = well and finding.level is not Level.FAIL
    return well


def findings(*, with_upstream: bool = True) -> Iterator[Finding]:
    """Of the environment and of the servers it names."""
    if wrong := problems():
        yield from (Finding(Level.FAIL, "settings", str(error)) for error in wrong)
        return
    settings = Settings.from_env()
    yield Finding(Level.OK, "settings")
    yield from consistency.rules.judge(consistency.Configuration(settings))
    yield from postgres.findings(settings)
    yield from redis.findings(settings.redis_url)
    yield from epoch.findings(settings)
    yield from broker.findings(settings)
    if with_upstream:
        yield from upstream.findings(settings)
