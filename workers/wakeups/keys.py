"""The keys of all registries in Redis.

All but those of `alive_of` share one hash tag: some scripts change several registries at once, so Redis Cluster must
keep these keys on one node. They are small.
"""

_KEYS = "paceline:{wakeups}:"

DUE, PUBLISHED = _KEYS + "due", _KEYS + "published"
AGAIN, VERIFY = _KEYS + "again", _KEYS + "verify"
PUBLICATIONS, BEGUN = _KEYS + "publications", _KEYS + "begun"
PROCESSED, LATENCY = _KEYS + "processed", _KEYS + "latency"
BROKER_AWAY = _KEYS + "broker_away"
NUDGE = _KEYS + "nudge"
"""The channel that pacers listen to."""


def drains_of(account_id: str) -> str:
    """The places that drains of the account hold."""
    return f"{_KEYS}drains:{account_id}"


def alive_of(kind: str) -> str:
    """The processes of a kind that live."""
    return f"paceline:alive:{kind}"
