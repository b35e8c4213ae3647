"""The threads that requests are made in, shared by all drains of a process.

A drain takes places before it borrows tokens, so that no claimed message waits for a thread while its loan runs out.
Once it has requests out it leaves the last places alone: one slow upstream must not keep everybody else waiting.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


class Senders:
    """`most` places, of which the last `spare` are for drains that have nothing out yet. Thread-safe."""

    def __init__(self, most: int, spare: int) -> None:
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="sender")
        self._free, self._spare = most, spare
        self._lock = threading.Lock()

    def take(self, want: int, *, newcomer: bool) -> int:
        """Take up to `want` places. Returns how many; each is to be used by `submit` or given back by `release`."""
        with self._lock:
            got = max(0, min(want, self._free - (0 if newcomer else self._spare)))
            self._free -= got
            return got

    def release(self, places: int) -> None:
        with self._lock:
            self._free += places

    def submit(self, work: Callable[..., _T], *args: Any, **kwargs: Any) -> Future[_T]:
        """Run `work` in a place that was taken; the place is free again when it is done."""
        future = self._threads.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: self.release(1))
        return future
