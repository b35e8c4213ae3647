"""Whether REDIS_URL leads to the server that gives out the tokens of this database."""

from collections.abc import Iterator

import psycopg

from deploy.check.rules import Finding
from ratelimit import TokensUnavailable
from workers.bootstrap import build
from workers.domain.errors import StoreUnavailable
from workers.domain.remarks import Level
from workers.settings import Settings
from workers.store import epochs

WHAT = "Redis gives out the tokens"


def findings(settings: Settings) -> Iterator[Finding]:
    """Nothing where one of the two cannot be asked: that is said elsewhere."""
    adapters = build(settings, name="paceline check")
    try:
        present, origin = epochs.current(adapters.db), adapters.tokens.origin()
    except (StoreUnavailable, TokensUnavailable, psycopg.Error):
        return
    finally:
        adapters.close()
    if present.server in ("", origin.server):
        yield Finding(Level.OK, WHAT)
    else:
        yield Finding(
            Level.WARN,
            WHAT,
            f"another server does, {present.server}, since {present.since:%Y-%m-%d %H:%M:%S%z}; this one is "
            f"{origin.server or 'a replica'}. Unless a pacer is about to take it over, as after a failover, set "
            "REDIS_URL to the same server everywhere",
        )
