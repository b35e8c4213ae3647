"""The adapter of Redis for whatever is no budget. It stands beside the store: services use it, and it knows no service.

registries  the four below as one adapter, `Wakeups`
due         when each account has something to do
places      which drains work on an account
beats       which processes live, and whether the broker can be reached
tallies     how long each upstream takes to answer, and when it last did
keys        the names of all keys

The scripts in Lua change several registries at once where a crash between two changes would lose a wake-up.
"""

from workers.wakeups.due import PUBLICATION, PUBLISHED_FOR_S, Due, Nudges
from workers.wakeups.keys import NUDGE
from workers.wakeups.places import DRAIN_LEASE_S
from workers.wakeups.registries import Wakeups
from workers.wakeups.tallies import EXPECTED_LATENCY_S

__all__ = [
    "DRAIN_LEASE_S",
    "EXPECTED_LATENCY_S",
    "NUDGE",
    "PUBLICATION",
    "PUBLISHED_FOR_S",
    "Due",
    "Nudges",
    "Wakeups",
]
