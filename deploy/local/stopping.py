"""A request to stop, which also interrupts a start at its next step."""

import threading


class Interrupted(Exception):
    """Somebody asked to stop while things were being started."""


class Stop(threading.Event):
    """Set once somebody asks to stop."""

    def check(self) -> None:
        """To be called between the steps of a start, and while it waits. Raises Interrupted."""
        if self.is_set():
            raise Interrupted
