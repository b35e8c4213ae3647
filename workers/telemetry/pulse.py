"""Whether a worker or a pacer still turns over: what a liveness probe asks (`GET /healthz` on METRICS_PORT).

The main loop of the process beats; one that has not beaten for a minute is hung, and better started again. To wait for
a server that is away is not to hang: a pacer goes on ticking meanwhile, and a worker rests while Celery looks for its
broker. A process that is stopped, or never gets the interpreter, does not answer at all.
"""

from collections.abc import Callable

from workers.clock import monotonic_s

STALE_S = 60.0
"""Beats come every second. A tick may take as long as every timeout in it together; a minute is more than that."""


class Pulse:
    """Of one process. It rests at first, so that starting up may take its time."""

    def __init__(self, clock: Callable[[], float] = monotonic_s) -> None:
        self._clock = clock
        self._beat_s: float | None = None

    def beat(self) -> None:
        self._beat_s = self._clock()

    def rest(self) -> None:
        """Nothing is expected until the next beat."""
        self._beat_s = None

    def state(self) -> str:
        """`beating`, `resting` or `hung`."""
        if self._beat_s is None:
            return "resting"
        return "beating" if self._clock() - self._beat_s < STALE_S else "hung"


pulse = Pulse()
"""Of this process."""
