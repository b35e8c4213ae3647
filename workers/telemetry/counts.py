"""Where a process keeps its counts, and who tells them. Every count is told at one place, so a scrape of everything
counts nothing twice:

* A worker or pacer with a METRICS_PORT keeps its counts to itself, in memory, and tells them there
  (`exposition.serve`).
* All others of one machine or container, above all the processes of one API, share a directory
  (`PROMETHEUS_MULTIPROC_DIR`), and the API tells whatever is in it.
* Without either, a process's counts are its own, and only the API tells them.

The shared files would be named after process ids, and each restart would leave its own behind. Here they are named
after *slots*: the lowest number that no living process has locked. The kernel lets go of the lock however the process
ends, and the slot's next owner goes on counting where the last one stopped. So there are never more files than there
were processes at once, and counters outlive restarts. What a process says only of itself (a `live…` gauge) ends with
it.
"""

import fcntl
import itertools
import os
from pathlib import Path
from typing import IO

from prometheus_client import REGISTRY, CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Read once, when the first metric is defined (`workers.telemetry.metrics`)."""


class Slots:
    """The slots of a shared directory, and the one of this process: another one after a fork."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise RuntimeError(f"{DIRECTORY}={directory} must name a directory that exists")
        self._directory = directory
        self._owner: int | None = None
        self._number = 0
        self._lock: IO[str] | None = None

    def mine(self) -> int:
        if self._owner != os.getpid():
            self._number, self._lock = self._take()
            self._owner = os.getpid()
        return self._number

    def close_dead(self) -> None:
        """Forget what processes that are gone said of themselves. Their counts stay."""
        for path in self._directory.glob("*.slot"):
            with path.open() as file:
                if _locked(file, fcntl.LOCK_SH):  # shared: several who look at once are not in each other's way
                    mark_process_dead(int(path.stem), str(self._directory))

    def _take(self) -> tuple[int, IO[str]]:
        for number in itertools.count(1):
            file = (self._directory / f"{number}.slot").open("w")
            if _locked(file, fcntl.LOCK_EX):
                mark_process_dead(number, str(self._directory))
                return number, file
            file.close()
        raise AssertionError("numbers do not end")


def _locked(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_slots = Slots(Path(os.environ[DIRECTORY])) if os.environ.get(DIRECTORY) else None
# prometheus-client's own way of naming the files otherwise: whatever identifies a process among those that run at once.
values.ValueClass = values.MutexValue if _slots is None else values.MultiProcessValue(_slots.mine)


def counted() -> CollectorRegistry:
    """What this process tells: its own counts, or those of all that share its directory."""
    if _slots is None:
        return REGISTRY
    _slots.close_dead()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
