"""Processes of ours: their CPU time, and their end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress

import psutil  # comes with the embedded PostgreSQL


def clean_up_on_sigterm() -> None:
    """SIGTERM ends this process as ^C does: with everything that it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds, so far, of these processes and of everything they have started, what has ended of it included."""
    total_s = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    total_s += times.user + times.system + times.children_user + times.children_system
    return total_s


def stop(process: subprocess.Popen[bytes], within_s: float = 3.0) -> None:
    """End a process that leads a session of its own, with everything in it."""
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if number is signal.SIGTERM:
            with suppress(subprocess.TimeoutExpired):
                process.wait(within_s)
    process.wait()
