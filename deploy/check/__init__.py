"""`paceline check`: is everything in place? One line for each rule, with its remedy where it is broken.

It refuses (FAIL, exit code 1) what breaks a guarantee or stops the pipeline, and warns of what only costs.
"""

from collections.abc import Callable, Iterator

from deploy.check import broker, postgres, redis, upstream
from deploy.check import settings as consistency
from deploy.check.rules import Finding, Level
from workers.settings import Settings, problems


def run(say: Callable[[str], None]) -> bool:
    """Check, and say what was found, as it is found. Returns whether all is well."""
    well = True
    for finding in findings():
        say(str(finding))
        well = well and finding.level is not Level.FAIL
    return well


def findings() -> Iterator[Finding]:
    """Of the environment and of the servers it names."""
    if wrong := problems():
        yield from (Finding(Level.FAIL, "settings", str(error)) for error in wrong)
        return
    settings = Settings.from_env()
    yield Finding(Level.OK, "settings")
    yield from consistency.rules.judge(consistency.Configuration(settings))
    yield from postgres.findings(settings)
    yield from redis.findings(settings.redis_url)
    yield from broker.findings(settings)
    yield from upstream.findings(settings)
