"""The upstreams: each channel kind asks its own, the way messages are sent, by the same proxy."""

from collections.abc import Iterator

from deploy.check.rules import Finding
from workers.bootstrap import network
from workers.channels.registry import kinds
from workers.settings import Settings

WHAT = "upstream answers"


def findings(settings: Settings) -> Iterator[Finding]:
    """One finding for each kind."""
    reached = network(settings)
    for name, kind in kinds().items():
        remark = kind.check(settings.channels[name], reached, settings.send_timeout_seconds)
        what = WHAT if len(kinds()) == 1 else f"{WHAT} ({name})"
        yield Finding(remark.level, what, remark.words)
