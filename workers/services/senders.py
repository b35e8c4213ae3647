"""The event loop that requests are made on, shared by all drains of a process, and the places there are on it.

A drain takes places before it borrows tokens, so that no claimed message waits for a place while its loan runs out.
Once it has requests out it leaves the last places alone: one slow upstream must not keep everybody else waiting.
"""

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterable
from typing import Any

Send = Coroutine[Any, Any, None]


class Senders:
    """`most` places, of which the last `spare` are for drains that have nothing out yet. Thread-safe.

    The loop's thread starts with the first request, in the process that makes it, and ends when this is closed or
    forgotten.
    """

    def __init__(self, most: int, spare: int) -> None:
        self._free, self._spare = most, spare
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: weakref.finalize | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def take(self, want: int, *, newcomer: bool) -> int:
        """Take up to `want` places. Returns how many; each is to be used by `start` or given back by `release`."""
        with self._lock:
            got = max(0, min(want, self._free - (0 if newcomer else self._spare)))
            self._free -= got
            return got

    def release(self, places: int) -> None:
        with self._lock:
            self._free += places

    def start(self, sends: Iterable[Send]) -> None:
        """Run each in a place that was taken; the place is free again when it is done. Each has a copy of the caller's
        context for itself. Each begins, even if this is closed at once: then it is cancelled where it waits."""
        with self._lock:
            self._started().call_soon_threadsafe(self._begin, sends)

    def close(self) -> None:
        """Cancel what is still out, and end. Nothing can be started any more."""
        with self._lock:
            self._closed = True
        if self._stop is not None:
            self._stop()

    def _begin(self, sends: Iterable[Send]) -> None:
        for send in sends:
            task = asyncio.get_running_loop().create_task(send)
            self._running.add(task)  # the loop itself would let go of it
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.release(1)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise RuntimeError("closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run, args=[self._loop], name="senders", daemon=True)
            thread.start()
            self._stop = weakref.finalize(self, _end, self._loop, thread)
        return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(asyncio.sleep(0))  # a task that is cancelled before it begins never begins
        while out := asyncio.all_tasks(loop):
            for task in out:
                task.cancel()
            loop.run_until_complete(asyncio.wait(out))
    finally:
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join()
