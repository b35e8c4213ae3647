"""A process started by a stack ends with it, even if the stack is killed: it holds the read end of a pipe, and the only
write end dies with the stack."""

import os
import signal
import threading
from contextlib import suppress

LIFELINE = "PACELINE_LIFELINE_FD"


def follow_lifeline() -> None:
    """If a stack started this process: end it, as by SIGTERM, when the stack is gone."""
    number = os.environ.pop(LIFELINE, None)
    if number is None:
        return
    end = int(number)
    os.set_inheritable(end, False)

    def follow() -> None:
        with suppress(OSError):
            os.read(end, 1)  # nobody ever writes: it returns when the last writer is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="lifeline", daemon=True).start()
